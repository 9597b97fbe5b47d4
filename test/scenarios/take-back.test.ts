import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { identityOf, signalNow } from '../../src/control/process-identity.ts';
import { RunDirectory } from '../../src/control/run-directory.ts';
import { runPaths } from '../../src/control/run-paths.ts';
import { QmpClient } from '../../src/qemu/qmp-client.ts';
import { KeptVm, killAt, unsafely } from '../kit/kept-vm.ts';
import { DoubleWatch, runningQemus } from '../kit/running-qemus.ts';

const DEADLINE_MS = 60_000;

let vm: KeptVm;

/** A keeper that is killed at the n-th hit of a failpoint; resolves when it is gone. */
async function keeperKilledAt(place: string, { nth = 1, meanwhile = async () => {} } = {}): Promise<void> {
  const keeper = vm.spawnKeeper({ plant: killAt(place, nth) });
  const acted = keeper
    .started()
    .then(meanwhile)
    .catch(() => {});
  expect(await keeper.exited).toBeNull();
  await acted;
  keeper.release();
}

/** With what it has to say where it failed. */
async function expectBegun(how: string): Promise<void> {
  const events = await vm.events();
  const failures = events.filter(({ kind }) => kind.endsWith('-failed')).map(({ facts }) => facts);
  expect(
    events.map(({ kind }) => kind),
    JSON.stringify(failures),
  ).toContainEqual(expect.stringMatching(`^(?:${how})$`));
}

async function expectNothingLost(connections: number): Promise<void> {
  const report = await vm.load.end();
  expect(report.errors).toEqual([]);
  expect(report.connections).toEqual({ total: connections, survived: connections });
  expect(await vm.load.verify()).toMatchObject({ lostWrites: 0, examples: [] });
  expect(await vm.isSameGuest()).toBe(true);
}

describe('a VM without a shadow whose keeper is killed', () => {
  let watch: DoubleWatch;

  beforeAll(async () => {
    vm = await KeptVm.start({ shadow: false });
    watch = new DoubleWatch(vm.memoryDirectory);
  });
  afterAll(async () => {
    watch[Symbol.dispose]();
    await vm[Symbol.asyncDispose]();
  });

  it('stands still until the next keeper takes it back: the same guest, nothing acknowledged lost', async () => {
    await vm.load.begin();
    for (let round = 0; round < 3; round++) {
      await clock.sleep(100 + Math.random() * 300);
      const { acting } = vm.record;
      await vm.killKeeper();
      await vm.untilStandsStill();
      expect(runningQemus(vm.memoryDirectory)).toEqual([]);
      expect(RunDirectory.find(vm.name)?.orphan).toEqual(acting);
      await vm.startKeeper();
      expect(acting && identityOf(acting.process.pid)).toBeUndefined();
      await expectBegun('taken-back');
    }
    await expectNothingLost(3);
  });

  it('has its clock set and its console again', async () => {
    await vm.killKeeper();
    await vm.startKeeper();
    const signal = AbortSignal.timeout(DEADLINE_MS);
    while ((await vm.status()).clock.answeredAgoMs === null) await clock.sleep(50, signal);
    expect(Math.abs(await vm.load.guestClockErrorMs())).toBeLessThan(2000);
    await vm.typeOnConsole('echo taken-$((1+1))-back', /taken-2-back/);
  });

  it.each([
    { place: 'take-back.before', how: 'taken-back' },
    { place: 'take-back.after-stop', how: 'taken-back' },
    { place: 'take-back.after-save', how: 'taken-back' },
    { place: 'take-back.before-kill', how: 'inherited' },
    { place: 'take-back.after-kill', how: 'inherited' },
    { place: 'promote.before', how: 'inherited' },
    { place: 'promote.before-load', how: 'inherited' },
    { place: 'promote.after-load', how: 'inherited' },
    { place: 'promote.before-cont', how: 'taken-back' },
    { place: 'promote.after', how: 'taken-back' },
  ])('loses nothing though the next keeper is killed at $place: it is $how', async ({ place, how }) => {
    await vm.load.begin();
    await vm.killKeeper();
    await keeperKilledAt(place);
    await vm.startKeeper();
    await expectBegun(how);
    await expectNothingLost(3);
  });

  it('was never doubled in all of this', () => {
    expect(watch.hasSeen).toBe(true);
    expect(watch.doubles).toEqual([]);
  });

  it('powers off, and stays off, when its guest did so while nobody kept it', async () => {
    const { acting } = vm.record;
    await vm.typeOnConsole('(sleep 2; poweroff -f) & echo going-$((1+1))-off', /going-2-off/);
    await vm.killKeeper();
    if (acting === null) throw new Error('some QEMU acted');
    const path = join(runPaths(vm.name).directory, String(acting.instance), 'qemu/qmp');
    signalNow(acting.process, 'SIGCONT');
    {
      using qmp = await QmpClient.connect(path, { deadlineMs: DEADLINE_MS, clock });
      const off = new Promise<void>((resolve) => qmp.on('SHUTDOWN', () => resolve()));
      await off;
    }
    const keeper = await vm.startKeeper();
    expect(await keeper.exited).toBe(0);
    expect(RunDirectory.find(vm.name)).toBeUndefined();
    expect(runningQemus(vm.memoryDirectory)).toEqual([]);
  });
});

