import { messageOf } from '../base/errors.ts';
import { alignedDown, bucketsOf, HOUR_MS, inOrder, type Points, STEP_MS, unpackBuckets } from './buckets.ts';
import { batchCount, unpackBatch } from './sample-batch.ts';
import { SeriesCatalog } from './series-catalog.ts';
import { SeriesDatabase, storeError, TABLE_OF } from './series-database.ts';
import { AHEAD_MAX_MS, keptFromMs, type Retention, type SeriesEngine } from './series-engine.ts';
import type { Bucket, RangeQuery, StoreUsage } from './series-store.ts';
import { SqliteUpkeep } from './sqlite-upkeep.ts';
import { StaleHours } from './stale-hours.ts';

export interface SqliteSeriesOptions {
  readonly path: string;
  readonly maxBytes: number;
  readonly retention: Retention;
  readonly wallMs: () => number;
}

const STEP_AGAIN_MS = 1_000;
const FULL = 'all that may be deleted has been: new samples are dropped';

/**
 * Series in one SQLite file. A batch goes into a log, which is one row, and into memory, which is what the log holds by
 * series. Once a minute that is written by series and minute; when an hour is over, its buckets are made of its points. So an
 * append costs the same however many series there are, and buckets are made of samples, not of other buckets: they are exact,
 * and a late sample makes them anew. All calls are synchronous.
 */
export class SqliteSeries implements SeriesEngine {
  readonly #options: SqliteSeriesOptions;
  readonly #db: SeriesDatabase;
  readonly #catalog: SeriesCatalog;
  readonly #stale: StaleHours;
  readonly #upkeep: SqliteUpkeep;
  #nextSeq = 1;
  #dropped = 0;
  #trouble: string | undefined;

