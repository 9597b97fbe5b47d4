import { systemClock } from '../base/clock.ts';
import { formatBytes } from '../base/units.ts';
import type { TelemetryStatus } from '../control/telemetry-status.ts';
import type { FedSample } from '../telemetry/sample-feed.ts';
import { localTime } from './event-text.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { Interruption } from './interruption.ts';
import { type Output, table } from './output.ts';
import { connectTo } from './vm-connection.ts';

export interface TelemetryOptions {
  readonly follow: boolean;
  /** Undefined: it stays as it is. */
  readonly intervalMs: number | undefined;
}

/** What a VM uses now and has lately; or each sample from now on, until the VM ends. */
export async function telemetry(
  name: string,
  { follow, intervalMs }: TelemetryOptions,
  out: Output,
): Promise<number> {
  using interruption = follow ? new Interruption() : undefined;
  using control = await connectTo(name);
  const status = await control.telemetry({ intervalMs });
  if (interruption === undefined) {
    out.result(status, () => telemetryText(name, status, systemClock.wallMs()));
    return EXIT_CODES.ok.code;
  }
  if (!out.json) out.result(undefined, () => sampleLine(SAMPLE_COLUMNS.map(({ title }) => title)));
  const show = async () => {
    for await (const fed of control.samples())
      out.result({ ...fed.sample, lost: fed.lost }, () => sampleText(fed));
  };
  await interruption.orInterrupted(show());
  return EXIT_CODES.ok.code;
}

/** All metrics, a line each: the last sample, and what it was like before. */
export function telemetryText(
  name: string,
  { intervalMs, failing, last, profile }: TelemetryStatus,
  nowWallMs: number,
): string {
  const every = `measured every ${timeText(intervalMs)}`;
  const failed = failing.length === 0 ? '' : `; nothing is known of: ${failing.join(', ')}`;
  if (last === null || profile === null) return `${name} is ${every}${failed}; there is no sample yet`;
  const age = timeText(Math.max(0, nowWallMs - last.wallMs));
  const head = `${name}, ${every}, the last time ${age} ago; ${profile.samples} samples of ${timeText(profile.windowMs)}${failed}`;
  const rows = Object.entries(profile.metrics)
    .sort(([one], [other]) => (one < other ? -1 : 1))
    .map(([metric, { mean, p50, p95, max }]) => {
      const now = last.values[metric];
      const cells = [mean, p50, p95, max].map((value) => valueText(metric, value));
      return [metric, now === undefined ? '' : valueText(metric, now), ...cells];
    });
  return `${head}\n\n${table([['METRIC', 'NOW', 'MEAN', 'P50', 'P95', 'MAX'], ...rows])}`;
}

/** By the unit that a metric's name ends in. */
export function valueText(metric: string, value: number): string {
  if (metric.endsWith('BytesPerSecond')) return `${formatBytes(Math.round(value))}/s`;
  if (metric.endsWith('Bytes')) return formatBytes(Math.round(value));
  if (metric.endsWith('PerSecond')) return `${short(value)}/s`;
  if (metric.endsWith('Share')) return `${short(100 * value)} %`;
  if (metric.endsWith('Microseconds')) return `${short(value)} µs`;
  if (metric.endsWith('Ms')) return `${short(value)} ms`;
  return short(value);
}

function short(value: number): string {
  return String(Number(value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)));
}

function timeText(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${Number((ms / 1000).toFixed(1))} s`;
}

type Values = FedSample['sample']['values'];

interface Column {
  readonly title: string;
  /** Of which metric it has the unit. */
  readonly metric: string;
  readonly value: (values: Values) => number | undefined;
}

const one = (title: string, metric: string): Column => ({ title, metric, value: (values) => values[metric] });

/** Of all disks, or all network cards. */
function sum(title: string, ending: string): Column {
  const group = ending.split('.')[0] ?? '';
  const last = ending.slice(group.length);
  const value = (values: Values) => {
    const all = Object.entries(values).filter(
      ([name]) => name.startsWith(`${group}.`) && name.endsWith(last),
    );
    return all.length === 0 ? undefined : all.reduce((total, [, each]) => total + each, 0);
  };
  return { title, metric: ending, value };
}

const SAMPLE_COLUMNS: readonly Column[] = [
  { title: 'TIME', metric: '', value: () => undefined },
  one('CORES', 'cpu.usedCores'),
  one('WAITED', 'cpu.waitedCores'),
  one('THROTTLED', 'cpu.throttledShare'),
  one('RESIDENT', 'memory.residentBytes'),
  one('WRITTEN', 'memory.workingSetBytes'),
  sum('DISK READ', 'disk.readBytesPerSecond'),
  sum('DISK WRITE', 'disk.writeBytesPerSecond'),
  sum('NET IN', 'net.receivedBytesPerSecond'),
  sum('NET OUT', 'net.sentBytesPerSecond'),
  one('PAUSED', 'epoch.pausedShare'),
  one('COST', 'telemetry.sampleMicroseconds'),
];

export function sampleText({ sample, lost }: FedSample): string {
  const [, ...columns] = SAMPLE_COLUMNS;
  const cells = columns.map(({ metric, value }) => {
    const found = value(sample.values);
    return found === undefined ? '' : valueText(metric, found);
  });
  const line = sampleLine([localTime(new Date(sample.wallMs).toISOString()), ...cells]);
  return lost === 0 ? line : `(${lost} samples were lost here)\n${line}`;
}

function sampleLine(cells: readonly string[]): string {
  return cells
    .map((cell) => cell.padEnd(12))
    .join(' ')
    .trimEnd();
}
