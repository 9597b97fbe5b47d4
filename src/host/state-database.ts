import { closeSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { messageOf } from '../base/errors.ts';
import { makeDirectory } from '../base/make-directory.ts';
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
  // Numbers that never go back. Versions did before, where a VM was deleted and declared again.
  `
  CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  INSERT INTO counters (name, value)
    SELECT 'version', max(
      (SELECT coalesce(max(version), 0) FROM vms),
      (SELECT coalesce(max(json_extract(facts, '$.version')), 0) FROM events WHERE kind = 'changed')
    );
  CREATE TABLE tokens (
    vm TEXT PRIMARY KEY,
    token INTEGER NOT NULL,
    open INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  ALTER TABLE events ADD COLUMN token INTEGER;
  CREATE INDEX answersByAge ON answers (storedMs);
  `,
  // What is wished for beside the specification.
  `
  ALTER TABLE vms ADD COLUMN shadowInSpec INTEGER NOT NULL DEFAULT 1;
  ALTER TABLE vms ADD COLUMN shadowWanted INTEGER;
  ALTER TABLE vms ADD COLUMN termination TEXT CHECK (termination IN ('remove', 'suspend', 'snapshot'));
  ALTER TABLE vms ADD COLUMN startFrom TEXT CHECK (startFrom = 'snapshot');
  `,
  // Who may come in from elsewhere. hash: SHA-256 of a secret of 256 random bits.
  `
  CREATE TABLE accessTokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'operator', 'admin')),
    hash BLOB NOT NULL,
    createdMs INTEGER NOT NULL,
    expiresMs INTEGER
  ) STRICT, WITHOUT ROWID;
  `,
  // To whom VMs belong. An event keeps whose it was: the name of a VM may come to belong to somebody else.
  `
  CREATE TABLE tenants (
    name TEXT PRIMARY KEY,
    createdMs INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE TABLE policies (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    policy TEXT NOT NULL,
    changedMs INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  INSERT INTO policies (name, version, policy, changedMs) VALUES ('default', 1, '{}', 0);
  ALTER TABLE accessTokens ADD COLUMN tenant TEXT REFERENCES tenants (name) ON DELETE CASCADE;
  ALTER TABLE vms ADD COLUMN tenant TEXT REFERENCES tenants (name);
  ALTER TABLE vms ADD COLUMN memoryBytes INTEGER NOT NULL DEFAULT 0;
  CREATE INDEX vmsOfTenant ON vms (tenant, name);
  ALTER TABLE events ADD COLUMN tenant TEXT;
  CREATE INDEX eventsOfTenant ON events (tenant, id);
  `,
  // What tenants are limited in. 0 vCPUs: not counted yet.
  `
  ALTER TABLE vms ADD COLUMN vcpus INTEGER NOT NULL DEFAULT 0;
  ALTER TABLE vms ADD COLUMN diskBytes INTEGER NOT NULL DEFAULT 0;
  `,
  // Another one for each tenant that ever was, also of the same name: a random UUID (RFC 9562, version 4).
  `
  ALTER TABLE tenants ADD COLUMN id TEXT NOT NULL DEFAULT '';
  UPDATE tenants SET id = lower(
    hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) ||
    '-8' || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6)));
  `,
];

const BUSY_MAX_MS = 5000;

/** The newest version of the state that this program knows. */
export const STATE_VERSION = MIGRATIONS.length;

/** The right to use a state: one process at a time, until it is disposed of or the process ends. */
export class StateLock implements Disposable {
  readonly #fd: number;

  private constructor(fd: number) {
    this.#fd = fd;
  }

  /** @throws HostError HOST_ALREADY_RUNS, HOST_STATE_UNREADABLE */
  static take(path: string): StateLock {
    let fd: number | undefined;
    try {
      makeDirectory(dirname(path), { mode: 0o700 });
      fd = openSync(`${path}.lock`, 'a', 0o600);
      if (!tryLockExclusive(fd)) throw alreadyRuns(path);
      return new StateLock(fd);
    } catch (thrown) {
      if (fd !== undefined) closeSync(fd);
      throw thrown instanceof HostError ? thrown : unreadable(path, thrown);
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }
}

/**
 * The state of a host in one SQLite file. What is written has reached the disk when the call returns; a process that
 * is killed at any point leaves the last whole transaction. One process at a time.
 */
export class StateDatabase implements Disposable {
  readonly path: string;
  readonly sql: DatabaseSync;
  readonly #lock: StateLock;
  readonly #statements = new Map<string, StatementSync>();
  /** What waits for the end of the transaction that is open; undefined when none is. */
  #afterCommit: (() => void)[] | undefined;

  private constructor(path: string, sql: DatabaseSync, lock: StateLock) {
    this.path = path;
    this.sql = sql;
    this.#lock = lock;
  }

  /**
   * Opens the file, or makes it, checks its integrity and brings it to the version of this program.
   * @throws HostError HOST_ALREADY_RUNS, HOST_STATE_UNREADABLE, HOST_STATE_CORRUPT, HOST_STATE_NEWER
   */
  static open(path: string): StateDatabase {
    const lock = StateLock.take(path);
    let sql: DatabaseSync | undefined;
    try {
      closeSync(openSync(path, 'a', 0o600));
      // A backup may be opening or closing it just now.
      sql = new DatabaseSync(path, { timeout: BUSY_MAX_MS });
      sql.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON');
      assertWhole(sql, path);
      migrate(sql, path);
      return new StateDatabase(path, sql, lock);
    } catch (thrown) {
      sql?.close();
      lock[Symbol.dispose]();
      throw thrown instanceof HostError ? thrown : unreadable(path, thrown);
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

  get inTransaction(): boolean {
    return this.#afterCommit !== undefined;
  }

  /** All of `work` or nothing of it. Within another transaction it is a part of that one. */
  transaction<Result>(work: () => Result): Result {
    if (this.inTransaction) return work();
    const after: (() => void)[] = [];
    this.sql.exec('BEGIN IMMEDIATE');
    this.#afterCommit = after;
    let result: Result;
    try {
      result = work();
      this.sql.exec('COMMIT');
    } catch (thrown) {
      // SQLite itself rolls back where the disk is full or broken.
      if (this.sql.isTransaction) this.sql.exec('ROLLBACK');
      throw thrown;
    } finally {
      this.#afterCommit = undefined;
    }
    for (const task of after) task();
    return result;
  }

  /** Runs `task` when what was written is there to stay: at once, or after the open transaction; never if that fails. */
  afterCommit(task: () => void): void {
    if (this.#afterCommit === undefined) task();
    else this.#afterCommit.push(task);
  }

  [Symbol.dispose](): void {
    this.sql.close();
    this.#lock[Symbol.dispose]();
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
    hint: 'VMs that run are untouched. Check the disk, and put a backup in its place with `understudy restore`.',
    facts: { path },
    cause,
  });
}