  /** Opens the file, or makes it. @throws TelemetryError TELEMETRY_STORE_UNUSABLE, …_BUSY, …_CORRUPT, …_NEWER */
  constructor(options: SqliteSeriesOptions) {
    const { path, maxBytes, retention, wallMs } = options;
    this.#options = options;
    this.#db = SeriesDatabase.open(path, { maxBytes });
    try {
      const db = this.#db;
      this.#catalog = new SeriesCatalog(db);
      this.#stale = new StaleHours(db);
      const { catalog, stale } = { catalog: this.#catalog, stale: this.#stale };
      const dropped = (count: number) => {
        this.#dropped += count;
      };
      this.#upkeep = new SqliteUpkeep({ db, catalog, stale, retention, wallMs, dropped });
      this.#replay();
    } catch (thrown) {
      this.#db.close();
      throw storeError(thrown, path, 'TELEMETRY_STORE_FAILED');
    }
  }

  append(batch: Uint8Array): void {
    if (this.#upkeep.isFull()) {
      this.#dropped += batchCount(batch);
      return;
    }
    this.#orFail(() => {
      const head = this.#upkeep.active;
      try {
        const points = this.#db.transaction(() => {
          const taken = this.#take(batch);
          if (taken.length > 0)
            this.#db.statement('INSERT INTO log (seq, batch) VALUES (?, ?)').run(this.#nextSeq, batch);
          return taken;
        });
        this.#catalog.committed();
        for (const { series, timeMs, value } of points) head.add(series, timeMs, value);
        this.#upkeep.logged(this.#nextSeq);
        this.#nextSeq += 1;
      } catch (thrown) {
        this.#catalog.rolledBack();
        throw thrown;
      }
    });
  }

  range({ vm, metric, fromMs, toMs, resolution }: RangeQuery): Bucket[] {
    return this.#orFail(() => {
      const series = this.#catalog.find(vm, metric);
      if (series === undefined) return [];
      const stepMs = STEP_MS[resolution];
      const nowMs = this.#options.wallMs();
      const keptMs = keptFromMs(nowMs, this.#options.retention[resolution]);
      const beginMs = Math.max(fromMs, keptMs, this.#db.floor(TABLE_OF[resolution]));
      const endMs = Math.min(toMs, nowMs + 2 * AHEAD_MAX_MS);
      const isInRange = ({ startMs }: Bucket) => startMs >= beginMs && startMs < endMs;
      const buckets: Bucket[] = [];
      const held = new Set(this.#held(series).times.map((timeMs) => alignedDown(timeMs, HOUR_MS)));
      for (let hourMs = alignedDown(beginMs, HOUR_MS); hourMs < endMs; hourMs += HOUR_MS) {
        if (resolution === '1s') {
          const fromMs = Math.max(hourMs, alignedDown(beginMs, stepMs));
          const toMs = Math.min(hourMs + HOUR_MS, alignedDown(endMs, stepMs) + stepMs);
          buckets.push(...bucketsOf(this.#points(series, { fromMs, toMs }), stepMs).filter(isInRange));
        } else if (held.has(hourMs) || this.#stale.has(hourMs, series)) {
          const points = this.#points(series, { fromMs: hourMs, toMs: hourMs + HOUR_MS });
          buckets.push(...bucketsOf(points, stepMs).filter(isInRange));
        } else {
          const row = this.#db.row(resolution === '1m' ? 'minutes' : 'hours', hourMs, series);
          if (row !== undefined)
            buckets.push(...unpackBuckets(row, { startMs: hourMs, stepMs }).filter(isInRange));
        }
      }
      return buckets;
    });
  }

  metrics(vm: string): string[] {
    return this.#catalog.metrics(vm);
  }

  forget(vm: string): void {
    this.#orFail(() => {
      const ids = this.#db.transaction(() => {
        // Batches of it may still be in the log: it is forgotten at the same place when that is read again.
        this.#db.statement('INSERT INTO log (seq, forgottenVm) VALUES (?, ?)').run(this.#nextSeq, vm);
        return this.#catalog.forget(vm);
      });
      this.#catalog.forgotten(vm);
      for (const id of ids) this.#upkeep.forget(id);
      this.#upkeep.logged(this.#nextSeq);
      this.#nextSeq += 1;
    });
  }

  usage(): StoreUsage {
    return this.#orFail(() => ({
      bytes: this.#db.fileBytes(),
      series: this.#catalog.count,
      waiting: 0,
      dropped: this.#dropped,
      trouble: this.#trouble ?? (this.#upkeep.isFull() ? FULL : undefined),
    }));
  }

  upkeep(): number {
    try {
      const isMore = this.#orFail(() => this.#upkeep.step());
      this.#trouble = undefined;
      return isMore ? 0 : STEP_AGAIN_MS;
    } catch (thrown) {
      this.#trouble = messageOf(thrown);
      throw thrown;
    }
  }

  close(): void {
    this.#db.close();
  }

  /** Within a transaction. Counts what is not taken. */
  #take(batch: Uint8Array): { series: number; timeMs: number; value: number }[] {
    const nowMs = this.#options.wallMs();
    const [firstMs, lastMs] = [this.#upkeep.firstMs(nowMs), nowMs + AHEAD_MAX_MS];
    const points: { series: number; timeMs: number; value: number }[] = [];
    unpackBatch(batch, (vm, metric, timeMs, value) => {
      const isTaken = timeMs >= firstMs && timeMs <= lastMs;
      const series = isTaken ? this.#catalog.findOrAdd(vm, metric, timeMs) : undefined;
      if (series === undefined) this.#dropped += 1;
      else points.push({ series, timeMs, value });
    });
    return points;
  }

  /** Brings to memory what the last process had there. */
  #replay(): void {
    const head = this.#upkeep.active;
    const rows = this.#db.statement('SELECT seq, batch, forgottenVm FROM log ORDER BY seq');
    this.#db.transaction(() => {
      for (const { seq, batch, forgottenVm } of rows.iterate()) {
        if (batch instanceof Uint8Array)
          for (const { series, timeMs, value } of this.#take(batch)) head.add(series, timeMs, value);
        // What came after it is in the log as well, all of it.
        else this.#forgetAgain(forgottenVm as string);
        this.#upkeep.logged(seq as number);
        this.#nextSeq = (seq as number) + 1;
      }
    });
    this.#catalog.committed();
  }

  #forgetAgain(vm: string): void {
    for (const id of this.#catalog.forget(vm)) this.#upkeep.forget(id);
    this.#catalog.forgotten(vm);
  }

  #held(series: number): Points {
    const heads = [this.#upkeep.folding.get(series), this.#upkeep.active.get(series)];
    return {
      times: heads.flatMap((points) => points?.times ?? []),
      values: heads.flatMap((points) => points?.values ?? []),
    };
  }

  #points(series: number, { fromMs, toMs }: { fromMs: number; toMs: number }): Points {
    const held = this.#held(series);
    const stored = this.#upkeep.stored(series, { fromMs, toMs });
    return within(
      inOrder({ times: [...stored.times, ...held.times], values: [...stored.values, ...held.values] }),
      { fromMs, toMs },
    );
  }

  #orFail<Result>(work: () => Result): Result {
    try {
      return work();
    } catch (thrown) {
      throw storeError(thrown, this.#options.path, 'TELEMETRY_STORE_FAILED');
    }
  }
}

function within({ times, values }: Points, { fromMs, toMs }: { fromMs: number; toMs: number }): Points {
  const firstAt = times.findIndex((time) => time >= fromMs);
  if (firstAt < 0) return { times: [], values: [] };
  const lastAt = times.findLastIndex((time) => time < toMs);
  return { times: times.slice(firstAt, lastAt + 1), values: values.slice(firstAt, lastAt + 1) };
}
