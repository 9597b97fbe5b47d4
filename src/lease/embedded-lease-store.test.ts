import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { itIsALeaseStore, record } from '../../test/kit/lease-store-contract.ts';
import { EmbeddedLeaseStore } from './embedded-lease-store.ts';

const HOLD_TTL_MS = 2_000;

let folder: string;
let store: EmbeddedLeaseStore;
let nowMs: number;
let bootId: string;

const open = () =>
  EmbeddedLeaseStore.open(join(folder, 'leases.db'), {
    holdTtlMs: HOLD_TTL_MS,
    boot: { timeMs: () => nowMs, id: () => bootId },
    watchEveryMs: 5,
  });

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-lease-'));
  nowMs = 50_000;
  bootId = 'first';
  store = open();
});

afterEach(async () => {
  await store[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

describe('a store in a file', () => {
  itIsALeaseStore(() => ({
    store,
    open,
    holdPasses: async () => {
      nowMs += HOLD_TTL_MS;
    },
  }));

  it('keeps a hold until its time is over, and not a moment longer', async () => {
    await store.swap('vm', { expectedRevision: 0, record: record(1), onlyIfUnheld: false });
    nowMs += HOLD_TTL_MS - 1;
    expect(await store.read('vm')).toMatchObject({ isHeld: true });
    nowMs += 1;
    expect(await store.read('vm')).toMatchObject({ isHeld: false });
  });

  it('knows that whoever held something before the machine was started anew is gone, and keeps the token', async () => {
    await store.swap('vm', { expectedRevision: 0, record: record(7), onlyIfUnheld: false });
    bootId = 'second';
    nowMs = 10;
    await using after = open();
    expect(await after.read('vm')).toMatchObject({ record: record(7), isHeld: false });
  });

  it('did nothing when another holds the file, and says so', async () => {
    await using other = EmbeddedLeaseStore.open(join(folder, 'leases.db'), {
      holdTtlMs: HOLD_TTL_MS,
      boot: { timeMs: () => nowMs, id: () => bootId },
    });
    const sql = new DatabaseSync(join(folder, 'leases.db'));
    sql.exec('BEGIN IMMEDIATE');
    const write = { expectedRevision: 0, record: record(1), onlyIfUnheld: false };
    expect(await other.swap('vm', write)).toEqual({ kind: 'unreachable' });
    await expect(other.renew('vm', { token: 1 })).rejects.toMatchObject({ code: 'LEASE_STORE_AWAY' });
    sql.exec('ROLLBACK');
    sql.close();
    expect(await other.swap('vm', write)).toMatchObject({ kind: 'swapped' });
  });

  it('lets nobody act on a record that it does not understand', async () => {
    await store.swap('vm', { expectedRevision: 0, record: record(1), onlyIfUnheld: false });
    const sql = new DatabaseSync(join(folder, 'leases.db'));
    sql.exec(`UPDATE leases SET record = '{"token": 2, "holder": "A", "mode": "both"}'`);
    sql.close();
    await expect(store.read('vm')).rejects.toMatchObject({ code: 'LEASE_RECORD_UNREADABLE' });
    const write = { expectedRevision: 1, record: record(3), onlyIfUnheld: false };
    await expect(store.swap('vm', write)).rejects.toMatchObject({ code: 'LEASE_RECORD_UNREADABLE' });
  });

  it('is refused where it cannot be', () => {
    expect(() =>
      EmbeddedLeaseStore.open(join(folder, 'nowhere', 'leases.db'), {
        holdTtlMs: HOLD_TTL_MS,
        boot: { timeMs: () => nowMs, id: () => bootId },
      }),
    ).toThrow(expect.objectContaining({ code: 'LEASE_STORE_UNUSABLE' }));
  });
});
