import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import { leasePolicy } from '../lease/lease-state.ts';
import { type Beginning, RecordedRight } from './recorded-right.ts';
import { type Fate, QuickTime, Store, TTL_MS } from './recorded-right-fixture.ts';

const VM = 'redis';
const policy = leasePolicy({ holdTtlMs: TTL_MS });

let time: QuickTime;
let rights = new AsyncDisposableStack();

/** As if their keepers were gone. */
async function endAll(): Promise<void> {
  await rights.disposeAsync();
  rights = new AsyncDisposableStack();
}

beforeEach(() => {
  time = new QuickTime();
});
afterEach(endAll);

function optionsOf(store: Store, host: string) {
  const { clock } = time;
  const bootTimeMs = () => clock.nowMs();
  return {
    store: store.seenBy(host),
    vm: VM,
    host,
    policy,
    clock,
    bootTimeMs,
    log,
    failpoints: new Failpoints(),
  };
}

async function begin(store: Store, host: string, beginning: Partial<Beginning> = {}): Promise<RecordedRight> {
  return rights.use(await RecordedRight.begin(optionsOf(store, host), { ...ORPHAN, ...beginning }));
}

async function takeOver(store: Store, host: string, shadow: { copy: number }) {
  const taken = await RecordedRight.takeOver(optionsOf(store, host), shadow);
  return taken === undefined ? undefined : rights.use(taken.right);
}

const shadow = { host: 'b', copy: 1 };
const nothing = () => {};
const NOBODY = {
  onDoubt: nothing,
  onEnded: nothing,
  onRegained: nothing,
  onStore: nothing,
  onSure: nothing,
  onSuperseded: nothing,
};
/** What the keeper before left still stands here. */
const ORPHAN = { fromScratch: false, anew: false };
const SCRATCH = { fromScratch: true, anew: false };

