import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock } from '../../src/base/clock.ts';
import { MIB } from '../../src/base/units.ts';
import { SmallTmpfs } from '../kit/small-tmpfs.ts';
import { TestVm, type TestVmOptions, until } from '../kit/test-vm.ts';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-saved-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const savedIn = () => ({ suspended: join(folder, 'suspended/vm'), snapshot: join(folder, 'snapshots/vm') });

function start(options: TestVmOptions = {}): Promise<TestVm> {
  return TestVm.start({ ...options, keeper: { savedIn: savedIn() } });
}

const suspend = { graceful: true, termination: 'suspend' } as const;
const isSuspended = () => existsSync(join(savedIn().suspended, 'header.json'));

function tapAddress({ netns }: TestVm): string {
  const words = ['-n', netns, '-json', 'link', 'show', 'us-tap'];
  return JSON.parse(execFileSync('ip', words, { encoding: 'utf8' }))[0].address;
}

describe('a VM that is suspended', () => {
  it.each([
    ['protected', ''],
    ['without a shadow', 'shadow: {enabled: false}'],
  ])(
    '%s goes on in the middle of a sentence: with its memory, its connections, and the right time',
    async (_, yaml) => {
      await using vm = await start({ clients: 3, yaml });
      await vm.load.begin();
      const knownAddress = tapAddress(vm);
      await vm.keeper.stop(suspend);
      expect(await vm.keeper.finished).toEqual({ reason: 'suspended' });
      expect(vm.traces).toEqual([]);
      expect(isSuspended()).toBe(true);
      await vm.startAgain();
      expect(vm.eventKinds).toContain('resumed');
      expect(isSuspended()).toBe(false);
      // The guest sends to the one that it knows, for up to minutes.
      expect(tapAddress(vm)).toBe(knownAddress);
      const report = await vm.load.end();
      expect(report.connections).toMatchObject({ survived: 3, total: 3 });
      expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
      expect(Math.abs(await vm.load.guestClockErrorMs())).toBeLessThan(2000);
    },
  );

  it('tells how far it has come, and that it stands still meanwhile', async () => {
    await using vm = await start({ clients: 0 });
    const shares: unknown[] = [];
    vm.keeper.onEvent(({ kind, facts }) => kind === 'saving' && 'share' in facts && shares.push(facts.share));
    await vm.keeper.stop(suspend);
    expect(shares[0]).toBe(0);
    expect(shares.length).toBeGreaterThan(5);
    expect(vm.eventKinds).toEqual(expect.arrayContaining(['saving', 'saved', 'stopping', 'stopped']));
    const bytes = readdirSync(savedIn().suspended).map(
      (name) => statSync(join(savedIn().suspended, name)).size,
    );
    expect(Math.max(...bytes)).toBeLessThan(100 * MIB);
  });

  it.each(['save.before-pause', 'save.paused', 'save.before-header', 'save.before-end'])(
    'and dies at %s is taken over by its shadow, and no state of it is left',
    async (place) => {
      await using vm = await start();
      await vm.load.begin();
      const hold = vm.holdAt(place);
      const suspended = vm.keeper.stop(suspend);
      suspended.catch(() => {});
      await hold.reached;
      const promoted = vm.nextEvent('promoted');
      vm.signalPrimary('SIGKILL');
      await vm.nextEvent('primary-lost');
      hold.release();
      await promoted;
      await expect(suspended).rejects.toMatchObject({ code: 'KEEPER_SAVE_FAILED' });
      expect((await vm.load.end()).connections.survived).toBe(1);
      expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
      expect(isSuspended()).toBe(false);
    },
  );

  it('but for lack of room goes on, protected', async () => {
    using tmpfs = new SmallTmpfs(16 * MIB);
    const directory = join(tmpfs.path, 'vm');
    await using vm = await TestVm.start({
      keeper: { savedIn: { suspended: directory, snapshot: directory } },
    });
    await vm.load.begin();
    await expect(vm.keeper.stop(suspend)).rejects.toMatchObject({ code: 'REPLICATION_STATE_NO_ROOM' });
    await vm.untilProtected();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(readdirSync(directory)).toEqual([]);
  });

  it('but has no place for its state goes on', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    await expect(vm.keeper.stop(suspend)).rejects.toMatchObject({
      code: 'KEEPER_NO_PLACE',
      hint: expect.stringContaining('understudy create'),
    });
    expect(vm.status.phase).toBe('protected');
  });
});

