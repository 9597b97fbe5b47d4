import { closeSync, mkdirSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { messageOf } from '../base/errors.ts';
import { tryLockExclusive } from '../linux/file.ts';
import { HostError } from './host-error.ts';

/**
 * One step for each version of the state, never changed once released: a database of version n gets the steps after
 * n. Times are milliseconds since 1970.
 */
const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE vms (
    name TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    directory TEXT NOT NULL,
    version INTEGER NOT NULL,
    desired TEXT NOT NULL CHECK (desired IN ('running', 'stopped', 'deleted')),
    graceful INTEGER NOT NULL,
    startedVersion INTEGER,
    startedBoot TEXT,
    createdMs INTEGER NOT NULL,
    changedMs INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time TEXT NOT NULL,
    vm TEXT,
    kind TEXT NOT NULL,
    epoch INTEGER,
    facts TEXT NOT NULL
  ) STRICT;
  CREATE INDEX eventsOfVm ON events (vm, id);
  CREATE TABLE keeperEvents (
    vm TEXT PRIMARY KEY,
    keeper TEXT NOT NULL,
    seq INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE answers (
    key TEXT PRIMARY KEY,
    request TEXT NOT NULL,
    status INTEGER NOT NULL,
    headers TEXT NOT NULL,
    body TEXT NOT NULL,
    storedMs INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  `,
];

/**
 * The state of a host in one SQLite file. What is written has reached the disk when the call returns; a process that
 * is killed at any point leaves the last whole transaction. One process at a time.
 */
export class StateDatabase implements Disposable {
  readonly path: string;
  readonly sql: DatabaseSync;
  readonly #lockFd: number;

  private constructor(path: string, sql: DatabaseSync, lockFd: number) {
    this.path = path;
    this.sql = sql;
    this.#lockFd = lockFd;
  }

  /**
   * Opens the file, or makes it, checks its integrity and brings it to the version of this program.
   * @throws HostError HOST_ALREADY_RUNS, HOST_STATE_UNREADABLE, HOST_STATE_CORRUPT, HOST_STATE_NEWER
   */
  static open(path: string): StateDatabase {
    let lockFd: number | undefined;
    let sql: DatabaseSync | undefined;
    try {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      lockFd = openSync(`${path}.lock`, 'a', 0o600);
      if (!tryLockExclusive(lockFd)) throw alreadyRuns(path);
      closeSync(openSync(path, 'a', 0o600));
      sql = new DatabaseSync(path);
      sql.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON');
      assertWhole(sql, path);
      migrate(sql, path);
      return new StateDatabase(path, sql, lockFd);
    } catch (thrown) {
      sql?.close();
      if (lockFd !== undefined) closeSync(lockFd);
      throw thrown instanceof HostError ? thrown : unreadable(path, thrown);
    }
  }

  /** All of `work` or nothing of it. */
  transaction<Result>(work: () => Result): Result {
    this.sql.exec('BEGIN IMMEDIATE');
    try {
      const result = work();
      this.sql.exec('COMMIT');
      return result;
    } catch (thrown) {
      this.sql.exec('ROLLBACK');
      throw thrown;
    }
  }

  /** A copy that opens like the original, of this moment. `target` must not exist. */
  backup(target: string): void {
    this.sql.prepare('VACUUM INTO ?').run(target);
  }

  [Symbol.dispose](): void {
    this.sql.close();
    closeSync(this.#lockFd);
  }
}

function assertWhole(sql: DatabaseSync, path: string): void {
  const findings = sql
    .prepare('PRAGMA quick_check')
    .all()
    .map((row) => String(row.quick_check));
  if (findings.length !== 1 || findings[0] !== 'ok') throw corrupt(path, findings.slice(0, 10).join('; '));
}

function migrate(sql: DatabaseSync, path: string): void {
  const version = Number(sql.prepare('PRAGMA user_version').get()?.user_version);
  if (version > MIGRATIONS.length) {
    throw new HostError('HOST_STATE_NEWER', `${path} was written by a newer version of Understudy`, {
      hint: 'Use that version, or restore a backup that was made before it.',
      facts: { path, version, known: MIGRATIONS.length },
    });
  }
  for (const [index, step] of MIGRATIONS.entries()) {
    if (index < version) continue;
    sql.exec(`BEGIN IMMEDIATE; ${step}; PRAGMA user_version = ${index + 1}; COMMIT`);
  }
}

function alreadyRuns(path: string): HostError {
  return new HostError('HOST_ALREADY_RUNS', `another daemon uses ${path}`, {
    hint: 'One daemon keeps the VMs of a machine. Give a second one for trials another --state and --socket.',
    facts: { path },
  });
}

function unreadable(path: string, cause: unknown): HostError {
  // SQLite says "file is not a database" and the like when it meets foreign bytes.
  if (/not a database|malformed/.test(messageOf(cause))) return corrupt(path, messageOf(cause), cause);
  return new HostError('HOST_STATE_UNREADABLE', `cannot open ${path}: ${messageOf(cause)}`, {
    hint: 'Give a directory that this user may write to: --state, or UNDERSTUDY_STATE_DIR.',
    facts: { path },
    cause,
  });
}

function corrupt(path: string, findings: string, cause?: unknown): HostError {
  return new HostError('HOST_STATE_CORRUPT', `${path} is damaged: ${findings}`, {
    hint: 'VMs that run are untouched. Check the disk, move the file away and restore a backup in its place.',
    facts: { path },
    cause,
  });
}
