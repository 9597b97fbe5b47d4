import { closeSync, openSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { messageOf } from '../base/errors.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { MIB } from '../base/units.ts';
import type { Resolution } from './series-store.ts';
import { TelemetryError } from './telemetry-error.ts';

/** One step for each version, never changed once released. Times are milliseconds since 1970. */
const MIGRATIONS: readonly string[] = [
  `
  -- What was appended or forgotten and is not yet in the tables below.
  CREATE TABLE log (seq INTEGER PRIMARY KEY, batch BLOB, forgottenVm TEXT) STRICT;
  CREATE TABLE series (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm TEXT NOT NULL,
    metric TEXT NOT NULL,
    usedMs INTEGER NOT NULL,
    UNIQUE (vm, metric)
  ) STRICT;
  -- Rows of one moment lie together, for they are written and deleted together. points: one row for each minute, all samples as
  -- they came. minutes, hours: one row for each hour, with its 60 buckets and its one.
  CREATE TABLE points (start INTEGER, series INTEGER, data BLOB NOT NULL, PRIMARY KEY (start, series)) STRICT, WITHOUT ROWID;
  CREATE TABLE minutes (start INTEGER, series INTEGER, data BLOB NOT NULL, PRIMARY KEY (start, series)) STRICT, WITHOUT ROWID;
  CREATE TABLE hours (start INTEGER, series INTEGER, data BLOB NOT NULL, PRIMARY KEY (start, series)) STRICT, WITHOUT ROWID;
  -- Hours whose buckets are older than their points.
  CREATE TABLE stale (start INTEGER, series INTEGER, PRIMARY KEY (start, series)) STRICT, WITHOUT ROWID;
  -- Series that cannot be reached any more, whose rows are still to be deleted.
  CREATE TABLE forgotten (series INTEGER PRIMARY KEY) STRICT;
  -- What is older is deleted, and is not taken.
  CREATE TABLE floors (tableName TEXT PRIMARY KEY, fromMs INTEGER NOT NULL) STRICT, WITHOUT ROWID;
  `,
];

/** Larger than SQLite's 4096: a row without rowid has overflow pages from a quarter of a page on, and many rows are 2 KiB. */
const PAGE_BYTES = 16_384;
const CACHE_KIB = 32_768;
/** Room for the write-ahead log, and for one step more than was foreseen. */
const RESERVE_BYTES_MAX = 32 * MIB;
const ROWS_PER_STEP = 2_000;

/** SQLite's result codes, https://www.sqlite.org/rescode.html. */
const SQLITE_BUSY = 5;
const SQLITE_CORRUPT = 11;
const SQLITE_NOTADB = 26;

export const TABLES = ['points', 'minutes', 'hours'] as const;
export type Table = (typeof TABLES)[number];
export const TABLE_OF: Readonly<Record<Resolution, Table>> = {
  '1s': 'points',
  '1m': 'minutes',
  '1h': 'hours',
};

/** The file of a series store, and its rows. One process at a time. */
export class SeriesDatabase {
  readonly path: string;
  readonly sql: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();
  readonly #floors = new Map<Table, number>();
  /** What tables and indices may take together. */
  readonly limitBytes: number;

  private constructor(path: string, sql: DatabaseSync, limitBytes: number) {
    this.path = path;
    this.sql = sql;
    this.limitBytes = limitBytes;
    for (const { tableName, fromMs } of this.statement('SELECT tableName, fromMs FROM floors').all())
      this.#floors.set(tableName as Table, fromMs as number);
  }

  /** @throws TelemetryError TELEMETRY_STORE_UNUSABLE, …_BUSY, …_CORRUPT, …_NEWER */
  static open(path: string, { maxBytes }: { maxBytes: number }): SeriesDatabase {
    const reserveBytes = Math.min(RESERVE_BYTES_MAX, maxBytes / 4);
    let sql: DatabaseSync | undefined;
    try {
      makeDirectory(dirname(path), { mode: 0o700 });
      closeSync(openSync(path, 'a', 0o600));
      sql = new DatabaseSync(path);
      // NORMAL: what is committed survives the death of this process, and of the machine what is older than the last
      // checkpoint. A flush to the disk for each second of figures would be felt by the guests' disks.
      sql.exec(`
        PRAGMA page_size = ${PAGE_BYTES};
        PRAGMA auto_vacuum = INCREMENTAL;
        PRAGMA locking_mode = EXCLUSIVE;
        PRAGMA journal_mode = WAL;
        PRAGMA synchronous = NORMAL;
        PRAGMA cache_size = -${CACHE_KIB};
        PRAGMA wal_autocheckpoint = ${Math.ceil(reserveBytes / 4 / PAGE_BYTES)};
        PRAGMA journal_size_limit = ${Math.ceil(reserveBytes / 2)};
      `);
      migrate(sql, path);
      return new SeriesDatabase(path, sql, maxBytes - reserveBytes);
    } catch (thrown) {
      sql?.close();
      throw storeError(thrown, path, 'TELEMETRY_STORE_UNUSABLE');
    }
  }

  /** Compiled once. Only for text that stands in the code: what varies is bound. */
  statement(text: string): StatementSync {
    let statement = this.#statements.get(text);
    if (statement === undefined) {
      statement = this.sql.prepare(text);
      this.#statements.set(text, statement);
    }
    return statement;
  }

  /** All of `work` or nothing of it. */
  transaction<Result>(work: () => Result): Result {
    this.sql.exec('BEGIN IMMEDIATE');
    try {
      const result = work();
      this.sql.exec('COMMIT');
      return result;
    } catch (thrown) {
      if (this.sql.isTransaction) this.sql.exec('ROLLBACK');
      throw thrown;
    }
  }

  row(table: Table, startMs: number, series: number): Uint8Array | undefined {
    const row = this.statement(`SELECT data FROM ${table} WHERE start = ? AND series = ?`).get(
      startMs,
      series,
    );
    return row?.data as Uint8Array | undefined;
  }

  put(table: Table, key: readonly [startMs: number, series: number], data: Uint8Array): void {
    this.statement(`INSERT OR REPLACE INTO ${table} (start, series, data) VALUES (?, ?, ?)`).run(
      ...key,
      data,
    );
  }

  /** The first moment at or after `fromMs` that has rows. */
  firstStart(table: Table, fromMs = 0): number | undefined {
    const row = this.statement(`SELECT min(start) AS start FROM ${table} WHERE start >= ?`).get(fromMs);
    return (row?.start ?? undefined) as number | undefined;
  }

  floor(table: Table): number {
    return this.#floors.get(table) ?? 0;
  }

  /** Not lowered by this: what is below it is gone. */
  raiseFloor(table: Table, fromMs: number): void {
    if (fromMs <= this.floor(table)) return;
    this.statement('INSERT OR REPLACE INTO floors (tableName, fromMs) VALUES (?, ?)').run(table, fromMs);
    this.#floors.set(table, fromMs);
  }

  /** Of all tables, where the clock was ahead of what it is now: else nothing would be taken until it is there again. */
  lowerFloors(toMs: number): void {
    this.statement('UPDATE floors SET fromMs = min(fromMs, ?)').run(toMs);
    for (const [table, fromMs] of this.#floors) this.#floors.set(table, Math.min(fromMs, toMs));
  }

  /** Deletes some of what is below the floor of a table. False: nothing was there. */
  deleteSome(table: Table): boolean {
    const floor = this.floor(table);
    const end = this.statement(`SELECT start, series FROM ${table} WHERE start < ? LIMIT 1 OFFSET ?`).get(
      ...[floor, ROWS_PER_STEP],
    );
    const deleted =
      end === undefined
        ? this.statement(`DELETE FROM ${table} WHERE start < ?`).run(floor)
        : this.statement(`DELETE FROM ${table} WHERE (start, series) < (?, ?)`).run(
            end.start as number,
            end.series as number,
          );
    return Number(deleted.changes) > 0;
  }

  /** Pages that hold something, in bytes. */
  usedBytes(): number {
    return (this.#pragma('page_count') - this.#pragma('freelist_count')) * PAGE_BYTES;
  }

  /** Of file and write-ahead log. */
  fileBytes(): number {
    const wal = statSync(`${this.path}-wal`, { throwIfNoEntry: false })?.size ?? 0;
    return this.#pragma('page_count') * PAGE_BYTES + wal;
  }

  /** Gives some free pages back to the file system where more than an eighth is free. False: that is not so. */
  shrinkSome(): boolean {
    const [pages, free] = [this.#pragma('page_count'), this.#pragma('freelist_count')];
    if (free * 8 <= pages) return false;
    this.sql.exec('PRAGMA incremental_vacuum(64)');
    return this.#pragma('page_count') < pages;
  }

  close(): void {
    this.sql.close();
  }

  #pragma(name: 'page_count' | 'freelist_count'): number {
    return Number(this.statement(`PRAGMA ${name}`).get()?.[name]);
  }
}

function migrate(sql: DatabaseSync, path: string): void {
  const version = Number(sql.prepare('PRAGMA user_version').get()?.user_version);
  if (version > MIGRATIONS.length) {
    throw new TelemetryError(
      'TELEMETRY_STORE_NEWER',
      `${path} was written by a newer version of Understudy`,
      {
        hint: 'Use that version, or move the file away.',
        facts: { path, version, known: MIGRATIONS.length },
      },
    );
  }
  for (const [index, step] of MIGRATIONS.entries()) {
    if (index < version) continue;
    sql.exec(`BEGIN IMMEDIATE; ${step}; PRAGMA user_version = ${index + 1}; COMMIT`);
  }
}

/** What SQLite threw, as one of ours. */
export function storeError(
  thrown: unknown,
  path: string,
  otherwise: 'TELEMETRY_STORE_UNUSABLE' | 'TELEMETRY_STORE_FAILED',
): TelemetryError {
  if (thrown instanceof TelemetryError) return thrown;
  const primary = Number(Object(thrown).errcode) & 0xff;
  const options = { facts: { path }, cause: thrown };
  const said = `${path}: ${messageOf(thrown)}`;
  if (primary === SQLITE_BUSY) {
    const hint = 'One daemon keeps the series of a machine. Give a second one for trials another --state.';
    return new TelemetryError('TELEMETRY_STORE_BUSY', `another process uses ${path}`, { ...options, hint });
  }
  if (primary === SQLITE_CORRUPT || primary === SQLITE_NOTADB) {
    const hint = 'Check the disk, and move the file away: a new one is begun. Only series are in it.';
    return new TelemetryError('TELEMETRY_STORE_CORRUPT', said, { ...options, hint });
  }
  const hint = 'See that the directory belongs to this user, and that the disk has room and is whole.';
  return new TelemetryError(otherwise, said, { ...options, hint });
}
