import type { SeriesDatabase } from './series-database.ts';

/** Hours of series whose buckets are older than their points; in memory as in the file. */
export class StaleHours {
  readonly #db: SeriesDatabase;
  readonly #seriesOf = new Map<number, Set<number>>();

  constructor(db: SeriesDatabase) {
    this.#db = db;
    for (const { start, series } of db.statement('SELECT start, series FROM stale').iterate())
      this.#remember(start as number, series as number);
  }

  has(startMs: number, series: number): boolean {
    return this.#seriesOf.get(startMs)?.has(series) ?? false;
  }

  /** Within a transaction. Where that comes to nothing an hour is only looked at in vain. */
  add(startMs: number, series: number): void {
    // Also when it is known: it may be known from a transaction that came to nothing.
    this.#db.statement('INSERT OR IGNORE INTO stale (start, series) VALUES (?, ?)').run(startMs, series);
    this.#remember(startMs, series);
  }

  /** Some of the oldest hour that begins before `beforeMs`. */
  some(
    beforeMs: number,
    count: number,
  ): { readonly startMs: number; readonly series: readonly number[] } | undefined {
    let oldest: number | undefined;
    for (const startMs of this.#seriesOf.keys())
      if (startMs < beforeMs && startMs < (oldest ?? Number.POSITIVE_INFINITY)) oldest = startMs;
    if (oldest === undefined) return undefined;
    return {
      startMs: oldest,
      series: [...(this.#seriesOf.get(oldest) ?? [])].slice(0, count),
    };
  }

  /** Within a transaction that writes their buckets. */
  delete(startMs: number, series: readonly number[]): void {
    const statement = this.#db.statement('DELETE FROM stale WHERE start = ? AND series = ?');
    for (const one of series) statement.run(startMs, one);
  }

  /** After that transaction. */
  deleted(startMs: number, series: readonly number[]): void {
    const left = this.#seriesOf.get(startMs);
    for (const one of series) left?.delete(one);
    if (left?.size === 0) this.#seriesOf.delete(startMs);
  }

  #remember(startMs: number, series: number): void {
    const known = this.#seriesOf.get(startMs);
    if (known === undefined) this.#seriesOf.set(startMs, new Set([series]));
    else known.add(series);
  }
}