describe('a suspended VM that is started again', () => {
  it.each(['restore.before-memory', 'restore.after-load', 'restore.before-consume'])(
    'and whose start ends at %s is still suspended, and goes on from there at the next one',
    async (place) => {
      await using vm = await start();
      await vm.load.paced({ requests: 1, gapMs: 0 });
      await vm.keeper.stop(suspend);
      vm.failpoints.arm(place, () => {
        throw new Error('the end of this start');
      });
      await expect(vm.startAgain()).rejects.toThrow('the end of this start');
      vm.failpoints.arm(place, () => {});
      expect(isSuspended()).toBe(true);
      await vm.startAgain();
      await vm.untilProtected();
      await vm.load.paced({ requests: 1, gapMs: 0 });
      expect(await vm.load.verify()).toMatchObject({ ackedWrites: 2, lostWrites: 0 });
    },
  );

  it('shows nothing to the world before its state is used up, and answers afterwards', async () => {
    await using vm = await start();
    await vm.load.begin();
    await vm.keeper.stop(suspend);
    // The client sends its open request again and again, and the guest runs and would answer.
    const hold = vm.holdAt('restore.before-consume');
    const started = vm.startAgain();
    await hold.reached;
    await systemClock.sleep(1500);
    expect(framesFrom(vm)).toBe(0);
    expect(isSuspended()).toBe(true);
    hold.release();
    await started;
    await until(() => framesFrom(vm) > 0);
    expect(isSuspended()).toBe(false);
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('is not started from a state that is damaged, nor anew, and the state is kept', async () => {
    await using vm = await start({ clients: 0 });
    await vm.keeper.stop(suspend);
    const { suspended } = savedIn();
    const before = readdirSync(suspended);
    for (const file of before.filter((name) => name.startsWith('memory-'))) {
      const fd = openSync(join(suspended, file), 'r+');
      writeSync(fd, Buffer.from('damage'), 0, 6, 5000);
      closeSync(fd);
    }
    await expect(vm.startAgain()).rejects.toMatchObject({ code: 'REPLICATION_STATE_DAMAGED' });
    expect(readdirSync(suspended)).toEqual(before);
  });
});

/** What the host's end of the VM's network has received. */
function framesFrom({ netns }: TestVm): number {
  const text = execFileSync('ip', ['-n', netns, '-s', '-j', 'link', 'show', 'us-tap'], { encoding: 'utf8' });
  return JSON.parse(text)[0].stats64.rx.packets;
}

describe('a VM that leaves a snapshot', () => {
  it('is powered off by its guest, and goes on from the snapshot as often as that is asked for', async () => {
    await using vm = await start();
    await vm.load.begin();
    await vm.load.end();
    const verified = await vm.load.verify();
    expect(verified).toMatchObject({ lostWrites: 0 });
    await vm.keeper.stop({ graceful: true, termination: 'snapshot' });
    expect(await vm.keeper.finished).toEqual({ reason: 'powered-off' });
    expect(vm.traces).toEqual([]);
    for (let round = 0; round < 2; round += 1) {
      await vm.startAgain({ startFrom: 'snapshot' });
      expect(vm.eventKinds).toContain('resumed');
      expect(await vm.load.verify()).toEqual(verified);
      await vm.keeper.stop({ graceful: false, termination: 'remove' });
    }
    // Without being told so it boots anew: what the snapshot holds is not there.
    await vm.startAgain();
    using console = vm.openConsole();
    await console.take(/understudy-guest: ready/);
    expect(vm.eventKinds).not.toContain('resumed');
  });
});
