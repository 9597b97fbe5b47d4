import type { Allocation, Forecast, Outlook, ResourceName } from '../api/foresight-resources.ts';
import { formatBytes } from '../base/units.ts';
import { localTime } from './event-text.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { forecastChart } from './forecast-chart.ts';
import { hostClient } from './host-connection.ts';
import { type Output, table } from './output.ts';

const CHART_ROWS = 14;
const COLUMNS_DEFAULT = 100;
/** The rows that are told in numbers, of those that a forecast has. */
const TOLD_SECONDS = [60, 300, 900, 3600, 14_400, 86_400];
const TOLD_LEVELS = [0.1, 0.5, 0.9, 0.99];

/** History, forecast and allocation of one resource of a VM. */
export async function forecast(
  name: string,
  { resource }: { readonly resource: ResourceName },
  out: Output,
): Promise<number> {
  const found = await hostClient().call('getForecast', { params: { name, resource } });
  out.result(found, () => forecastText(found, process.stdout.columns ?? COLUMNS_DEFAULT));
  return EXIT_CODES.ok.code;
}

/** What a VM has, what is kept for it, and the last decisions with what they were made from. */
export async function explain(
  name: string,
  { limit }: { readonly limit: number },
  out: Output,
): Promise<number> {
  const found = await hostClient().call('getAllocation', { params: { name }, query: { limit } });
  out.result(found, () => allocationText(found));
  return EXIT_CODES.ok.code;
}

/** What this host has, against what its VMs will need together. */
export async function capacity({ risk }: { readonly risk: number }, out: Output): Promise<number> {
  const client = hostClient();
  const name = (await client.call('listHosts', { query: {} })).hosts[0]?.name ?? '';
  const found = await client.call('getOutlook', { params: { name }, query: { risk } });
  out.result(found, () => capacityText(found));
  return EXIT_CODES.ok.code;
}

export function capacityText({ host, risk, horizonSeconds, resources }: Outlook): string {
  const head = `${host}: what ${resources[0]?.vms ?? 0} VMs need within ${timeText(horizonSeconds)}, too little with ${Number((100 * risk).toFixed(1))} % at most`;
  const rows = resources.map(({ resource, unit, ...found }) => {
    const text = (value: number | null) => (value === null ? '-' : amountText(value, unit));
    const { capacity, used, allocated, reserved, needed, sumOfPeaks, promisable } = found;
    return [resource, ...[capacity, used, allocated, reserved, needed, sumOfPeaks, promisable].map(text)];
  });
  const titles = [
    'RESOURCE',
    'HOST HAS',
    'USED',
    'GIVEN',
    'RESERVED',
    'NEEDED',
    'IF ALL AT ONCE',
    'PROMISABLE',
  ];
  return `${head}\n\n${table([titles, ...rows])}`;
}

export function forecastText(forecast: Forecast, columns: number): string {
  const { vm, resource, unit, history, levels, rows, peak, peakHorizonSeconds, allocation } = forecast;
  const text = (value: number) => amountText(value, unit);
  const head = `${vm}, ${resource}${forecast.isAnomalous ? ' (something unusual goes on: nothing is learnt from it)' : ''}`;
  if (rows.length === 0) return `${head}: too little is known yet; ask again in a minute`;
  const stepMs = history.stepSeconds * 1000;
  const past = history.values.flatMap((value, index) =>
    value === null ? [] : [{ atMs: (index - history.values.length + 1) * stepMs, value }],
  );
  const column = (level: number) => levels.indexOf(level);
  const future = rows.map(({ horizonSeconds, values }) => ({
    atMs: horizonSeconds * 1000,
    low: values[column(0.1)] ?? 0,
    middle: values[column(0.5)] ?? 0,
    high: values[column(0.9)] ?? 0,
  }));
  const chart = forecastChart(
    { past, future, allocated: allocation?.allocated, valueText: text },
    { columns, rows: CHART_ROWS },
  );
  const told = rows.filter(({ horizonSeconds }) => TOLD_SECONDS.includes(horizonSeconds));
  const numbers = told.map(({ horizonSeconds, values }) => [
    `in ${timeText(horizonSeconds)}`,
    ...TOLD_LEVELS.map((level) => text(values[column(level)] ?? 0)),
  ]);
  const heads = ['', ...TOLD_LEVELS.map((level) => `${Number((level * 100).toFixed(0))} %`)];
  const lines = [head, '', chart, '', table([heads, ...numbers])];
  if (peak !== null) lines.push('', `peak within ${timeText(peakHorizonSeconds)}: ${peakText(peak, text)}`);
  if (allocation !== null) lines.push(standingText(allocation, text));
  return lines.join('\n');
}

