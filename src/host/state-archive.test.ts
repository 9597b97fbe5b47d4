import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { AccessTokens } from './access-tokens.ts';
import { EventLog } from './event-log.ts';
import { backUp, restore } from './state-archive.ts';
import { StateDatabase } from './state-database.ts';
import { VmInventory } from './vm-inventory.ts';
import { VmTokens } from './vm-tokens.ts';

const A = { name: 'a', spec: 'name: a', directory: '/', desired: 'stopped' } as const;
const withCode = (code: string) => expect.objectContaining({ code, hint: expect.stringMatching(/\S/) });

let folder: string;
let path: string;
let target: string;
let draft: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-archive-'));
  path = join(folder, 'state/host.db');
  target = join(folder, 'backup.db');
  draft = join(folder, 'backup.db.part');
});
afterEach(() => rmSync(folder, { recursive: true }));

function partsOf(database: StateDatabase) {
  const tokens = new VmTokens(database);
  return {
    tokens,
    inventory: new VmInventory(database, { clock }),
    access: new AccessTokens(database, { clock }),
    log: new EventLog(database, { clock, tokens }),
  };
}

describe('a backup', () => {
  it('holds what there was at its moment, while the daemon goes on, for its owner only', () => {
    using database = StateDatabase.open(path);
    const { inventory, log } = partsOf(database);
    inventory.declare(A);
    log.publish('declared', { vm: 'a' });
    expect(backUp(path, { target, draft })).toMatchObject({ path: target, vms: 1, events: 1 });
    inventory.declare({ ...A, name: 'b' });
    expect(statSync(target).mode & 0o777).toBe(0o600);
    expect(readdirSync(folder).sort()).toEqual(['backup.db', 'state']);
    using copy = StateDatabase.open(target);
    expect(partsOf(copy).inventory.outlines()).toMatchObject([{ name: 'a' }]);
  });

  it('takes the place of no other file, and leaves nothing of itself when it is refused', () => {
    StateDatabase.open(path)[Symbol.dispose]();
    writeFileSync(target, 'precious');
    expect(() => backUp(path, { target, draft })).toThrow(withCode('HOST_BACKUP_EXISTS'));
    expect(readFileSync(target, 'utf8')).toBe('precious');
    expect(() => backUp(path, { target: '/proc/backup.db', draft: '/proc/backup.part' })).toThrow(
      withCode('HOST_BACKUP_FAILED'),
    );
    expect(() => backUp(join(folder, 'none.db'), { target: draft, draft })).toThrow(
      withCode('HOST_STATE_MISSING'),
    );
    expect(readdirSync(folder).sort()).toEqual(['backup.db', 'state']);
  });

  it('is not made of a state that is damaged', () => {
    const database = StateDatabase.open(path);
    const { inventory } = partsOf(database);
    for (let index = 0; index < 200; index++)
      inventory.declare({ ...A, name: `vm-${index}`, spec: 'x'.repeat(500) });
    database[Symbol.dispose]();
    writeFileSync(path, readFileSync(path).fill(0xff, 4096 + 100, 4096 * 8));
    expect(() => backUp(path, { target, draft })).toThrow(withCode('HOST_STATE_CORRUPT'));
    expect(readdirSync(folder)).toEqual(['state']);
  });
});

