import {
  chmodSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  fsyncSync,
  linkSync,
  openSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { messageOf } from '../base/errors.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { HostError } from './host-error.ts';
import { STATE_VERSION, StateDatabase, StateLock } from './state-database.ts';

/** More than was given out, of any number, between a backup and its restoration. */
const AHEAD = 1_000_000;
const BESIDES = ['-wal', '-shm', '-journal', '.lock'] as const;

/** What a backup holds. */
export interface ArchiveFacts {
  readonly path: string;
  readonly bytes: number;
  readonly vms: number;
  readonly events: number;
}

/**
 * Writes the state of this moment to `target`, which must not exist, for its owner only; the daemon may go on writing
 * meanwhile. What is there in the end was checked. `draft` is a file beside it that an interruption may leave.
 * @throws HostError HOST_STATE_MISSING, HOST_STATE_UNREADABLE, HOST_STATE_CORRUPT, HOST_BACKUP_EXISTS, HOST_BACKUP_FAILED
 */
export function backUp(
  databasePath: string,
  { target, draft }: { target: string; draft: string },
): ArchiveFacts {
  if (!existsSync(databasePath)) throw missing(databasePath);
  if (existsSync(target)) throw exists(target);
  try {
    // Before SQLite opens it, and with no right for anybody else from the first byte on.
    closeSync(openSync(draft, 'wx', 0o600));
    copyInto(databasePath, draft);
    const facts = factsOf(draft, target);
    sync(draft);
    // Unlike a rename it does not take the place of a file that came in between.
    linkSync(draft, target);
    sync(dirname(target));
    return facts;
  } catch (thrown) {
    if (thrown instanceof HostError) throw thrown;
    if (errnoNameOf(thrown) === 'EEXIST') throw exists(target);
    throw failed(`cannot write the backup ${target}`, thrown);
  } finally {
    removeWithBesides(draft);
  }
}

/** What `restore` did. */
export interface Restoration extends ArchiveFacts {
  /** Where the state lies that was there before; null if there was none. */
  readonly aside: string | null;
  /** Tokens of the backup that open nothing any more. */
  readonly revokedTokens: number;
}

interface RestoreOptions {
  readonly source: string;
  readonly stamp: string;
  /** Take all tokens of the backup for valid, also those that were revoked after it. */
  readonly keepTokens?: boolean;
}

/**
 * Puts a backup in the place of the state. What was there is kept beside it. Numbers that were given out since the
 * backup (events, versions, tokens) are not given out again. Of the tokens by which others come in, only those stay that
 * are valid in the state that is there; all go where nobody can tell.
 * @throws HostError HOST_ALREADY_RUNS while a daemon uses the state; HOST_BACKUP_INVALID, HOST_STATE_NEWER for a file
 * that is no whole backup of this or an older version; HOST_BACKUP_FAILED. Nothing has changed then.
 */
export function restore(
  databasePath: string,
  { source, stamp, keepTokens = false }: RestoreOptions,
): Restoration {
  using _lock = StateLock.take(databasePath);
  const draft = `${databasePath}.restoring`;
  try {
    removeWithBesides(draft);
    copyFileSync(source, draft, constants.COPYFILE_EXCL);
    chmodSync(draft, 0o600);
    const facts = factsOf(draft, source);
    moveNumbersAhead(draft);
    const revokedTokens = keepTokens ? 0 : revokeTokens(draft, databasePath);
    sync(draft);
    const aside = setAside(databasePath, `${databasePath}.before-${stamp}`);
    // There is a whole state in this place at all times: without one a daemon would begin anew.
    renameSync(draft, databasePath);
    sync(dirname(databasePath));
    return { ...facts, aside, revokedTokens };
  } catch (thrown) {
    if (thrown instanceof HostError) throw thrown;
    if (errnoNameOf(thrown) === 'ENOENT' && !existsSync(source)) throw invalid(source, 'it does not exist');
    throw failed(`cannot restore ${source}`, thrown);
  } finally {
    removeWithBesides(draft);
  }
}

function copyInto(databasePath: string, draft: string): void {
  let sql: DatabaseSync | undefined;
  try {
    sql = new DatabaseSync(databasePath, { readOnly: true, timeout: 10_000 });
    sql.prepare('VACUUM INTO ?').run(draft);
  } catch (thrown) {
    const isDamaged = /not a database|malformed/.test(messageOf(thrown));
    throw isDamaged ? damaged(databasePath, thrown) : failed(`cannot copy ${databasePath}`, thrown);
  } finally {
    sql?.close();
  }
}

/** Reads all of it: an archive that nobody can read is found out now. `path` is what it is called. */
function factsOf(draft: string, path: string): ArchiveFacts {
  let sql: DatabaseSync | undefined;
  try {
    sql = new DatabaseSync(draft, { readOnly: true });
    const version = Number(sql.prepare('PRAGMA user_version').get()?.user_version);
    if (version > STATE_VERSION) throw newer(path, version);
    const [first, ...more] = sql.prepare('PRAGMA integrity_check').all();
    if (first?.integrity_check !== 'ok' || more.length > 0)
      throw invalid(path, String(first?.integrity_check));
    if (version < 1) throw invalid(path, 'it is no state of a host');
    const count = (table: 'vms' | 'events') =>
      Number(sql?.prepare(`SELECT count(*) AS n FROM ${table}`).get()?.n);
    return { path, bytes: statSync(draft).size, vms: count('vms'), events: count('events') };
  } catch (thrown) {
    throw thrown instanceof HostError ? thrown : invalid(path, messageOf(thrown), thrown);
  } finally {
    sql?.close();
  }
}

/** Readers of events, holders of entity tags and whoever compares tokens have seen what the backup knows nothing of. */
function moveNumbersAhead(path: string): void {
  using database = StateDatabase.open(path);
  database.transaction(() => {
    database.sql.exec(`
      UPDATE sqlite_sequence SET seq = seq + ${AHEAD} WHERE name = 'events';
      UPDATE counters SET value = value + ${AHEAD};
      UPDATE tokens SET open = 1;
    `);
  });
  // One file, for the rename.
  database.sql.exec('PRAGMA wal_checkpoint(TRUNCATE)');
}

/** Returns how many. A token that was revoked is a row that is gone: what is not in the present state may have been. */
function revokeTokens(path: string, present: string): number {
  const stillValid = tokensIn(present);
  using database = StateDatabase.open(path);
  return database.transaction(() => {
    const rows = database.sql.prepare('SELECT id, hash FROM accessTokens').all();
    const gone = rows.filter(({ id, hash }) => stillValid.get(String(id)) !== hexOf(hash));
    for (const { id } of gone)
      database.sql.prepare('DELETE FROM accessTokens WHERE id = ?').run(id as string);
    return gone.length;
  });
}

/** Hashes by id; none where the state is missing, damaged, or of another version. */
function tokensIn(path: string): ReadonlyMap<string, string> {
  if (!existsSync(path)) return new Map();
  let sql: DatabaseSync | undefined;
  try {
    // Not read only: what is still in the log of writes counts too, and a revocation may be the last of it.
    sql = new DatabaseSync(path);
    const [first, ...more] = sql.prepare('PRAGMA integrity_check').all();
    if (first?.integrity_check !== 'ok' || more.length > 0) return new Map();
    const rows = sql.prepare('SELECT id, hash FROM accessTokens').all();
    return new Map(rows.map(({ id, hash }) => [String(id), hexOf(hash)]));
  } catch {
    return new Map();
  } finally {
    sql?.close();
  }
}

function hexOf(blob: unknown): string {
  return Buffer.from(blob as Uint8Array).toString('hex');
}

/** Undamaged or not: what is in the log of writes belongs to the file before, and must not meet the one that comes. */
function setAside(databasePath: string, aside: string): string | null {
  if (!existsSync(databasePath)) return null;
  try {
    const sql = new DatabaseSync(databasePath);
    try {
      sql.exec('PRAGMA wal_checkpoint(TRUNCATE)');
    } finally {
      sql.close();
    }
  } catch {
    // That it cannot be read may be why there is a restoration at all.
  }
  linkSync(databasePath, aside);
  for (const beside of ['-wal', '-shm'])
    if (existsSync(`${databasePath}${beside}`)) renameSync(`${databasePath}${beside}`, `${aside}${beside}`);
  return aside;
}

function removeWithBesides(path: string): void {
  for (const beside of ['', ...BESIDES]) rmSync(`${path}${beside}`, { force: true });
}

function sync(path: string): void {
  const fd = openSync(path, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function missing(path: string): HostError {
  return new HostError('HOST_STATE_MISSING', `there is no state of a host at ${path}`, {
    hint: 'Give the directory that the daemon uses: --state, or UNDERSTUDY_STATE_DIR.',
    facts: { path },
  });
}

function exists(path: string): HostError {
  return new HostError('HOST_BACKUP_EXISTS', `${path} exists already`, {
    hint: 'Choose another file: a backup never takes the place of another.',
    facts: { path },
  });
}

function invalid(path: string, reason: string, cause?: unknown): HostError {
  return new HostError('HOST_BACKUP_INVALID', `${path} is no whole backup: ${reason}`, {
    hint: 'Give a file that `understudy backup` wrote. The present state is as it was.',
    facts: { path },
    cause,
  });
}

function newer(path: string, version: number): HostError {
  return new HostError('HOST_STATE_NEWER', `${path} was written by a newer version of Understudy`, {
    hint: 'Use that version, or an older backup.',
    facts: { path, version, known: STATE_VERSION },
  });
}

function damaged(path: string, cause: unknown): HostError {
  return new HostError('HOST_STATE_CORRUPT', `${path} is damaged: ${messageOf(cause)}`, {
    hint: 'It cannot be backed up. Restore an earlier backup with `understudy restore`.',
    facts: { path },
    cause,
  });
}

function failed(what: string, cause: unknown): HostError {
  return new HostError('HOST_BACKUP_FAILED', `${what}: ${messageOf(cause)}`, {
    hint: 'See that this user may read the state and write there, and that there is room. Nothing has changed.',
    cause,
  });
}
