import type { MetricName } from './metric.ts';

/** What was measured of a VM at one moment, of the time since the sample before. */
export interface Sample {
  readonly vm: string;
  /** Changes when the guest begins anew, not when it is taken over. */
  readonly instanceId: string;
  /** When it was taken: Unix time in ms, and CLOCK_MONOTONIC of that host in ms, which never goes back. */
  readonly wallMs: number;
  readonly monotonicMs: number;
  /** Since the sample before: what rates are over. */
  readonly intervalMs: number;
  /** What could not be measured is not there; never NaN. */
  readonly values: Readonly<Record<MetricName, number>>;
}
