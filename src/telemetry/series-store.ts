import type { MetricName } from './metric.ts';
import type { Sample } from './sample.ts';

export const RESOLUTIONS = ['1s', '1m', '1h'] as const;
export type Resolution = (typeof RESOLUTIONS)[number];

/** All values of one series within one stretch of time. */
export interface Bucket {
  /** Unix time in ms. */
  readonly startMs: number;
  readonly count: number;
  readonly min: number;
  readonly mean: number;
  readonly max: number;
  /**
   * Of the values, not of their means: linear between the two nearest ranks. Like the other numbers they are those of the values up
   * to 1e-6 of the largest of them.
   */
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
}

export interface RangeQuery {
  readonly vm: string;
  readonly metric: MetricName;
  /** Buckets that begin at or after `fromMs` and before `toMs`. */
  readonly fromMs: number;
  readonly toMs: number;
  readonly resolution: Resolution;
}

/**
 * Series of all VMs: samples as they are, and what became of them after 1 s, 1 min and 1 h. All that reads and writes series
 * does it through this; what holds for one store holds for all of them (series-store.test.ts).
 */
export interface SeriesStore {
  /**
   * Resolves when the samples are safe from the death of this process. The same sample twice counts once (vm, metric, wallMs in
   * whole ms; of different values one); a late one counts where it belongs in all resolutions, as long as that is within the
   * retention of the finest. What is older, or more than an hour ahead, is dropped and counted.
   * @throws TelemetryError TELEMETRY_SAMPLE_INVALID, and nothing of the batch is kept; TELEMETRY_STORE_FAILED
   */
  append(samples: readonly Sample[]): Promise<void>;
  /**
   * Ascending, without empty buckets; what was appended before the call is in it, what is older than the retention of its
   * resolution (in whole hours) is not.
   * @throws TelemetryError TELEMETRY_STORE_FAILED; where the store is elsewhere TELEMETRY_STORE_AWAY, TELEMETRY_STORE_REFUSED
   */
  range(query: RangeQuery): Promise<readonly Bucket[]>;
  /** Names of all series of a VM, sorted. */
  metrics(vm: string): Promise<readonly MetricName[]>;
  /** All of a VM. */
  forget(vm: string): Promise<void>;
  usage(): Promise<StoreUsage>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface StoreUsage {
  /** On disk, with what waits. */
  readonly bytes: number;
  /** Undefined while the store is away. */
  readonly series: number | undefined;
  /** Samples that wait on disk for a store that is away. */
  readonly waiting: number;
  /** Samples that were not kept since the store was opened: too late, too far ahead, or because bounds were met. */
  readonly dropped: number;
  /** What is wrong with the store at present, for people. */
  readonly trouble: string | undefined;
}