describe('a VM whose keeper is killed', () => {
  const CONNECTIONS = 2;
  let watch: DoubleWatch;

  beforeAll(async () => {
    vm = await KeptVm.start({ clients: CONNECTIONS });
    watch = new DoubleWatch(vm.memoryDirectory);
  });
  afterAll(async () => {
    watch[Symbol.dispose]();
    await vm[Symbol.asyncDispose]();
  });

  /** All of them in the first epoch, before the shadow is in sync: what the guest sent had not waited for it. */
  const BEFORE_IN_SYNC = [
    'cut.before-pause',
    'cut.after-pause',
    'cut.after-scan',
    'cut.after-save',
    'cut.after-stage',
    'cut.before-resume',
    'commit.before-acknowledge',
    'commit.after-acknowledge',
  ];
  const IN_SYNC = ['commit.after-release'];
  // An epoch may be committed before QEMU has said that its guest runs again.
  const EITHER = ['cut.after-resume', 'apply.before', 'apply.after'];
  const LATER = ['cut.after-pause', 'cut.before-resume', 'commit.after-acknowledge', 'apply.middle'];

  it.each([
    ...BEFORE_IN_SYNC.map((place) => ({ place, nth: 1, how: 'taken-back' })),
    ...EITHER.map((place) => ({ place, nth: 1, how: 'taken-back|inherited' })),
    ...IN_SYNC.map((place) => ({ place, nth: 1, how: 'inherited' })),
    ...LATER.map((place) => ({ place, nth: 20, how: 'inherited' })),
  ])('at hit $nth of $place loses nothing, is $how and protected again', async ({ place, nth, how }) => {
    await vm.load.begin();
    await vm.killKeeper();
    await keeperKilledAt(place, { nth });
    await vm.startKeeper();
    await expectBegun(how);
    await vm.until('protected');
    await expectNothingLost(CONNECTIONS);
  });

  // The first hits are those of its own succession, the second ones of the planned promotion.
  it.each([
    { place: 'fence.before-kill', nth: 1, how: 'inherited' },
    { place: 'promote.before', nth: 2, how: 'inherited' },
    { place: 'promote.before-load', nth: 2, how: 'inherited' },
    { place: 'promote.after-load', nth: 2, how: 'inherited' },
    { place: 'promote.before-cont', nth: 2, how: 'taken-back' },
    { place: 'promote.after', nth: 2, how: 'taken-back' },
  ])('in a promotion, at $place, loses nothing and is $how', async ({ place, nth, how }) => {
    await vm.load.begin();
    await vm.killKeeper();
    const meanwhile = async () => {
      await vm.until('protected');
      await vm.promote();
    };
    await keeperKilledAt(place, { nth, meanwhile });
    await vm.startKeeper();
    await expectBegun(how);
    await vm.until('protected');
    await expectNothingLost(CONNECTIONS);
  });

  it('has a whole shadow after it was taken back: what was known of written pages is not trusted', async () => {
    await vm.load.begin();
    await vm.killKeeper();
    await keeperKilledAt('cut.after-scan');
    await vm.startKeeper();
    const { primary } = await vm.until('protected');
    process.kill(primary?.pid ?? 0, 'SIGKILL');
    await vm.untilPromoted();
    await vm.until('protected');
    expect(await vm.kinds()).toEqual(expect.arrayContaining(['taken-back', 'promoted']));
    await expectNothingLost(CONNECTIONS);
  });

  it('was never doubled in all of this', () => {
    expect(watch.hasSeen).toBe(true);
    expect(watch.doubles).toEqual([]);
  });
});

describe('a VM that is not taken back', () => {
  afterEach(() => vm[Symbol.asyncDispose]());

  it('is another guest, and what was acknowledged is lost (control of the tests above)', async () => {
    vm = await KeptVm.start({ shadow: false, clients: 1 });
    await vm.load.begin();
    await clock.sleep(300);
    await vm.killKeeper();
    await vm.startKeeper({ plant: unsafely({ forgetOrphan: true }) });
    expect(await vm.kinds()).not.toContain('taken-back');
    await vm.untilAnswered();
    const report = await vm.load.end();
    expect(report.connections).toEqual({ total: 1, survived: 0 });
    expect(await vm.isSameGuest()).toBe(false);
    expect((await vm.load.verify()).lostWrites).toBeGreaterThan(0);
  });

  it('because its guest has never run is started anew, and says so', async () => {
    vm = await KeptVm.prepare({ shadow: false });
    await keeperKilledAt('start.before-cont');
    await vm.untilStandsStill();
    await vm.startKeeper();
    expect((await vm.events()).find(({ kind }) => kind === 'take-back-failed')?.facts).toMatchObject({
      code: 'QEMU_NOT_RESUMABLE',
    });
    await vm.until('alone');
  });
});

describe('the watch for doubled VMs', () => {
  afterEach(() => vm[Symbol.asyncDispose]());

  it.each([
    {
      how: 'on-same-memory',
      sight: 'two processes on',
      what: 'a second QEMU on the memory of one that runs',
    },
    { how: 'running', sight: 'guest code in', what: 'that a second QEMU executes guest code' },
  ] as const)('sees $what', async ({ how, sight }) => {
    vm = await KeptVm.prepare({ shadow: false });
    await vm.startKeeper();
    using watch = new DoubleWatch(vm.memoryDirectory);
    watch.look();
    expect(watch.doubles).toEqual([]);
    await using _second = await vm.secondQemu(how);
    await vi.waitFor(() => expect(watch.doubles.some((double) => double.startsWith(sight))).toBe(true), {
      timeout: DEADLINE_MS,
    });
  });
});
