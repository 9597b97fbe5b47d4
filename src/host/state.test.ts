import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { HostEvent } from '../api/resources.ts';
import { systemClock as clock } from '../base/clock.ts';
import type { VmEvent } from '../control/vm-event.ts';
import { AnswerStore } from './answer-store.ts';
import { EventLog } from './event-log.ts';
import { StateDatabase } from './state-database.ts';
import { VmInventory } from './vm-inventory.ts';
import { VmTokens } from './vm-tokens.ts';

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-state-'));
  path = join(folder, 'state/host.db');
});
afterEach(() => rmSync(folder, { recursive: true }));

const withCode = (code: string) => expect.objectContaining({ code, hint: expect.stringMatching(/\S/) });
const A = { name: 'a', spec: 'name: a', directory: '/', desired: 'running' } as const;

describe('the state of a host', () => {
  it('is there again when it is opened again, for its owner only', () => {
    const first = StateDatabase.open(path);
    new VmInventory(first, { clock }).declare(A);
    first[Symbol.dispose]();
    expect(statSync(path).mode & 0o777).toBe(0o600);
    using second = StateDatabase.open(path);
    expect(new VmInventory(second, { clock }).get('a')).toMatchObject({ ...A, version: 1, started: null });
  });

  it('belongs to one process at a time', () => {
    using _first = StateDatabase.open(path);
    expect(() => StateDatabase.open(path)).toThrow(withCode('HOST_ALREADY_RUNS'));
  });

  it('is refused when it is damaged', () => {
    const database = StateDatabase.open(path);
    const inventory = new VmInventory(database, { clock });
    for (let index = 0; index < 200; index++)
      inventory.declare({ ...A, name: `vm-${index}`, spec: 'x'.repeat(500) });
    database[Symbol.dispose]();
    const bytes = readFileSync(path);
    writeFileSync(path, bytes.fill(0xff, 4096 + 100, 4096 * 8));
    expect(() => StateDatabase.open(path)).toThrow(withCode('HOST_STATE_CORRUPT'));
    writeFileSync(path, 'no database at all, but long enough to be looked at as one');
    expect(() => StateDatabase.open(path)).toThrow(withCode('HOST_STATE_CORRUPT'));
  });

  it('is refused when a newer program wrote it', () => {
    StateDatabase.open(path)[Symbol.dispose]();
    const raw = new DatabaseSync(path);
    raw.exec('PRAGMA user_version = 999');
    raw.close();
    const before = readFileSync(path);
    expect(() => StateDatabase.open(path)).toThrow(withCode('HOST_STATE_NEWER'));
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  it('of the first version is brought to this one, and its VMs are as their specifications say', () => {
    const first = StateDatabase.open(path);
    new VmInventory(first, { clock }).declare(A);
    first.sql.exec(
      'DROP TABLE counters; DROP TABLE tokens; DROP TABLE accessTokens; DROP INDEX answersByAge',
    );
    first.sql.exec('PRAGMA foreign_keys = OFF; DROP INDEX vmsOfTenant; DROP INDEX eventsOfTenant');
    first.sql.exec('DROP TABLE policies; DROP TABLE tenants');
    for (const column of ['token', 'tenant']) first.sql.exec(`ALTER TABLE events DROP COLUMN ${column}`);
    for (const column of [
      'shadowInSpec',
      'shadowWanted',
      'termination',
      'startFrom',
      'tenant',
      'memoryBytes',
      'vcpus',
      'diskBytes',
    ])
      first.sql.exec(`ALTER TABLE vms DROP COLUMN ${column}`);
    first.sql.exec('PRAGMA user_version = 1');
    first[Symbol.dispose]();
    using second = StateDatabase.open(path);
    const asDeclared = {
      tenant: null,
      shadowInSpec: true,
      shadowWanted: null,
      termination: null,
      startFrom: null,
    };
    expect(new VmInventory(second, { clock }).get('a')).toMatchObject({ ...A, ...asDeclared });
  });

  it('is refused where it cannot be written', () => {
    writeFileSync(join(folder, 'file'), '');
    expect(() => StateDatabase.open(join(folder, 'file/host.db'))).toThrow(withCode('HOST_STATE_UNREADABLE'));
  });

  it('keeps all of a transaction or nothing of it', () => {
    using database = StateDatabase.open(path);
    const inventory = new VmInventory(database, { clock });
    expect(() =>
      database.transaction(() => {
        database.sql.exec("INSERT INTO answers VALUES ('k', 'r', 200, '{}', '', 0)");
        throw new Error('in the middle');
      }),
    ).toThrow('in the middle');
    expect(new AnswerStore(database, { clock }).recall('k')).toBeUndefined();
    inventory.declare(A);
  });
});

describe('the declared VMs', () => {
  it('have names of their own and are read page by page', () => {
    using database = StateDatabase.open(path);
    const inventory = new VmInventory(database, { clock });
    for (const name of ['c', 'a', 'b']) inventory.declare({ ...A, name });
    expect(() => inventory.declare(A)).toThrow(withCode('HOST_VM_EXISTS'));
    expect(inventory.page({ after: '', limit: 2 }).map(({ name }) => name)).toEqual(['a', 'b']);
    expect(inventory.page({ after: 'b', limit: 2 }).map(({ name }) => name)).toEqual(['c']);
  });

  it('change only for those who know their present version', () => {
    using database = StateDatabase.open(path);
    const inventory = new VmInventory(database, { clock });
    inventory.declare(A);
    const changed = inventory.change('a', { spec: 'name: a # new', directory: '/etc' }, { ifVersion: 1 });
    expect(changed).toMatchObject({ version: 2, spec: 'name: a # new', directory: '/etc' });
    expect(() => inventory.change('a', A, { ifVersion: 1 })).toThrow(withCode('HOST_VM_CHANGED'));
    expect(() => inventory.desire('a', 'deleted', { ifVersion: 1 })).toThrow(withCode('HOST_VM_CHANGED'));
    expect(inventory.get('a')).toMatchObject({ version: 2, desired: 'running' });
  });

  it('are to be started anew when they are desired to run again, whatever is known of their last start', () => {
    using database = StateDatabase.open(path);
    const inventory = new VmInventory(database, { clock });
    inventory.declare(A);
    inventory.noteStarted('a', { version: 1, bootId: 'boot' });
    inventory.desire('a', 'running');
    expect(inventory.get('a').started).toEqual({ version: 1, bootId: 'boot' });
    inventory.desire('a', 'stopped');
    expect(inventory.get('a').started).toEqual({ version: 1, bootId: 'boot' });
    inventory.desire('a', 'running');
    expect(inventory.get('a').started).toBeNull();
  });

  it('remember what is wanted of their shadow until it is said otherwise, and of their next stop and start once', () => {
    using database = StateDatabase.open(path);
    const inventory = new VmInventory(database, { clock });
    inventory.declare({ ...A, shadowInSpec: false });
    inventory.wantShadow('a', true);
    inventory.desire('a', 'stopped', { termination: 'suspend' });
    expect(inventory.get('a')).toMatchObject({
      shadowInSpec: false,
      shadowWanted: true,
      termination: 'suspend',
    });
    inventory.desire('a', 'running', { startFrom: 'snapshot' });
    expect(inventory.get('a')).toMatchObject({
      shadowWanted: true,
      termination: null,
      startFrom: 'snapshot',
    });
    inventory.noteStarted('a', { version: 1, bootId: 'boot' });
    inventory.wantShadow('a', null);
    expect(inventory.get('a')).toMatchObject({ shadowWanted: null, startFrom: null });
    expect(() => inventory.wantShadow('b', true)).toThrow(withCode('HOST_VM_UNKNOWN'));
  });

  it('are unknown to others from the moment that they are to be deleted, and their name is free when they are gone', () => {
    using database = StateDatabase.open(path);
    const inventory = new VmInventory(database, { clock });
    inventory.declare(A);
    inventory.desire('a', 'deleted');
    expect(() => inventory.get('a')).toThrow(withCode('HOST_VM_UNKNOWN'));
    expect(() => inventory.declare(A)).toThrow(withCode('HOST_VM_EXISTS'));
    expect(inventory.outlines()).toHaveLength(1);
    inventory.forget('a');
    inventory.declare(A);
  });
});

describe('the event log', () => {
  const fromKeeper = (seq: number): VmEvent => ({
    seq,
    time: '2026-01-01T00:00:00.000Z',
    vm: 'a',
    kind: 'protected',
    token: seq,
    epoch: 7,
    facts: { seq },
  });

  it('numbers what happens and takes each event of a keeper once, over restarts too', () => {
    const heard: HostEvent[] = [];
    {
      using database = StateDatabase.open(path);
      const log = new EventLog(database, { clock, tokens: new VmTokens(database) });
      log.onEvent((event) => heard.push(event));
      log.publish('host-started');
      for (const seq of [1, 2, 2, 1]) log.take(fromKeeper(seq), { keeper: 'k1' });
    }
    using database = StateDatabase.open(path);
    const log = new EventLog(database, { clock, tokens: new VmTokens(database) });
    log.onEvent((event) => heard.push(event));
    log.take(fromKeeper(2), { keeper: 'k1' });
    expect(log.lastTaken('a', { keeper: 'k1' })).toBe(2);
    expect(log.lastTaken('a', { keeper: 'k2' })).toBe(0);
    log.take(fromKeeper(1), { keeper: 'k2' });
    expect(heard.map(({ id, kind, facts }) => [id, kind, facts.seq])).toEqual([
      [1, 'host-started', undefined],
      [2, 'protected', 1],
      [3, 'protected', 2],
      [4, 'protected', 1],
    ]);
    expect(log.since(1, { limit: 2, vm: 'a' })).toEqual(heard.slice(1, 3));
  });

  it('forgets the oldest of very many, by their count', () => {
    using database = StateDatabase.open(path);
    const log = new EventLog(database, { clock, tokens: new VmTokens(database) });
    log.publish('first');
    log.publish('second');
    database.transaction(() => {
      for (let count = 0; count < 99_997; count++) log.publish('one of many');
    });
    // As after a restoration: numbers say nothing of how many there are.
    database.sql.exec("UPDATE sqlite_sequence SET seq = 5000998 WHERE name = 'events'");
    log.publish('kept');
    expect(log.since(0, { limit: 1, vm: undefined })).toMatchObject([{ kind: 'first' }]);
    log.publish('the one that trims');
    expect(log.since(0, { limit: 1, vm: undefined })).toMatchObject([{ kind: 'second' }]);
    expect(log.newest()).toBe(5_001_000);
  });
});

describe('the tokens of a VM', () => {
  it('go on where its last keeper ended, and far above where nobody knows that', () => {
    {
      using database = StateDatabase.open(path);
      const tokens = new VmTokens(database);
      expect(tokens.begin('a')).toBe(0);
      tokens.note('a', 2);
      // Read again from a journal: it does not go back.
      tokens.note('a', 1);
      tokens.end('a', 4);
      expect(tokens.begin('a')).toBe(4);
    }
    using database = StateDatabase.open(path);
    const tokens = new VmTokens(database);
    // The keeper that began above 4 is gone, and so is what it knew.
    expect(tokens.begin('a')).toBe(1_000_004);
    tokens.end('a', 1_000_006);
    // The last events of a keeper may be read after its end was noted.
    tokens.note('a', 1_000_006);
    expect(tokens.begin('a')).toBe(1_000_006);
    expect(tokens.begin('b')).toBe(0);
    tokens.forget('a');
    expect(tokens.begin('a')).toBe(0);
  });

  const DAY_MS = 24 * 3600 * 1000;

  it('forgets what is too old or too many, and not more', () => {
    let wallMs = 100 * DAY_MS;
    using database = StateDatabase.open(path);
    const log = new EventLog(database, {
      clock: { ...clock, wallMs: () => wallMs },
      tokens: new VmTokens(database),
    });
    const kinds = () => log.since(0, { limit: 10_000, vm: undefined }).map(({ kind }) => kind);
    log.publish('old');
    wallMs += 2 * DAY_MS;
    for (let index = 0; index < 5; index += 1) log.publish(`young-${index}`);
    log.retain({ retentionDays: 2, retentionMax: 1000 });
    expect(kinds()).toHaveLength(6);
    log.retain({ retentionDays: 1, retentionMax: 1000 });
    expect(kinds()).toEqual([0, 1, 2, 3, 4].map((index) => `young-${index}`));
    log.retain({ retentionDays: 1, retentionMax: 2 });
    expect(kinds()).toEqual(['young-3', 'young-4']);
    wallMs += 2 * DAY_MS;
    log.retain({ retentionDays: 1, retentionMax: 2 });
    expect(kinds()).toEqual([]);
    log.publish('numbered on');
    expect(log.since(0, { limit: 10, vm: undefined })).toMatchObject([{ id: 7, kind: 'numbered on' }]);
  });

  it('forgets very many piece by piece', () => {
    using database = StateDatabase.open(path);
    const log = new EventLog(database, { clock, tokens: new VmTokens(database) });
    const count = () => Number(database.sql.prepare('SELECT count(*) AS n FROM events').get()?.n);
    database.transaction(() => {
      for (let index = 1; index < 12_000; index += 1)
        database.sql.exec(
          `INSERT INTO events (time, kind, facts) VALUES ('2026-01-01T00:00:00.000Z', 'x', '{}')`,
        );
    });
    log.retain({ retentionDays: 36_500, retentionMax: 1000 });
    expect(count()).toBe(6999);
    log.forgetWhenDue();
    log.forgetWhenDue();
    expect(count()).toBe(1000);
  });

  it('tells a reader that resumes what it has missed, once, and goes on', () => {
    using database = StateDatabase.open(path);
    const log = new EventLog(database, { clock, tokens: new VmTokens(database) });
    for (let index = 1; index <= 6; index += 1) log.publish(`event-${index}`, { vm: 'a' });
    log.retain({ retentionDays: 1, retentionMax: 2 });
    const read = (after: number) => log.since(after, { limit: 2, vm: 'a' }).map(({ id, kind }) => [id, kind]);
    const gap = [4, 'events-forgotten'];
    expect(log.since(2, { limit: 1, vm: 'a' })).toMatchObject([{ vm: null, facts: { after: 2 } }]);
    expect(read(3)).toEqual([gap, [5, 'event-5']]);
    expect(read(4)).toEqual([
      [5, 'event-5'],
      [6, 'event-6'],
    ]);
    expect(read(0)).toEqual(read(4));
    expect(read(6)).toEqual([]);
    log.publish('event-7', { vm: 'a' });
    expect(read(6)).toEqual([[7, 'event-7']]);
  });
});

it('an answer is recalled for a day', () => {
  let wallMs = 1_000_000;
  using database = StateDatabase.open(path);
  const answers = new AnswerStore(database, { clock: { ...clock, wallMs: () => wallMs } });
  const answer = { request: 'hash', status: 201, headers: { etag: '"1"' }, body: '{}' };
  answers.store('key', answer);
  expect(answers.recall('key')).toEqual(answer);
  wallMs += 24 * 3600 * 1000;
  expect(answers.recall('key')).toBeUndefined();
});
