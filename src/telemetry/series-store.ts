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
  /** Of the values, not of their means. Exact where `count` is 1, else within 1 % of the range of the values. */
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
   * Resolves when the samples are safe from the death of this process. The same sample twice counts once (vm, metric, wallMs);
   * a late one counts where it belongs, as long as that is within retention.
   */
  append(samples: readonly Sample[]): Promise<void>;
  /** Ascending, without empty buckets; what was appended before the call is in it. */
  range(query: RangeQuery): Promise<readonly Bucket[]>;
  /** Names of all series of a VM, sorted. */
  metrics(vm: string): Promise<readonly MetricName[]>;
  /** All of a VM. */
  forget(vm: string): Promise<void>;
  usage(): Promise<StoreUsage>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface StoreUsage {
  readonly bytes: number;
  readonly series: number;
  /** Samples that wait on disk for a store that is away. */
  readonly waiting: number;
  /** Samples that were dropped because bounds were met. */
  readonly dropped: number;
}
