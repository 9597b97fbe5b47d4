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

describe('the right to act as a VM', () => {
  it('is held by one at a time, whatever is lost and whoever is quicker', async () => {
    const fate = fc.constantFrom<Fate>('answered', 'answered', 'unasked', 'unanswered', 'late');
    await fc.assert(
      fc.asyncProperty(fc.array(fate, { maxLength: 12 }), fc.boolean(), async (fates, shadowFirst) => {
        const store = new Store();
        const right = await RecordedRight.begin(optionsOf(store, 'a'));
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
    const right = await RecordedRight.begin(optionsOf(store, 'a'));
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeUndefined();
    await right.arm(shadow);
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), { copy: 2 })).toBeUndefined();
    expect(await right.goAlone()).toBe('granted');
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeUndefined();
  });

  it('is not given to a second host, but to the next keeper on the same one, and to anybody after a release', async () => {
    const store = new Store();
    const first = await RecordedRight.begin(optionsOf(store, 'a'));
    await expect(RecordedRight.begin(optionsOf(store, 'b'))).rejects.toMatchObject({
      code: 'KEEPER_SUPERSEDED',
    });
    const second = await RecordedRight.begin(optionsOf(store, 'a'));
    expect(await first.goAlone()).toBe('superseded');
    await second.release();
    expect((await RecordedRight.begin(optionsOf(store, 'b'))).token).toBe(3);
  });

  it('is lost to a shadow that was quicker: whoever held it learns so', async () => {
    const store = new Store();
    const right = await RecordedRight.begin(optionsOf(store, 'a'));
    await right.arm(shadow);
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), shadow)).toBeDefined();
    expect(await right.goAlone()).toBe('superseded');
    // A keeper that is gone has nothing to give back.
    await right.release();
    expect(store.record).toMatchObject({ holder: 'b', mode: 'alone' });
  });
});
