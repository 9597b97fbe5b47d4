import {
  alignedDown,
  bucketsOf,
  HOUR_MS,
  inOrder,
  MINUTE_MS,
  type Points,
  packBuckets,
  packPoints,
  unpackPoints,
} from './buckets.ts';
import type { SeriesCatalog } from './series-catalog.ts';
import { type SeriesDatabase, TABLES, type Table } from './series-database.ts';
import { AHEAD_MAX_MS, keptFromMs, LATENESS_MS, type Retention } from './series-engine.ts';
import { SeriesHead } from './series-head.ts';
import type { StaleHours } from './stale-hours.ts';
import { TelemetryError } from './telemetry-error.ts';

export interface UpkeepParts {
  readonly db: SeriesDatabase;
  readonly catalog: SeriesCatalog;
  readonly stale: StaleHours;
  readonly retention: Retention;
  readonly wallMs: () => number;
  /** Samples that were taken, and have to go before they are written. */
  readonly dropped: (count: number) => void;
}

/** What one step takes on, so that whoever waits behind it waits for some milliseconds. */
const FOLDED_SERIES = 200;
const BUCKETED_SERIES = 16;
const LOG_ROWS = 8;
/** Before its minute is over where it takes this much memory. */
const HEAD_SAMPLES_MAX = 4_000_000;

/** From the log by series, from points to buckets, and what is too old or too much out of the file: in small steps. */
export class SqliteUpkeep {
  readonly #parts: UpkeepParts;
  active = new SeriesHead();
  /** What is being written by series. It is in the log until all of it is. */
  folding = new SeriesHead();
  #activeSinceMs: number;
  #newestSeq = 0;
  /** Up to here the log is no longer needed when `folding` is empty. */
  #foldingSeq = 0;
  #trimmedSeq = 0;
  /** Of the search for rows of forgotten series. */
  #sweepAt: { table: number; startMs: number } | undefined;
  #lookedForUnusedMs = 0;
  #nothingLeftToDelete = false;

  constructor(parts: UpkeepParts) {
    this.#parts = parts;
    this.#activeSinceMs = parts.wallMs();
    this.#sweepAt = { table: 0, startMs: 0 };
  }

  /** The first moment of which samples are taken. */
  firstMs(nowMs: number): number {
    const { db, retention } = this.#parts;
    return Math.max(db.floor('points'), keptFromMs(nowMs, retention['1s']));
  }

