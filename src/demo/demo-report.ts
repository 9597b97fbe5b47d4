import { styleText } from 'node:util';
import { quantile, type SampleSummary } from '../base/sample-window.ts';
import type { RequestTiming } from './load-generator.ts';

/** What a demo found, as `understudy demo --json` prints it. Times in milliseconds. */
export interface DemoReport {
  readonly accel: string;
  readonly qemu: string;
  readonly kills: number;
  /** Epochs committed. */
  readonly epochs: number;
  /** Of the recent epochs of each primary; `p50` is that of the median primary, `p99` and `max` those of the worst. */
  readonly pauseMs: Quantiles & { readonly max: number };
  /** Share of time that the guest stood still under load: the mean over the primaries. */
  readonly pauseShare: number;
  readonly roundTripMs: { readonly unprotected: Quantiles; readonly protected: Quantiles };
  readonly promoteMs: { readonly p50: number; readonly max: number };
  /**
   * From the kill to the first reply to a request that was sent before the kill and answered after its discovery; the
   * replies that were on their way already do not count. Null when no kill met such a request.
   */
  readonly killToReplyMs: { readonly p50: number | null; readonly max: number | null };
  readonly ackedWrites: number;
  readonly lostWrites: number;
  readonly connectionsSurvived: number;
  readonly connectionsTotal: number;
  readonly guestRebooted: boolean;
  /** Wall clock of the guest against the host's, without sign, after the load. */
  readonly guestClockErrorMs: number;
}

interface Quantiles {
  readonly p50: number;
  readonly p99: number;
}

export interface Failover {
  readonly promoteMs: number | null;
  readonly killToReplyMs: number | null;
}

/** What a demo measured, before it is summed up. */
export interface DemoMeasurements {
  readonly accel: string;
  readonly qemu: string;
  readonly epochs: number;
  /** One for every QEMU that was protected. */
  readonly pauses: readonly { readonly pauseMs: SampleSummary; readonly pauseShare: number }[];
  readonly unprotected: readonly RequestTiming[];
  readonly protected: readonly RequestTiming[];
  readonly failovers: readonly Failover[];
  readonly ackedWrites: number;
  readonly lostWrites: number;
  readonly connections: { readonly total: number; readonly survived: number };
  readonly guestRebooted: boolean;
  readonly guestClockErrorMs: number;
}

export function demoReport(measured: DemoMeasurements): DemoReport {
  const { accel, qemu, epochs, pauses, failovers, ackedWrites, lostWrites, connections } = measured;
  const promote = present(failovers.map(({ promoteMs }) => promoteMs));
  const reply = present(failovers.map(({ killToReplyMs }) => killToReplyMs));
  const worst = (field: 'p99' | 'max') =>
    rounded(Math.max(0, ...pauses.map(({ pauseMs }) => pauseMs[field])));
  const shares = pauses.map(({ pauseShare }) => pauseShare);
  return {
    accel,
    qemu,
    kills: failovers.length,
    epochs,
    pauseMs: {
      p50: rounded(median(pauses.map(({ pauseMs }) => pauseMs.p50))),
      p99: worst('p99'),
      max: worst('max'),
    },
    pauseShare: rounded(shares.reduce((sum, share) => sum + share, 0) / Math.max(1, shares.length)),
    roundTripMs: { unprotected: roundTrip(measured.unprotected), protected: roundTrip(measured.protected) },
    promoteMs: { p50: rounded(median(promote)), max: rounded(Math.max(0, ...promote)) },
    killToReplyMs:
      reply.length === 0
        ? { p50: null, max: null }
        : { p50: rounded(median(reply)), max: rounded(Math.max(...reply)) },
    ackedWrites,
    lostWrites,
    connectionsSurvived: connections.survived,
    connectionsTotal: connections.total,
    guestRebooted: measured.guestRebooted,
    guestClockErrorMs: rounded(Math.abs(measured.guestClockErrorMs)),
  };
}

/** Nothing was lost, nobody was cut off, and the guest never noticed. */
export function isFlawless(report: DemoReport): boolean {
  return verdicts(report).every(({ holds }) => holds);
}