export function allocationText({ vm, mode, horizonSeconds, resources, decisions }: Allocation): string {
  const rows = resources.flatMap(({ resource, unit, allocation, peak, isAnomalous }) => {
    if (allocation === null) return [];
    const text = (value: number) => amountText(value, unit);
    const { allocated, reserved, min, max } = allocation;
    const high = peak?.values[peak.levels.indexOf(0.95)];
    const amounts = [allocated, reserved, min, max].map(text);
    return [[resource, ...amounts, high === undefined ? '-' : text(high), isAnomalous ? 'unusual' : '']];
  });
  const units = new Map(resources.map(({ resource, unit }) => [RESOURCE_KEYS[resource], unit]));
  const head = `${vm}: ${MODE_TEXT[mode]}`;
  const titles = ['RESOURCE', 'HAS', 'RESERVED', 'MIN', 'MAX', `PEAK WITHIN ${timeText(horizonSeconds)}`, ''];
  const told = decisions.map(({ time, facts }) => `${localTime(time)}  ${decisionText(facts, units)}`);
  const list = told.length === 0 ? 'nothing has been decided yet' : told.join('\n');
  return [head, '', table([titles, ...rows]), '', list].join('\n');
}

const MODE_TEXT: Readonly<Record<Allocation['mode'], string>> = {
  off: 'nothing is decided (allocation.mode: off)',
  recommend: 'what is decided is only said (allocation.mode: recommend)',
  auto: 'what is decided is carried out (allocation.mode: auto)',
};

const RESOURCE_KEYS: Readonly<Record<ResourceName, string>> = {
  cpu: 'cpuMillicores',
  memory: 'memoryBytes',
  disk: 'diskBytesPerSecond',
  net: 'netBytesPerSecond',
};

const REASONS: Readonly<Record<string, string>> = {
  forecast: 'the forecast says that it will need more',
  'held-back': 'it is held back',
  full: 'it uses all that it has',
  'out-of-memory': 'its guest is about to run out of memory',
  'below-minimum': 'it has less than its minimum',
  'above-maximum': 'it has more than its maximum',
  'too-much': 'it has had too much for a while',
};

/** One decision as a sentence, with the forecast behind it. */
function decisionText(
  facts: Readonly<Record<string, unknown>>,
  units: ReadonlyMap<string, Forecast['unit']>,
): string {
  const unit = units.get(String(facts.resource)) ?? 'bytes';
  const text = (value: unknown) => amountText(Number(value ?? 0), unit);
  const what: Readonly<Record<string, string>> = {
    reserve: `reserve ${text(facts.amount)} (${text(facts.granted)} granted)`,
    relief: `give ${text(facts.amount)} more at once (${text(facts.granted)} granted)`,
    'hand-over': `hand over ${text(facts.amount)} from the reservation: ${text(facts.to)}`,
    release: `release ${text(facts.amount)} of the reservation`,
    lower: `lower to ${text(facts.to)}`,
  };
  const peak = facts.peak as Readonly<Record<string, number>> | undefined;
  const because = REASONS[String(facts.reason)] ?? String(facts.reason);
  const behind = peak?.['0.95'] === undefined ? '' : `; 95 % of its peaks are below ${text(peak['0.95'])}`;
  const had = `it had ${text(facts.allocated)} and ${text(facts.reserved)} reserved, and used ${text(facts.used)}`;
  const again = facts.timesBefore === undefined ? '' : ` (and ${facts.timesBefore} times more before)`;
  return `${what[String(facts.decision)] ?? facts.decision}: ${because}; ${had}${behind}${again}`;
}

function peakText(peak: NonNullable<Forecast['peak']>, text: (value: number) => string): string {
  return [0.5, 0.95, 0.99]
    .map(
      (level) => `${Math.round(level * 100)} % below ${text(peak.values[peak.levels.indexOf(level)] ?? 0)}`,
    )
    .join(', ');
}

function standingText(
  { allocated, reserved, min, max }: NonNullable<Forecast['allocation']>,
  text: (value: number) => string,
): string {
  return `it has ${text(allocated)} and ${text(reserved)} reserved, of ${text(min)} to ${text(max)}`;
}

function amountText(value: number, unit: Forecast['unit']): string {
  if (unit === 'millicores') return `${Number((value / 1000).toFixed(value < 100 ? 3 : 2))} cores`;
  return unit === 'bytes' ? formatBytes(Math.round(value)) : `${formatBytes(Math.round(value))}/s`;
}

function timeText(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  return seconds < 3600
    ? `${Number((seconds / 60).toFixed(1))} min`
    : `${Number((seconds / 3600).toFixed(1))} h`;
}
