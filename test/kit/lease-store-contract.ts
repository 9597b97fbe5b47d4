import { expect, it } from 'vitest';
import type { LeaseRecord } from '../../src/lease/lease-record.ts';
import type { LeaseStore } from '../../src/lease/lease-store.ts';

/** A store under test, and others who use the same records. */
export interface StoreSetting {
  readonly store: LeaseStore;
  /** Another process, or another host, as far as the store can tell. */
  readonly open: () => LeaseStore;
  /** Resolves when a hold that began before is over. */
  readonly holdPasses: () => Promise<void>;
}

export function record(token: number, change: Partial<LeaseRecord> = {}): LeaseRecord {
  return { token, holder: 'A', mode: 'alone', shadow: undefined, ...change };
}

let vms = 0;

/** A name that no other test uses. */
function vm(): string {
  vms += 1;
  return `vm-${vms}`;
}

/** What every store does. `setting` is asked once for each test. */
export function itIsALeaseStore(setting: () => StoreSetting): void {
  itComparesAndSwaps(setting);
  itKeepsHolds(setting);

  it('tells those who watch when another writes', async () => {
    const { store, open } = setting();
    const name = vm();
    const { promise, resolve } = Promise.withResolvers<void>();
    using _watch = store.watch(name, () => {
      void store.read(name).then(({ record }) => record && resolve());
    });
    await using other = open();
    await write(other, name, { expectedRevision: 0, record: record(1) });
    await promise;
  });

  it('takes no name that could mean another key', async () => {
    const { store } = setting();
    await expect(store.read('../other')).rejects.toMatchObject({ code: 'LEASE_STORE_UNUSABLE' });
    await expect(store.read('')).rejects.toMatchObject({ code: 'LEASE_STORE_UNUSABLE' });
  });
}

function itComparesAndSwaps(setting: () => StoreSetting): void {
  it('has no record at first, and revision 0', async () => {
    expect(await setting().store.read(vm())).toEqual({ record: undefined, revision: 0, isHeld: false });
  });

  it('writes where the revision is the expected one, and everybody reads it', async () => {
    const { store, open } = setting();
    const name = vm();
    const shadow = { host: 'B', copy: 3, state: 'fresh' } as const;
    const outcome = await write(store, name, { expectedRevision: 0, record: record(1, { shadow }) });
    expect(outcome).toEqual({ kind: 'swapped', revision: expect.any(Number) });
    await using other = open();
    expect(await other.read(name)).toMatchObject({
      record: record(1, { shadow }),
      revision: outcome.kind === 'swapped' ? outcome.revision : 0,
      isHeld: true,
    });
  });

  it('writes nothing where it is another one, and says what is there', async () => {
    const { store } = setting();
    const name = vm();
    await write(store, name, { expectedRevision: 0, record: record(1) });
    const stored = await store.read(name);
    expect(await write(store, name, { expectedRevision: 0, record: record(9) })).toEqual({
      kind: 'lost',
      stored,
    });
    expect(await store.read(name)).toEqual(stored);
  });

  it('keeps records of VMs apart', async () => {
    const { store } = setting();
    const [one, other] = [vm(), vm()];
    await write(store, one, { expectedRevision: 0, record: record(5) });
    expect(await store.read(other)).toMatchObject({ record: undefined, isHeld: false });
  });

  it('gives every token to one of many who want it', async () => {
    const { open } = setting();
    const name = vm();
    const won = new Map<number, string>();
    await Promise.all(['A', 'B', 'C', 'D'].map((holder) => race(open, { name, holder, won })));
    expect([...won.keys()].sort((a, b) => a - b)).toEqual(
      Array.from({ length: 20 }, (_, index) => index + 1),
    );
  });
}

function itKeepsHolds(setting: () => StoreSetting): void {
  it('refuses what may be written only when nobody holds it, until the hold is over', async () => {
    const { store, holdPasses } = setting();
    const name = vm();
    await write(store, name, { expectedRevision: 0, record: record(1) });
    const { revision: expectedRevision } = await store.read(name);
    const taking = { expectedRevision, record: record(2, { holder: 'B' }), onlyIfUnheld: true };
    expect(await store.swap(name, taking)).toMatchObject({ kind: 'lost', stored: { isHeld: true } });
    await holdPasses();
    expect(await store.read(name)).toMatchObject({ record: record(1), isHeld: false });
    expect(await store.swap(name, taking)).toMatchObject({ kind: 'swapped' });
    expect(await store.read(name)).toMatchObject({ record: { token: 2, holder: 'B' }, isHeld: true });
  });

  it('ends the hold with "in sync", which is never over by itself', async () => {
    const { store } = setting();
    const name = vm();
    await write(store, name, { expectedRevision: 0, record: record(1) });
    const { revision: expectedRevision } = await store.read(name);
    await write(store, name, { expectedRevision, record: record(1, { mode: 'in-sync' }) });
    expect(await store.read(name)).toMatchObject({ record: { mode: 'in-sync' }, isHeld: false });
    expect(await store.renew(name, { token: 1 })).toBe('refused');
  });

  it('renews the hold of the token that has it, and of no other', async () => {
    const { store, holdPasses } = setting();
    const name = vm();
    expect(await store.renew(name, { token: 1 })).toBe('refused');
    await write(store, name, { expectedRevision: 0, record: record(2) });
    expect(await store.renew(name, { token: 1 })).toBe('refused');
    expect(await store.renew(name, { token: 2 })).toBe('renewed');
    expect(await store.renew(name, { token: 2 })).toBe('renewed');
    await holdPasses();
    expect(await store.renew(name, { token: 2 })).toBe('refused');
  });
}

async function write(
  store: LeaseStore,
  vm: string,
  { expectedRevision, record }: { expectedRevision: number; record: LeaseRecord },
) {
  return await store.swap(vm, { expectedRevision, record, onlyIfUnheld: false });
}

/** Takes token after token, together with others, until twenty are gone. */
async function race(
  open: () => LeaseStore,
  { name, holder, won }: { name: string; holder: string; won: Map<number, string> },
): Promise<void> {
  await using store = open();
  for (;;) {
    const { record: now, revision: expectedRevision } = await store.read(name);
    const token = (now?.token ?? 0) + 1;
    if (token > 20) return;
    const outcome = await write(store, name, { expectedRevision, record: record(token, { holder }) });
    if (outcome.kind !== 'swapped') continue;
    expect(won.get(token), `who has token ${token} already`).toBeUndefined();
    won.set(token, holder);
  }
}