/**
 * From a kill to the first reply that needed the failover: its request was sent before the kill, and it came after the
 * loss was discovered. Until then, what the dead QEMU's last epochs hold may still arrive.
 */
export function killToReplyMs(
  timings: readonly RequestTiming[],
  { killMs, discoveredMs }: { killMs: number; discoveredMs: number },
): number | null {
  const open = timings.filter(({ sentMs, repliedMs }) => sentMs < killMs && repliedMs > discoveredMs);
  return open.length === 0 ? null : Math.min(...open.map(({ repliedMs }) => repliedMs)) - killMs;
}

/** The report as a table for people. */
export function reportText(report: DemoReport): string {
  const { roundTripMs, pauseMs, promoteMs, killToReplyMs: reply } = report;
  const rows: readonly (readonly string[])[] = [
    ['', 'median', 'p99', 'worst'],
    ['round trip, unprotected', ms(roundTripMs.unprotected.p50), ms(roundTripMs.unprotected.p99), ''],
    ['round trip, protected', ms(roundTripMs.protected.p50), ms(roundTripMs.protected.p99), ''],
    ['pause of an epoch, under load', ms(pauseMs.p50), ms(pauseMs.p99), ms(pauseMs.max)],
    ['promotion of the shadow', ms(promoteMs.p50), '', ms(promoteMs.max)],
    ['kill -9 to the open reply', ms(reply.p50), '', ms(reply.max)],
  ];
  const facts = [
    `${count(report.epochs)} epochs committed; the guest stood still for ${(100 * report.pauseShare).toFixed(0)} % of the time`,
    `the guest's clock is ${report.guestClockErrorMs.toFixed(0)} ms off`,
  ];
  return [
    styleText(
      'bold',
      `A Redis VM whose QEMU was killed ${report.kills === 1 ? 'once' : `${report.kills} times`}`,
    ),
    styleText('dim', `QEMU ${report.qemu}, ${report.accel}, no persistence, one shadow on the same machine`),
    '',
    ...aligned(rows),
    '',
    ...facts.map((fact) => `  ${fact}`),
    '',
    ...verdicts(report).map(({ holds, text }) =>
      holds ? `  ${styleText('green', '✔')} ${text}` : `  ${styleText('red', '✘')} ${styleText('red', text)}`,
    ),
  ].join('\n');
}

function verdicts(report: DemoReport): { holds: boolean; text: string }[] {
  const { ackedWrites, lostWrites, connectionsSurvived, connectionsTotal, guestRebooted } = report;
  return [
    {
      holds: lostWrites === 0,
      text: `${count(ackedWrites)} writes acknowledged, ${count(lostWrites)} lost`,
    },
    {
      holds: connectionsSurvived === connectionsTotal,
      text: `${connectionsSurvived} of ${connectionsTotal} open TCP connections survived`,
    },
    { holds: !guestRebooted, text: guestRebooted ? 'the guest rebooted' : 'the guest did not reboot' },
  ];
}

function aligned(rows: readonly (readonly string[])[]): string[] {
  const widths = [0, 1, 2, 3].map((column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row) => {
    const cells = row.map((cell, column) =>
      column === 0 ? cell.padEnd(widths[0] ?? 0) : cell.padStart(widths[column] ?? 0),
    );
    return `  ${cells.join('   ').trimEnd()}`;
  });
}

function ms(value: number | null): string {
  return value === null ? 'none' : `${value.toFixed(1)} ms`;
}

function count(value: number): string {
  return value.toLocaleString('en-US');
}

function roundTrip(timings: readonly RequestTiming[]): Quantiles {
  const sorted = timings.map(({ sentMs, repliedMs }) => repliedMs - sentMs).sort((a, b) => a - b);
  return { p50: rounded(quantile(sorted, 0.5)), p99: rounded(quantile(sorted, 0.99)) };
}

function median(values: readonly number[]): number {
  return quantile(
    values.toSorted((a, b) => a - b),
    0.5,
  );
}

function present(values: readonly (number | null)[]): number[] {
  return values.filter((value) => value !== null);
}

function rounded(value: number): number {
  return Math.round(value * 100) / 100;
}
