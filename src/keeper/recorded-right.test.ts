import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import type { ActingRecord, ActingRecords, FoundRecord } from '../lease/acting-records.ts';
import { LeaseError } from '../lease/lease-error.ts';
import { RecordedRight } from './recorded-right.ts';

const VM = 'redis';
const clock = {
  nowMs: () => 0,
  wallMs: () => 0,
  after: () => () => {},
  sleep: async () => {},
};

/** What happens to one call: it is answered, never arrives, or its answer is lost. */
type Fate = 'answered' | 'unasked' | 'unanswered';

/** A store as etcd is seen over a network that loses things. */
class Store implements ActingRecords {
  record: ActingRecord | undefined;
  revision = 0;
  /** Tokens in the order in which they were given out, with who got them. */
  readonly history: ActingRecord[] = [];
  fates: Fate[] = [];

  async read(): Promise<FoundRecord | undefined> {
    this.#pass(this.fates.shift() ?? 'answered', () => {});
    return this.record && { record: this.record, revision: String(this.revision) };
  }

  async swap(_vm: string, change: { revision: string | undefined; record: ActingRecord }): Promise<boolean> {
    let swapped = false;
    this.#pass(this.fates.shift() ?? 'answered', () => {
      const now = this.revision === 0 ? undefined : String(this.revision);
      if (change.revision !== now) return;
      swapped = true;
      this.revision += 1;
      this.record = change.record;
      this.history.push(change.record);
    });
    return swapped;
  }

  close(): void {}

  #pass(fate: Fate, does: () => void): void {
    if (fate !== 'unasked') does();
    if (fate !== 'answered') throw new LeaseError('LEASE_STORE_AWAY', 'no answer');
  }
}

function optionsOf(records: Store, host: string) {
  return { records, vm: VM, host, clock: clock as never, log, failpoints: new Failpoints() };
}

const shadow = { host: 'b', session: 'one' };

describe('the right to act as a VM', () => {
  it('is held by one at a time, whatever is lost and whoever is quicker', async () => {
    const fate = fc.constantFrom<Fate>('answered', 'answered', 'unasked', 'unanswered');
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
    expect(await RecordedRight.takeOver(optionsOf(store, 'b'), { session: 'another' })).toBeUndefined();
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
