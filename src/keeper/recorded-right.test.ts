import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import { LeaseError } from '../lease/lease-error.ts';
import type { LeaseRecord, StoredLease, SwapOutcome } from '../lease/lease-record.ts';
import type { LeaseStore, LeaseWrite } from '../lease/lease-store.ts';
import { RecordedRight } from './recorded-right.ts';

const VM = 'redis';
const clock = {
  nowMs: () => 0,
  wallMs: () => 0,
  after: () => () => {},
  sleep: async () => {},
};

/** What happens to one call: it is answered, never leaves, its answer is lost, or it arrives later. */
type Fate = 'answered' | 'unasked' | 'unanswered' | 'late';

/** A store as etcd is seen over a network that loses things. */
class Store implements LeaseStore {
  record: LeaseRecord | undefined;
  revision = 0;
  /** Records in the order in which they were written. */
  readonly history: LeaseRecord[] = [];
  fates: Fate[] = [];
  /** A write that did not arrive when it was sent. */
  #late: LeaseWrite | undefined;

  async read(): Promise<StoredLease> {
    const fate = this.#nextFate();
    if (fate !== 'answered') throw new LeaseError('LEASE_STORE_AWAY', 'no answer');
    return this.#stored();
  }

  async swap(_vm: string, write: LeaseWrite): Promise<SwapOutcome> {
    switch (this.#nextFate()) {
      case 'answered':
        return this.#carryOut(write)
          ? { kind: 'swapped', revision: this.revision }
          : { kind: 'lost', stored: this.#stored() };
      case 'unanswered':
        this.#carryOut(write);
        return { kind: 'unknown' };
      case 'late':
        this.#late = write;
        return { kind: 'unknown' };
      case 'unasked':
        return { kind: 'unreachable' };
    }
  }

  async renew(): Promise<'refused'> {
    return 'refused';
  }

  watch(): Disposable {
    return { [Symbol.dispose]: () => {} };
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  /** With the next call arrives what is late. */
  #nextFate(): Fate {
    if (this.#late !== undefined) this.#carryOut(this.#late);
    this.#late = undefined;
    return this.fates.shift() ?? 'answered';
  }

  #carryOut({ expectedRevision, record }: LeaseWrite): boolean {
    if (expectedRevision !== this.revision) return false;
    this.revision += 1;
    this.record = record;
    this.history.push(record);
    return true;
  }

  #stored(): StoredLease {
    return { record: this.record, revision: this.revision, isHeld: false };
  }
}

function optionsOf(store: Store, host: string) {
  return { store, vm: VM, host, clock: clock as never, log, failpoints: new Failpoints() };
}

const shadow = { host: 'b', copy: 1 };
/** What the keeper before left still stands here. */
const ORPHAN = { fromScratch: false, anew: false };

describe('the right to act as a VM', () => {
  it('is held by one at a time, whatever is lost and whoever is quicker', async () => {
    const fate = fc.constantFrom<Fate>('answered', 'answered', 'unasked', 'unanswered', 'late');
    await fc.assert(
      fc.asyncProperty(fc.array(fate, { maxLength: 12 }), fc.boolean(), async (fates, shadowFirst) => {
        const store = new Store();
        const right = await RecordedRight.begin(optionsOf(store, 'a'), ORPHAN);
        await right.arm(shadow);
        store.fates = [...fates];
        const claims = [
          () => right.goAlone().then((outcome) => outcome === 'granted'),
          () => RecordedRight.takeOver(optionsOf(store, 'b'), shadow).then((taken) => taken !== undefined),
        ];
        if (shadowFirst) claims.reverse();
        const granted = await Promise.all(claims.map((claim) => claim()));
        expect(granted.filter(Boolean)).toHaveLength(1);
        const winner = granted[shadowFirst ? 1 : 0] ? 'a' : 'b';
        expect(store.record).toMatchObject({ holder: winner, mode: 'alone' });
        const tokens = store.history.map(({ token }) => token);
        expect(tokens).toEqual(tokens.toSorted((one, other) => one - other));
      }),
    );
  });

  it('does not pass to a shadow of another connection, nor of a VM that has gone on alone', async () => {
    const store = new Store();
    const right = await RecordedRight.begin(optionsOf(store, 'a'), ORPHAN);
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeUndefined();
    await right.arm(shadow);
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), { copy: 2 })).toBeUndefined();
    expect(await right.goAlone()).toBe('granted');
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeUndefined();
  });

  it('is not given to a second host, but to the next keeper on the same one, and to anybody after a release', async () => {
    const store = new Store();
    const first = await RecordedRight.begin(optionsOf(store, 'a'), ORPHAN);
    await expect(RecordedRight.begin(optionsOf(store, 'b'), ORPHAN)).rejects.toMatchObject({
      code: 'KEEPER_SUPERSEDED',
    });
    const second = await RecordedRight.begin(optionsOf(store, 'a'), ORPHAN);
    expect(await first.goAlone()).toBe('superseded');
    await second.release();
    expect((await RecordedRight.begin(optionsOf(store, 'b'), ORPHAN)).token).toBe(4);
  });

  it('is lost to a shadow that was quicker: whoever held it learns so', async () => {
    const store = new Store();
    const right = await RecordedRight.begin(optionsOf(store, 'a'), ORPHAN);
    await right.arm(shadow);
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeDefined();
    expect(await right.goAlone()).toBe('superseded');
    // A keeper that is gone has nothing to give back.
    await right.release();
    expect(store.record).toMatchObject({ holder: 'b', mode: 'alone' });
  });

  it('is left to a shadow in sync by a host that has nothing of the VM, unless a person knows better', async () => {
    const store = new Store();
    const right = await RecordedRight.begin(optionsOf(store, 'a'), ORPHAN);
    await right.arm(shadow);
    const scratch = { fromScratch: true, anew: false };
    await expect(RecordedRight.begin(optionsOf(store, 'a'), scratch)).rejects.toMatchObject({
      code: 'KEEPER_SUPERSEDED',
      facts: { host: 'b' },
    });
    expect((await RecordedRight.begin(optionsOf(store, 'a'), { ...scratch, anew: true })).token).toBe(2);
  });

  it('to be taken over is not written down late, for a shadow that was given up meanwhile', async () => {
    const store = new Store();
    const right = await RecordedRight.begin(optionsOf(store, 'a'), ORPHAN);
    store.fates = ['unasked'];
    const late = right.arm(shadow);
    expect(await right.goAlone()).toBe('granted');
    await expect(late).rejects.toMatchObject({ code: 'KEEPER_SUPERSEDED' });
    expect(store.record).toMatchObject({ mode: 'alone' });
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeUndefined();
  });

  it('is left to the shadow for a while by who has nothing to go on with', async () => {
    const store = new Store();
    let nowMs = 0;
    const sleep = async (ms: number) => {
      nowMs += ms;
    };
    const slow = { ...clock, nowMs: () => nowMs, sleep };
    const options = { ...optionsOf(store, 'a'), clock: slow as never };
    const right = await RecordedRight.begin(options, ORPHAN);
    await right.arm(shadow);
    const yielding = right.yieldThenGoAlone(1000);
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeDefined();
    expect(await yielding).toBe('superseded');
    const other = await RecordedRight.begin(optionsOf(new Store(), 'a'), ORPHAN);
    expect(other.token).toBe(1);
    const lonely = new Store();
    const alone = await RecordedRight.begin({ ...options, store: lonely }, ORPHAN);
    await alone.arm(shadow);
    expect(await alone.yieldThenGoAlone(1000)).toBe('granted');
    expect(nowMs).toBeGreaterThanOrEqual(1000);
  });
});