  /** What is appended now cannot be kept: all that may go has gone, or goes too slowly. */
  isFull(): boolean {
    const { db } = this.#parts;
    const used = db.usedBytes();
    return used > db.limitBytes * 1.1 || (this.#nothingLeftToDelete && used > db.limitBytes);
  }

  logged(seq: number): void {
    this.#newestSeq = seq;
  }

  forget(series: number): void {
    this.active.remove(series);
    this.folding.remove(series);
    this.#sweepAt = { table: 0, startMs: 0 };
  }

  /** Points of a series that are written, ascending minutes. */
  stored(series: number, { fromMs, toMs }: { fromMs: number; toMs: number }): Points {
    const times: number[] = [];
    const values: number[] = [];
    for (let startMs = alignedDown(fromMs, MINUTE_MS); startMs < toMs; startMs += MINUTE_MS) {
      const row = this.#parts.db.row('points', startMs, series);
      if (row === undefined) continue;
      const points = readablePoints(row, startMs);
      times.push(...points.times);
      values.push(...points.values);
    }
    return { times, values };
  }

  /** Does a little of what there is to do. False: there is nothing now. */
  step(): boolean {
    const nowMs = this.#parts.wallMs();
    return (
      this.#fold(nowMs) ||
      this.#trimLog() ||
      this.#makeBuckets(nowMs - HOUR_MS - LATENESS_MS) ||
      this.#raiseFloors(nowMs) ||
      this.#delete() ||
      this.#sweep() ||
      this.#bound(nowMs) ||
      this.#dropUnused(nowMs) ||
      this.#parts.db.shrinkSome()
    );
  }

  #fold(nowMs: number): boolean {
    if (this.folding.count === 0) {
      const isDue =
        alignedDown(nowMs, MINUTE_MS) !== alignedDown(this.#activeSinceMs, MINUTE_MS) ||
        this.active.count > HEAD_SAMPLES_MAX;
      if (!isDue || this.active.count === 0) return false;
      this.folding = this.active;
      this.active = new SeriesHead();
      this.#activeSinceMs = nowMs;
      this.#foldingSeq = this.#newestSeq;
    }
    const some = this.folding.some(FOLDED_SERIES);
    this.#parts.db.transaction(() => {
      for (const [series, points] of some) this.#write(series, points);
    });
    for (const [series] of some) this.folding.remove(series);
    return true;
  }

  /** Writing the same points again changes nothing, so that a log that is read again does no harm. */
  #write(series: number, points: Points): void {
    const { db, stale, catalog, dropped } = this.#parts;
    const floor = db.floor('points');
    const sorted = inOrder(points);
    let newestMs = 0;
    for (let begin = 0; begin < sorted.times.length; ) {
      const startMs = alignedDown(sorted.times[begin] ?? 0, MINUTE_MS);
      let end = begin + 1;
      while (end < sorted.times.length && (sorted.times[end] ?? 0) < startMs + MINUTE_MS) end += 1;
      const added = { times: sorted.times.slice(begin, end), values: sorted.values.slice(begin, end) };
      begin = end;
      if (startMs < floor) {
        dropped(added.times.length);
        continue;
      }
      const row = db.row('points', startMs, series);
      const before = row === undefined ? { times: [], values: [] } : readablePoints(row, startMs);
      const all = inOrder({
        times: [...before.times, ...added.times],
        values: [...before.values, ...added.values],
      });
      if (all.times.length === before.times.length) continue;
      db.put('points', [startMs, series], packPoints(all, startMs));
      stale.add(alignedDown(startMs, HOUR_MS), series);
      newestMs = startMs;
    }
    if (newestMs > 0) catalog.used(series, newestMs);
  }

  #trimLog(): boolean {
    if (this.folding.count > 0 || this.#trimmedSeq >= this.#foldingSeq) return false;
    const { db } = this.#parts;
    const row = db.statement('SELECT seq FROM log ORDER BY seq LIMIT 1').get();
    const first = Number(row?.seq ?? Number.POSITIVE_INFINITY);
    const last = Math.min(first + LOG_ROWS - 1, this.#foldingSeq);
    if (first <= last) db.statement('DELETE FROM log WHERE seq <= ?').run(last);
    if (first > last || last === this.#foldingSeq) this.#trimmedSeq = this.#foldingSeq;
    return true;
  }

  /** Of hours that began before `beforeMs`. */
  #makeBuckets(beforeMs: number): boolean {
    const { db, stale } = this.#parts;
    const some = stale.some(beforeMs, BUCKETED_SERIES);
    if (some === undefined) return false;
    const { startMs, series } = some;
    db.transaction(() => {
      for (const one of series) {
        const points = this.stored(one, { fromMs: startMs, toMs: startMs + HOUR_MS });
        if (points.times.length === 0) continue;
        for (const [table, stepMs] of [
          ['minutes', MINUTE_MS],
          ['hours', HOUR_MS],
        ] as const)
          db.put(table, [startMs, one], packBuckets(bucketsOf(points, stepMs), { startMs, stepMs }));
      }
      stale.delete(startMs, series);
    });
    stale.deleted(startMs, series);
    return true;
  }

  #raiseFloors(nowMs: number): boolean {
    const { retention, db } = this.#parts;
    if (db.floor('points') > nowMs + AHEAD_MAX_MS) db.lowerFloors(alignedDown(nowMs, HOUR_MS));
    return (
      this.#raise('points', keptFromMs(nowMs, retention['1s'])) ||
      this.#raise('minutes', keptFromMs(nowMs, retention['1m'])) ||
      this.#raise('hours', keptFromMs(nowMs, retention['1h']))
    );
  }

  /** Points go only when their buckets are made. */
  #raise(table: Table, fromMs: number): boolean {
    const { db } = this.#parts;
    if (fromMs <= db.floor(table)) return false;
    if (table === 'points' && this.#makeBuckets(fromMs)) return true;
    db.raiseFloor(table, fromMs);
    return true;
  }

  #delete(): boolean {
    const { db } = this.#parts;
    return TABLES.some(
      (table) => (db.firstStart(table) ?? Number.POSITIVE_INFINITY) < db.floor(table) && db.deleteSome(table),
    );
  }

  /** The oldest of the finest goes first, but not what has no buckets yet as its hour is not over. */
  #bound(nowMs: number): boolean {
    const { db } = this.#parts;
    if (db.usedBytes() <= db.limitBytes) {
      this.#nothingLeftToDelete = false;
      return false;
    }
    for (const table of TABLES) {
      const startMs = db.firstStart(table);
      if (startMs === undefined) continue;
      const endMs = alignedDown(startMs, HOUR_MS) + HOUR_MS;
      if (endMs > alignedDown(nowMs, HOUR_MS)) continue;
      return this.#raise(table, endMs) || db.deleteSome(table);
    }
    this.#nothingLeftToDelete = true;
    return false;
  }

  /** Deletes rows of series that were forgotten, moment by moment, as rows of one series do not lie together. */
  #sweep(): boolean {
    const { db } = this.#parts;
    if (this.#sweepAt === undefined) return false;
    const table = TABLES[this.#sweepAt.table];
    const anything = db.statement('SELECT 1 FROM forgotten LIMIT 1').get();
    if (table === undefined || anything === undefined) {
      db.statement('DELETE FROM forgotten').run();
      this.#sweepAt = undefined;
      return false;
    }
    const startMs = db.firstStart(table, this.#sweepAt.startMs);
    if (startMs === undefined) this.#sweepAt = { table: this.#sweepAt.table + 1, startMs: 0 };
    else {
      const where = 'start = ? AND series IN (SELECT series FROM forgotten)';
      db.statement(`DELETE FROM ${table} WHERE ${where}`).run(startMs);
      this.#sweepAt.startMs = startMs + 1;
    }
    return true;
  }

  #dropUnused(nowMs: number): boolean {
    if (nowMs - this.#lookedForUnusedMs < HOUR_MS) return false;
    const { db, catalog } = this.#parts;
    const waits = (id: number) => this.active.get(id) !== undefined || this.folding.get(id) !== undefined;
    if (catalog.dropUnused(db.floor('hours'), waits)) return true;
    this.#lookedForUnusedMs = nowMs;
    return false;
  }
}

/** A damaged row has none: one bad place on a disk must not stop what is done for all series. */
function readablePoints(row: Uint8Array, startMs: number): Points {
  try {
    return unpackPoints(row, startMs);
  } catch (thrown) {
    if (thrown instanceof TelemetryError) return { times: [], values: [] };
    throw thrown;
  }
}
