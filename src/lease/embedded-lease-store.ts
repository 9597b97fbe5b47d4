import { DatabaseSync } from 'node:sqlite';
import { messageOf } from '../base/errors.ts';
import { LeaseError } from './lease-error.ts';
import type { StoredLease, SwapOutcome } from './lease-record.ts';
import { checkedName, type LeaseStore, type LeaseWrite, readRecord, writeRecord } from './lease-store.ts';

/** Writes take milliseconds. A process that waits does nothing else. */
const BUSY_MAX_MS = 250;
const SCHEMA = `
  CREATE TABLE IF NOT EXISTS leases (
    vm TEXT PRIMARY KEY,
    revision INTEGER NOT NULL,
    record TEXT NOT NULL,
    heldUntilMs REAL NOT NULL,
    boot TEXT NOT NULL
  ) STRICT, WITHOUT ROWID;
`;

export interface EmbeddedLeaseStoreOptions {
  readonly holdTtlMs: number;
  /** CLOCK_BOOTTIME, and which run of the machine it counts in. */
  readonly boot: { readonly timeMs: () => number; readonly id: () => string };
  /** How often others who share the file are looked for. */
  readonly watchEveryMs?: number;
}

/**
 * For a single host: a SQLite file that its processes share. SQLite's lock makes swaps one after the other, and with
 * `synchronous = FULL` a write that was answered is on the disk. A hold ends with the run of the machine: whoever had it
 * has ended with it.
 */
export class EmbeddedLeaseStore implements LeaseStore {
  readonly #sql: DatabaseSync;
  readonly #options: EmbeddedLeaseStoreOptions;
  readonly #watches = new Set<NodeJS.Timeout>();

  private constructor(sql: DatabaseSync, options: EmbeddedLeaseStoreOptions) {
    this.#sql = sql;
    this.#options = options;
  }

  /** @throws LeaseError LEASE_STORE_UNUSABLE */
  static open(path: string, options: EmbeddedLeaseStoreOptions): EmbeddedLeaseStore {
    let sql: DatabaseSync | undefined;
    try {
      sql = new DatabaseSync(path, { timeout: BUSY_MAX_MS });
      sql.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; ${SCHEMA}`);
      return new EmbeddedLeaseStore(sql, options);
    } catch (cause) {
      sql?.close();
      throw new LeaseError('LEASE_STORE_UNUSABLE', `cannot use ${path}: ${messageOf(cause)}`, {
        hint: 'Name a file in a folder that this user may write to, on a local file system.',
        facts: { path },
        cause,
      });
    }
  }

  async read(vm: string): Promise<StoredLease> {
    checkedName(vm);
    return this.#attempt(() => this.#stored(vm));
  }

  async swap(vm: string, write: LeaseWrite): Promise<SwapOutcome> {
    checkedName(vm);
    if (!this.#begin()) return { kind: 'unreachable' };
    try {
      const stored = this.#stored(vm);
      if (stored.revision !== write.expectedRevision || (write.onlyIfUnheld && stored.isHeld)) {
        this.#sql.exec('ROLLBACK');
        return { kind: 'lost', stored };
      }
      const revision = stored.revision + 1;
      this.#put(vm, { revision, write });
      this.#sql.exec('COMMIT');
      return { kind: 'swapped', revision };
    } catch (thrown) {
      this.#rollBack();
      if (thrown instanceof LeaseError) throw thrown;
      // A commit that fails half-way through its writes to the disk may be there after the next start.
      return { kind: 'unknown' };
    }
  }

  async renew(vm: string, { token }: { token: number }): Promise<'renewed' | 'refused'> {
    checkedName(vm);
    return this.#attempt(() => {
      if (!this.#begin()) throw new Error('the file is locked');
      try {
        const { record, isHeld } = this.#stored(vm);
        const isOurs = isHeld && record?.token === token;
        if (isOurs)
          this.#sql.prepare('UPDATE leases SET heldUntilMs = ? WHERE vm = ?').run(this.#untilMs(), vm);
        this.#sql.exec('COMMIT');
        return isOurs ? 'renewed' : 'refused';
      } catch (thrown) {
        this.#rollBack();
        throw thrown;
      }
    });
  }

  watch(_vm: string, changed: () => void): Disposable {
    let seen = this.#writesCount();
    const timer = setInterval(() => {
      const now = this.#writesCount();
      if (now !== seen) changed();
      seen = now;
    }, this.#options.watchEveryMs ?? 500);
    timer.unref();
    this.#watches.add(timer);
    return {
      [Symbol.dispose]: () => {
        clearInterval(timer);
        this.#watches.delete(timer);
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const timer of this.#watches) clearInterval(timer);
    this.#watches.clear();
    this.#sql.close();
  }

  /** Whether the file could be locked for writing. Where not, nothing was done. */
  #begin(): boolean {
    try {
      this.#sql.exec('BEGIN IMMEDIATE');
      return true;
    } catch {
      return false;
    }
  }

  #rollBack(): void {
    // After some errors SQLite has rolled back by itself.
    if (this.#sql.isTransaction) this.#sql.exec('ROLLBACK');
  }

  #stored(vm: string): StoredLease {
    const row = this.#sql
      .prepare('SELECT revision, record, heldUntilMs, boot FROM leases WHERE vm = ?')
      .get(vm);
    if (row === undefined) return { record: undefined, revision: 0, isHeld: false };
    const { boot } = this.#options;
    return {
      record: readRecord(vm, String(row.record)),
      revision: Number(row.revision),
      isHeld: row.boot === boot.id() && boot.timeMs() < Number(row.heldUntilMs),
    };
  }

  #put(vm: string, { revision, write }: { revision: number; write: LeaseWrite }): void {
    const { record } = write;
    const untilMs = record.mode === 'alone' ? this.#untilMs() : 0;
    this.#sql
      .prepare(
        `INSERT INTO leases (vm, revision, record, heldUntilMs, boot) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (vm) DO UPDATE SET revision = excluded.revision, record = excluded.record,
           heldUntilMs = excluded.heldUntilMs, boot = excluded.boot`,
      )
      .run(vm, revision, writeRecord(record), untilMs, this.#options.boot.id());
  }

  #untilMs(): number {
    return this.#options.boot.timeMs() + this.#options.holdTtlMs;
  }

  /** Grows with every swap, whoever made it. */
  #writesCount(): number {
    const { total } = this.#sql.prepare('SELECT sum(revision) AS total FROM leases').get() ?? {};
    return Number(total ?? 0);
  }

  #attempt<Result>(work: () => Result): Result {
    try {
      return work();
    } catch (cause) {
      if (cause instanceof LeaseError) throw cause;
      throw new LeaseError('LEASE_STORE_AWAY', `the file of the leases cannot be used: ${messageOf(cause)}`, {
        hint: 'VMs in sync run on; nothing is taken over until it can be used again.',
        cause,
      });
    }
  }
}