describe('a restoration', () => {
  function backedUp(): void {
    using database = StateDatabase.open(path);
    const { inventory, log, tokens } = partsOf(database);
    inventory.declare(A);
    log.publish('declared', { vm: 'a' });
    tokens.begin('a');
    tokens.end('a', 3);
    backUp(path, { target, draft });
    inventory.change('a', A, { ifVersion: 1 });
    inventory.declare({ ...A, name: 'later' });
    log.publish('declared', { vm: 'later' });
  }

  it('brings back what was backed up, keeps what there was, and gives out no number twice', () => {
    backedUp();
    const done = restore(path, { source: target, stamp: 'now' });
    expect(done).toMatchObject({ vms: 1, events: 1, aside: `${path}.before-now` });
    {
      using database = StateDatabase.open(path);
      const { inventory, log, tokens } = partsOf(database);
      expect(inventory.outlines()).toMatchObject([{ name: 'a', version: 1 }]);
      expect(inventory.change('a', A, { ifVersion: 1 }).version).toBeGreaterThan(1_000_000);
      log.publish('after');
      expect(log.newest()).toBeGreaterThan(1_000_000);
      expect(log.since(0, { limit: 9, vm: undefined }).map(({ kind }) => kind)).toEqual([
        'declared',
        'after',
      ]);
      expect(tokens.begin('a')).toBe(1_000_003);
    }
    using before = StateDatabase.open(`${path}.before-now`);
    expect(
      partsOf(before)
        .inventory.outlines()
        .map(({ name }) => name),
    ).toEqual(['a', 'later']);
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });

  it('is refused while a daemon uses the state', () => {
    backedUp();
    using _daemon = StateDatabase.open(path);
    expect(() => restore(path, { source: target, stamp: 'now' })).toThrow(withCode('HOST_ALREADY_RUNS'));
  });

  it.each<[string, string, () => void]>([
    ['that does not exist', 'HOST_BACKUP_INVALID', () => rmSync(target)],
    ['that is no database', 'HOST_BACKUP_INVALID', () => writeFileSync(target, 'x'.repeat(5000))],
    ['that is empty', 'HOST_BACKUP_INVALID', () => writeFileSync(target, '')],
    [
      'of something else',
      'HOST_BACKUP_INVALID',
      () => {
        rmSync(target);
        raw(target, 'CREATE TABLE notes (text TEXT)');
      },
    ],
    [
      'that is damaged',
      'HOST_BACKUP_INVALID',
      () => writeFileSync(target, readFileSync(target).fill(0xff, 4096 + 100, 4096 * 4)),
    ],
    ['of a newer version', 'HOST_STATE_NEWER', () => raw(target, 'PRAGMA user_version = 999')],
  ])('from a file %s is refused and changes nothing', (_, code, spoil) => {
    backedUp();
    const before = { names: readdirSync(join(folder, 'state')), bytes: readFileSync(path) };
    spoil();
    expect(() => restore(path, { source: target, stamp: 'now' })).toThrow(withCode(code));
    expect({ names: readdirSync(join(folder, 'state')), bytes: readFileSync(path) }).toEqual(before);
  });

  it('works where the state is damaged, or gone with its directory', () => {
    backedUp();
    writeFileSync(path, 'no database at all, but long enough to be looked at as one');
    restore(path, { source: target, stamp: 'damaged' });
    expect(readFileSync(`${path}.before-damaged`, 'utf8')).toContain('no database');
    rmSync(join(folder, 'state'), { recursive: true });
    expect(restore(path, { source: target, stamp: 'gone' }).aside).toBeNull();
    using database = StateDatabase.open(path);
    expect(partsOf(database).inventory.outlines()).toHaveLength(1);
  });

  it('brings a backup of an older version to the present one', () => {
    mkdirSync(join(folder, 'state'));
    raw(
      target,
      readFileSync(new URL('./state-database.ts', import.meta.url), 'utf8').split('`')[1] ?? '',
      "INSERT INTO vms VALUES ('old', 'name: old', '/', 7, 'stopped', 1, NULL, NULL, 0, 0)",
      `INSERT INTO events (time, vm, kind, facts) VALUES ('2026-01-01T00:00:00.000Z', 'gone', 'changed', '{"version":9}')`,
      'PRAGMA user_version = 1',
    );
    restore(path, { source: target, stamp: 'now' });
    using database = StateDatabase.open(path);
    const { inventory } = partsOf(database);
    // Above all that were ever given out, also to a VM that is no more.
    expect(inventory.declare(A).version).toBe(1_000_010);
    expect(inventory.get('old').version).toBe(7);
  });
});

describe('a token that is in a backup', () => {
  const made = (database: StateDatabase) =>
    ['revoked', 'kept'].map(
      (name) =>
        partsOf(database).access.create({ name, role: 'admin', tenant: null, expiresInSeconds: null }).id,
    );
  const validAfter = (options: { keepTokens?: boolean } = {}) => {
    const { revokedTokens } = restore(path, { source: target, stamp: 'now', ...options });
    using database = StateDatabase.open(path);
    const { tokens } = partsOf(database).access.page({ after: undefined, limit: 9 });
    return { revokedTokens, names: tokens.map(({ name }) => name) };
  };
  const revokedSince = () => {
    using database = StateDatabase.open(path);
    const [revoked = ''] = made(database);
    backUp(path, { target, draft });
    partsOf(database).access.revoke(revoked);
  };

  it('and was revoked since does not come back with it, and others stay', () => {
    revokedSince();
    expect(validAfter()).toEqual({ revokedTokens: 1, names: ['kept'] });
  });

  it('comes back where that is asked for (control)', () => {
    revokedSince();
    expect(validAfter({ keepTokens: true }).names.sort()).toEqual(['kept', 'revoked']);
  });

  it.each([
    ['is gone', () => rmSync(join(folder, 'state'), { recursive: true })],
    ['is damaged', () => writeFileSync(path, 'no database at all, but long enough to be looked at as one')],
  ])('opens nothing where the state %s that could tell', (_, spoil) => {
    revokedSince();
    spoil();
    expect(validAfter()).toEqual({ revokedTokens: 2, names: [] });
  });

  it('and was revoked by a daemon that was killed then, does not come back either', () => {
    revokedSince();
    // As a kill leaves it: the revocation is in the log of writes only.
    const wal = join(folder, 'state/host.db-wal');
    const killed = StateDatabase.open(path);
    const [id = ''] = partsOf(killed)
      .access.page({ after: undefined, limit: 9 })
      .tokens.map((token) => token.id);
    partsOf(killed).access.revoke(id);
    const files = [path, wal].map((file) => [file, readFileSync(file)] as const);
    killed[Symbol.dispose]();
    for (const [file, bytes] of files) writeFileSync(file, bytes);
    expect(validAfter()).toEqual({ revokedTokens: 2, names: [] });
  });
});

function raw(file: string, ...statements: string[]): void {
  const sql = new DatabaseSync(file);
  for (const statement of statements) sql.exec(statement);
  sql.close();
}
