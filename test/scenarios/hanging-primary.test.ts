import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { systemClock } from '../../src/base/clock.ts';
import { type Cgroup, CgroupTree } from '../../src/linux/cgroup.ts';
import { borrowSocket } from '../kit/borrowed-socket.ts';
import { TestVm, until } from '../kit/test-vm.ts';

/** So that a hang is noticed soon, but not on a machine that is merely busy. */
const QUICK = 'shadow: {hangTimeoutMs: 1000}';

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** Processor time that a process' threads have used, in nanoseconds: the first field of schedstat. */
function processorNs(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`);
  return threads.reduce(
    (sum, thread) =>
      sum + Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]),
    0,
  );
}

describe('a primary that is stopped by a signal', () => {
  it('is taken for dead after the deadline, killed, and its shadow goes on', async () => {
    await using vm = await TestVm.start({ yaml: QUICK });
    await vm.load.begin();
    const pid = vm.primaryPid;
    const lost = vm.nextEvent('primary-lost');
    const promoting = vm.nextEvent('promoting').then(() => isAlive(pid));
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGSTOP');
    expect((await lost).facts).toMatchObject({ reason: 'hung' });
    expect(await promoting, 'the old primary lives when the shadow begins to act').toBe(false);
    // Of all the time in which it did not answer, not only since that was noticed.
    expect((await promoted).facts.outageMs).toBeGreaterThan(1000);
    await vm.untilProtected();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('and comes back before it is killed never sends another frame', async () => {
    await using vm = await TestVm.start({ yaml: QUICK });
    // No epoch is cut any more, and the guest has answered: the answer waits.
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    const reply = vm.load.paced({ requests: 1, gapMs: 0 });
    await until(() => vm.link('nic0').heldItems > 0);
    const fence = vm.holdAt('fence.before-kill');
    const stoppedMs = vm.signalPrimary('SIGSTOP');
    cut.release();
    await fence.reached;
    const usedNs = processorNs(vm.primaryPid);
    const { releasedItems, heldItems } = vm.link('nic0');
    vm.signalPrimary('SIGCONT');
    await until(() => processorNs(vm.primaryPid) > usedNs);
    const promoted = vm.nextEvent('promoted');
    expect(vm.link('nic0').releasedItems).toBe(releasedItems);
    fence.release();
    await promoted;
    const [timing] = await reply;
    expect(timing?.repliedMs, 'the answer is the shadow’s').toBeGreaterThan(stoppedMs);
    expect(vm.link('nic0').droppedItems).toBeGreaterThanOrEqual(heldItems);
    expect(await vm.load.verify()).toMatchObject({ ackedWrites: 1, lostWrites: 0 });
  });

  it('with nobody behind it is waited for, and goes on as the guest that it was', async () => {
    await using vm = await TestVm.start({ yaml: 'shadow: {enabled: false, hangTimeoutMs: 500}' });
    await vm.load.begin();
    const slow = vm.nextEvent('primary-slow');
    vm.signalPrimary('SIGSTOP');
    expect((await slow).facts.silentMs).toBeGreaterThan(500);
    expect(vm.status).toMatchObject({ phase: 'alone' });
    const answers = vm.nextEvent('primary-answers');
    vm.signalPrimary('SIGCONT');
    await answers;
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(vm.status).toMatchObject({ restarts: 0, promotions: 0 });
    expect(vm.eventKinds).not.toContain('primary-lost');
  });

  it('while its shadow is being made, in the middle of a cut, goes on and gets another one', async () => {
    await using vm = await TestVm.start({ yaml: 'shadow: {hangTimeoutMs: 500}' });
    await vm.keeper.unprotect();
    await vm.load.begin();
    const cut = vm.holdAt('cut.before-pause');
    const protecting = vm.keeper.protect();
    await cut.reached;
    // Then it is not woken first: it is told to stop and to save, and nothing more.
    await until(() => vm.link('nic0').heldItems > 0);
    const slow = vm.nextEvent('primary-slow');
    const given = vm.nextEvent('alone');
    vm.signalPrimary('SIGSTOP');
    cut.release();
    await slow;
    await given;
    const answers = vm.nextEvent('primary-answers');
    vm.signalPrimary('SIGCONT');
    await answers;
    await protecting;
    await vm.untilProtected();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(vm.status).toMatchObject({ restarts: 0, promotions: 0 });
  });

  it('with nobody behind it is killed in the end, and restarted cold', async () => {
    await using vm = await TestVm.start({
      clients: 0,
      yaml: 'shadow: {enabled: false, hangTimeoutMs: 500, restartTimeoutMs: 1500}',
    });
    const lost = vm.nextEvent('primary-lost');
    const restarted = vm.nextEvent('restarted-cold');
    vm.signalPrimary('SIGSTOP');
    expect((await lost).facts).toMatchObject({ reason: 'hung' });
    expect(vm.eventKinds).toContain('primary-slow');
    await restarted;
    using console = vm.openConsole();
    await console.take(/understudy-guest: ready/);
    expect(vm.status).toMatchObject({ phase: 'alone', restarts: 1, promotions: 0 });
  });
});

describe('a primary that gets next to no processor', () => {
  /** Commands take longer than the deadline now, whatever the machine is like. */
  function starve(vm: TestVm, tree: CgroupTree): Cgroup {
    const group = tree.create(`${vm.status.name}-${vm.status.primary?.instance}`);
    group.setCpuShare(0.001);
    return group;
  }

  const detected = CgroupTree.detect();
  const tree = detected.kind === 'usable' ? detected.tree : undefined;

  it.runIf(tree)('is not taken for one that hangs', async () => {
    await using vm = await TestVm.start({ yaml: QUICK });
    const pid = vm.primaryPid;
    const group = starve(vm, tree as CgroupTree);
    const startMs = systemClock.nowMs();
    const usedNs = processorNs(pid);
    // Its share of three seconds.
    await until(() => systemClock.nowMs() > startMs + 3000);
    group.setCpuShare(null);
    await until(() => processorNs(pid) > usedNs + 100e6);
    await vm.load.begin();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(vm.primaryPid).toBe(pid);
    expect(vm.eventKinds).not.toContain('primary-lost');
  });

  it.runIf(tree)('would be, if nobody looked at what keeps it (control)', async () => {
    await using vm = await TestVm.start({ yaml: QUICK, unsafe: { blameQemu: true } });
    const lost = vm.nextEvent('primary-lost');
    starve(vm, tree as CgroupTree);
    expect((await lost).facts).toMatchObject({ reason: 'hung' });
    await vm.untilProtected();
  });
});

describe('a primary that cannot be trusted any more', () => {
  it('and that still runs never sends another frame', async () => {
    await using vm = await TestVm.start({ boots: true, cmdline: 'us.writer=100:1' });
    await vm.load.begin();
    const fence = vm.holdAt('fence.before-kill');
    // Not in the middle of a cut, where its vCPUs stand still.
    const cut = vm.holdAt('cut.before-pause');
    await cut.reached;
    const pid = vm.primaryPid;
    using socket = borrowSocket(pid, `/${vm.status.primary?.instance}/qemu/qmp`);
    socket.write(Buffer.from('this is not QMP\n'));
    await fence.reached;
    const { releasedItems, heldItems } = vm.link('nic0');
    const usedNs = processorNs(pid);
    // Long enough for the clients' kernels to repeat their requests.
    await until(() => processorNs(pid) > usedNs + 500e6);
    expect(vm.link('nic0')).toMatchObject({ releasedItems, heldItems });
    const promoted = vm.nextEvent('promoted');
    fence.release();
    cut.release();
    await promoted;
    expect(isAlive(pid)).toBe(false);
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it.each([
    ['garbled', 'nic0', Buffer.from([0xff, 0xff, 0xff, 0xff, 1, 2, 3])],
    ['qmp-closed', 'qemu/qmp', Buffer.from('this is not QMP\n')],
  ])(
    'because of garbage (%s) on its socket %s is fenced, and its shadow goes on',
    async (reason, name, garbage) => {
      await using vm = await TestVm.start();
      const pid = vm.primaryPid;
      const lost = vm.nextEvent('primary-lost');
      const promoted = vm.nextEvent('promoted');
      await vm.load.begin();
      using socket = borrowSocket(pid, `/${vm.status.primary?.instance}/${name}`);
      socket.write(garbage);
      expect((await lost).facts).toMatchObject({ reason });
      await promoted;
      expect(isAlive(pid)).toBe(false);
      await vm.untilProtected();
      expect((await vm.load.end()).connections.survived).toBe(1);
      expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    },
  );
});
