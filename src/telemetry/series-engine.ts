import { HOUR_MS, MINUTE_MS } from './buckets.ts';
import type { Bucket, RangeQuery, Resolution, StoreUsage } from './series-store.ts';

/** Samples further ahead than this are of a clock that is wrong. */
export const AHEAD_MAX_MS = HOUR_MS;

export type Retention = Readonly<Record<Resolution, number>>;

/** What keeps series, in a thread of its own. `await` gets along with both kinds of answers. */
export interface SeriesEngine {
  /** A packed batch (sample-batch.ts). */
  append(batch: Uint8Array): void | Promise<void>;
  range(query: RangeQuery): readonly Bucket[] | Promise<readonly Bucket[]>;
  metrics(vm: string): readonly string[] | Promise<readonly string[]>;
  forget(vm: string): void | Promise<void>;
  usage(): StoreUsage | Promise<StoreUsage>;
  /** One small step of what can wait. Answers after how many ms to call again; 0: there is more to do now. */
  upkeep(): number | Promise<number>;
  close(): void | Promise<void>;
}

/** Times that are kept of a resolution at `nowMs`, from the beginning of an hour: whole hours are forgotten. */
export function keptFromMs(nowMs: number, retentionMs: number): number {
  return Math.max(0, Math.floor((nowMs - retentionMs) / HOUR_MS) * HOUR_MS);
}

/** After its end an hour waits this long for what is late, before its buckets are written. */
export const LATENESS_MS = 2 * MINUTE_MS;