describe('the right to act as a VM', () => {
  it('is held by one at a time, whatever is lost and whoever is quicker', async () => {
    const fate = fc.constantFrom<Fate>('answered', 'answered', 'unasked', 'unanswered', 'late');
    await fc.assert(
      fc.asyncProperty(fc.array(fate, { maxLength: 12 }), fc.boolean(), async (fates, shadowFirst) => {
        const store = new Store(time.clock);
        const right = await begin(store, 'a');
        await right.arm(shadow);
        store.fates = [...fates];
        const claims = [
          () => right.goAlone().then((outcome) => outcome === 'granted'),
          () => takeOver(store, 'b', shadow).then((taken) => taken !== undefined),
        ];
        if (shadowFirst) claims.reverse();
        const granted = await Promise.all(claims.map((claim) => claim()));
        expect(granted.filter(Boolean)).toHaveLength(1);
        const winner = granted[shadowFirst ? 1 : 0] ? 'a' : 'b';
        expect(store.record).toMatchObject({ holder: winner, mode: 'alone' });
        const tokens = store.history.map(({ token }) => token);
        expect(tokens).toEqual(tokens.toSorted((one, other) => one - other));
        await endAll();
      }),
    );
  });

  it('does not pass to a shadow of another connection, nor of a VM that has gone on alone', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    expect(await takeOver(store, 'b', shadow)).toBeUndefined();
    await right.arm(shadow);
    expect(await takeOver(store, 'b', { copy: 2 })).toBeUndefined();
    expect(await right.goAlone()).toBe('granted');
    expect(await takeOver(store, 'b', shadow)).toBeUndefined();
  });

  it('is not given to a second host, but to the next keeper on the same one, and to anybody after a release', async () => {
    const store = new Store(time.clock);
    const first = await begin(store, 'a');
    await expect(begin(store, 'b')).rejects.toMatchObject({
      code: 'KEEPER_SUPERSEDED',
    });
    await first[Symbol.asyncDispose]();
    const second = await begin(store, 'a');
    expect(second.token).toBe(2);
    await second.release();
    expect((await begin(store, 'b')).token).toBe(4);
  });

  it('is lost to a shadow that was quicker: whoever held it learns so', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    expect(await takeOver(store, 'b', shadow)).toBeDefined();
    expect(await right.goAlone()).toBe('superseded');
    // A keeper that is gone has nothing to give back.
    await right.release();
    expect(store.record).toMatchObject({ holder: 'b', mode: 'alone' });
  });

  it('is left to a shadow in sync by a host that has nothing of the VM, unless a person knows better', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    await right[Symbol.asyncDispose]();
    const scratch = { fromScratch: true, anew: false };
    // Nobody but a person can know that both are gone: each is told of the other, and what to type then.
    const hint = expect.stringContaining('--anew');
    await expect(begin(store, 'a', scratch)).rejects.toMatchObject({
      code: 'KEEPER_SUPERSEDED',
      message: expect.stringContaining(`the shadow of ${VM} on b acts, or will`),
      ...{ hint, facts: { host: 'b' } },
    });
    await expect(begin(store, 'b', scratch)).rejects.toMatchObject({
      code: 'KEEPER_SUPERSEDED',
      message: expect.stringContaining(`a acts as ${VM}, or did until`),
      ...{ hint, facts: { host: 'a' } },
    });
    expect((await begin(store, 'a', { ...scratch, anew: true })).token).toBe(2);
  });

  it('to be taken over is not written down late, for a shadow that was given up meanwhile', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    store.fates = ['unasked'];
    const late = right.arm(shadow);
    expect(await right.goAlone()).toBe('granted');
    await expect(late).rejects.toMatchObject({ code: 'KEEPER_SUPERSEDED' });
    expect(store.record).toMatchObject({ mode: 'alone' });
    expect(await takeOver(store, 'b', shadow)).toBeUndefined();
  });

  it('is left to the shadow for a while by who has nothing to go on with', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    const yielding = right.yieldThenGoAlone(1000);
    expect(await takeOver(store, 'b', shadow)).toBeDefined();
    expect(await yielding).toBe('superseded');
    const lonely = new Store(time.clock);
    const alone = await begin(lonely, 'a');
    await alone.arm(shadow);
    const sinceMs = time.clock.nowMs();
    expect(await alone.yieldThenGoAlone(1000)).toBe('granted');
    expect(time.clock.nowMs() - sinceMs).toBeGreaterThanOrEqual(1000);
  });

  it('of who is alone ends before another host may have it, and goes on when nobody took it', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    const told: string[] = [];
    right.watch({
      onEnded: () => told.push('ended'),
      onRegained: () => told.push('regained'),
      onSuperseded: () => told.push('superseded'),
      onSure: () => told.push('sure'),
      onDoubt: (what) => told.push(what),
      onStore: (...contact) => told.push(contact.join(': ')),
    });
    store.isAway = true;
    await until(() => right.hasEnded);
    expect(time.clock.nowMs()).toBeLessThan(TTL_MS * 2);
    expect(store.isHeld).toBe(true);
    expect(right.mayRelease('unknown')).toBe(false);
    expect(right.mayRelease('acknowledged')).toBe(false);
    store.isAway = false;
    await right.regained();
    expect(right.mayRelease('unknown')).toBe(true);
    expect(told).toEqual(['away: no answer', 'ended', 'back: ', 'regained']);
    expect(right.status()).toMatchObject({ token: 2, mode: 'alone', storeAwayMs: null });
  });

  it('that has ended passes to a host that waited for it, and who had it learns so', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    const superseded = Promise.withResolvers<void>();
    right.watch({ ...NOBODY, onSuperseded: superseded.resolve });
    store.isDeafTo = 'a';
    const waits: string[] = [];
    const other = await begin(store, 'b', { onWait: (holder) => void waits.push(holder) });
    expect(waits).toEqual(['a']);
    expect(other.follows).toBe('a');
    expect(right.mayRelease('unknown')).toBe(false);
    store.isDeafTo = undefined;
    await superseded.promise;
    expect(store.record).toMatchObject({ holder: 'b', mode: 'alone', token: 2 });
  });

  it('is waited for while the store is away, and whoever wants it is told so once', async () => {
    const store = new Store(time.clock);
    store.isAway = true;
    const told: string[] = [];
    const beginning = begin(store, 'a', { onStoreAway: (why) => void told.push(why) });
    await time.clock.sleep(TTL_MS);
    expect(told).toEqual(['no answer']);
    store.isAway = false;
    expect((await beginning).token).toBe(1);
    expect(told).toHaveLength(1);
  });

  it('in sync does not end, however long the store is away', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    store.isAway = true;
    await time.clock.sleep(100 * TTL_MS);
    expect(right.mayRelease('acknowledged')).toBe(true);
    expect(right.mayRelease('unknown')).toBe(false);
    expect(right.status()).toMatchObject({ mode: 'in-sync', endsInMs: null });
    expect(right.status().storeAwayMs).toBeGreaterThan(TTL_MS);
  });

  it('lets nothing out that its shadow holds from when that may have taken over, until it is heard again', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    const sure: string[] = [];
    right.watch({ ...NOBODY, onSure: () => sure.push('sure'), onDoubt: (what) => sure.push(what) });
    await right.arm(shadow);
    const mayRelease = () => right.mayRelease('acknowledged');
    expect(mayRelease()).toBe(true);
    const heard = () => right.noteHeard(shadow, { sentMs: time.clock.nowMs(), silenceMinMs: 300 });
    heard();
    await time.clock.sleep(200);
    expect(mayRelease()).toBe(true);
    // Without a word of etcd: it need not be there.
    store.isAway = true;
    await time.clock.sleep(100);
    expect(mayRelease()).toBe(false);
    right.noteHeard(shadow, { sentMs: time.clock.nowMs() - 300, silenceMinMs: 300 });
    expect([mayRelease(), sure]).toEqual([false, []]);
    heard();
    expect([mayRelease(), sure]).toEqual([true, ['sure']]);
    // Another copy is another keeper.
    right.noteHeard({ copy: 2 }, { sentMs: 0, silenceMinMs: 300 });
    await time.clock.sleep(100);
    expect(mayRelease()).toBe(true);
  });

  describe('of which the shadow is so far away that its word comes too late', () => {
    const FAR_MS = 400;
    let store: Store;
    let right: RecordedRight;
    /** How long the store takes to answer. */
    let answerMs: number;
    /** Whether what waited could leave, each time that it was to; and what was told. */
    let left: boolean[];
    let told: [string, number][];
    let releases: PromiseWithResolvers<void>;

    const mayRelease = () => right.mayRelease('acknowledged');
    async function wordComes(): Promise<void> {
      await time.clock.sleep(1);
      const sentMs = time.clock.nowMs();
      await time.clock.sleep(FAR_MS);
      right.noteHeard(shadow, { sentMs, silenceMinMs: 300 });
    }

    beforeEach(async () => {
      store = new Store(time.clock);
      answerMs = 5;
      [left, told, releases] = [[], [], Promise.withResolvers()];
      const options = optionsOf(store, 'a');
      const read = async (vm: string) => {
        const stored = await options.store.read(vm);
        await time.clock.sleep(answerMs);
        return stored;
      };
      const slow = { ...options, store: { ...options.store, read } };
      right = rights.use(await RecordedRight.begin(slow, ORPHAN));
      const onSure = () => {
        left.push(mayRelease());
        releases.resolve();
        releases = Promise.withResolvers();
      };
      right.watch({ ...NOBODY, onSure, onDoubt: (what, forMs) => void told.push([what, forMs]) });
      await right.arm(shadow);
      await wordComes();
      expect(mayRelease()).toBe(false);
    });

    it.each([5, 350, 2500])(
      'leaves each time that it is on record who acts, when etcd takes %d ms to say so',
      async (ms) => {
        answerMs = ms;
        for (const times of [1, 2, 3]) {
          const { promise } = releases;
          await wordComes();
          await promise;
          expect(left).toEqual(Array.from({ length: times }, () => true));
          // For what was acknowledged before, once.
          expect(mayRelease()).toBe(false);
          expect(right.status().outputWaitsMs).toBe(0);
        }
        // Once, however long this goes on.
        expect(told.map(([what]) => what)).toEqual(ms > 1000 ? ['waits', 'waited'] : []);
      },
    );

    it('waits while nobody says who acts, which is told and shown, and leaves when somebody does', async () => {
      store.isAway = true;
      for (let words = 0; words < 5; words += 1) await wordComes();
      expect([left, told.length]).toEqual([[], 1]);
      expect(told[0]).toEqual(['waits', expect.toSatisfy((ms) => ms >= 1000)]);
      expect(right.status()).toMatchObject({
        outputWaitsMs: 5 * (FAR_MS + 1),
        storeAwayMs: expect.any(Number),
      });
      store.isAway = false;
      const { promise } = releases;
      await wordComes();
      await promise;
      expect([left, told.at(-1)?.[0]]).toEqual([[true], 'waited']);
    });

    it('stays when the answer is one of long ago, as this host stood still meanwhile, and when the shadow acts', async () => {
      answerMs = 3500;
      await wordComes();
      await time.clock.sleep(4000);
      expect(left).toEqual([]);
      answerMs = 5;
      expect(await takeOver(store, 'b', shadow)).toBeDefined();
      await wordComes();
      await time.clock.sleep(1000);
      expect([left, mayRelease()]).toEqual([[], false]);
      // It never left.
      expect([told.map(([what]) => what), right.status().outputWaitsMs]).toEqual([['waits'], null]);
    });

    it('leaves when it is on record that there is no shadow, and of the next one nothing is told that was of this one', async () => {
      await time.clock.sleep(500);
      expect(await right.goAlone()).toBe('granted');
      expect([left, told, right.status().outputWaitsMs]).toEqual([[true], [], null]);
      const next = { host: 'b', copy: 2 };
      await right.arm(next);
      const heard = () => right.noteHeard(next, { sentMs: time.clock.nowMs(), silenceMinMs: 300 });
      heard();
      await time.clock.sleep(300);
      expect(mayRelease()).toBe(false);
      await time.clock.sleep(150);
      heard();
      expect([left, told]).toEqual([[true, true], [['waited', 150]]]);
    });
  });

  it('lets everything out at once when its shadow has promised not to act, and is alone when that can be written', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    store.isAway = true;
    right.dismissed(shadow);
    await time.clock.sleep(10 * TTL_MS);
    expect(right.mayRelease('unknown')).toBe(true);
    store.isAway = false;
    await until(() => store.record?.mode === 'alone');
  });

  it('of a VM that is suspended is given to the host with its state only, which learns whether that is the newest', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    expect(right.suspended).toBe(undefined);
    store.fates = ['answered', 'unanswered', 'unasked'];
    expect(await right.suspend()).toBe('granted');
    const { token } = right;
    expect(right.suspended).toBe(token);
    expect(await takeOver(store, 'b', shadow)).toBeUndefined();
    await right.release({ keepsState: true });
    await expect(begin(store, 'b')).rejects.toMatchObject({
      code: 'KEEPER_SUSPENDED_ELSEWHERE',
      facts: { host: 'a' },
    });
    const failed = await begin(store, 'a', SCRATCH);
    expect(failed.suspended).toBe(token);
    // The start came to nothing, and the state is still there.
    await failed.release({ keepsState: true });
    const again = await begin(store, 'a', SCRATCH);
    expect(again.suspended).toBe(token);
    again.forgetState();
    await again.arm(shadow);
    expect(again.suspended).toBe(undefined);
    expect(store.record).toMatchObject({ mode: 'in-sync' });
    expect(store.record?.suspended).toBe(undefined);
  });

  it('is not taken by another host from one that was killed while its state became whole, however long that is ago', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    expect(await right.suspend()).toBe('granted');
    await right[Symbol.asyncDispose]();
    await time.clock.sleep(10 * TTL_MS);
    expect(store.isHeld).toBe(false);
    await expect(begin(store, 'b', SCRATCH)).rejects.toMatchObject({ code: 'KEEPER_SUSPENDED_ELSEWHERE' });
    expect((await begin(store, 'a')).suspended).toBe(right.token);
  });

  it('of a VM that writes to disks is had elsewhere by a person only, who knows that the newest are lost', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    const there = { ...SCRATCH, writesDisks: true };
    await expect(begin(store, 'b', there)).rejects.toMatchObject({ code: 'KEEPER_SUPERSEDED' });
    await right[Symbol.asyncDispose]();
    await time.clock.sleep(10 * TTL_MS);
    const isElsewhere = { code: 'KEEPER_DISKS_ELSEWHERE', facts: { host: 'a' } };
    await expect(begin(store, 'b', there)).rejects.toMatchObject(isElsewhere);
    const again = await begin(store, 'a', there);
    await again.release();
    expect(store.record).toMatchObject({ holder: 'a', mode: 'ended' });
    await expect(begin(store, 'b', there)).rejects.toMatchObject(isElsewhere);
    expect(store.record).toMatchObject({ holder: 'a', mode: 'ended' });
    expect((await begin(store, 'b', { ...there, anew: true })).follows).toBe('a');
  });

  it('may be had elsewhere again when the state is used, or did not come about', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.suspend();
    right.forgetState();
    await until(() => store.record?.suspended === undefined);
    expect(right.mayRelease('unknown')).toBe(true);
    await right[Symbol.asyncDispose]();
    expect((await begin(store, 'b')).follows).toBe('a');
  });

  it('is worth more than a state that was left, once somebody has begun anew elsewhere', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.suspend();
    await right.release({ keepsState: true });
    const other = await begin(store, 'b', { fromScratch: true, anew: true });
    await other.release();
    expect((await begin(store, 'a', SCRATCH)).suspended).toBe(undefined);
  });

  it('cannot be kept for a state by who has lost it', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    expect(await takeOver(store, 'b', shadow)).toBeDefined();
    expect(await right.suspend()).toBe('superseded');
    expect(store.record).toMatchObject({ holder: 'b' });
    expect(store.record?.suspended).toBe(undefined);
  });

  it('says nothing of a state that nobody waits for any more', async () => {
    const store = new Store(time.clock);
    const right = await begin(store, 'a');
    await right.arm(shadow);
    store.isAway = true;
    const gaveUp = new Error('nobody waits');
    const aborted = new AbortController();
    const suspending = right.suspend(aborted.signal);
    aborted.abort(gaveUp);
    await expect(suspending).rejects.toBe(gaveUp);
    store.isAway = false;
    expect(await right.goAlone()).toBe('granted');
    await until(() => right.status().mode === 'alone');
    expect(store.history.filter(({ suspended }) => suspended !== undefined)).toEqual([]);
  });
});

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await time.clock.sleep(10);
}
