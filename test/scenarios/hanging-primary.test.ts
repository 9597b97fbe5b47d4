import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { borrowSocket } from '../kit/borrowed-socket.ts';
import { TestVm } from '../kit/test-vm.ts';

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

/** Processor time that a process has used, in clock ticks: fields 14 and 15 of /proc/PID/stat. */
function ticksOf(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
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
    await promoted;
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
    const pid = vm.primaryPid;
    const promoted = vm.nextEvent('promoted');
    const fence = vm.holdAt('fence.before-kill');
    const stoppedMs = vm.signalPrimary('SIGSTOP');
    cut.release();
    await fence.reached;
    const before = vm.link('nic0');
    process.kill(pid, 'SIGCONT');
    const ticks = ticksOf(pid);
    // It runs for a while, and tries to send: its client repeats the request, and its console has a prompt.
    await until(() => ticksOf(pid) >= ticks + 5);
    expect(vm.link('nic0').releasedItems).toBe(before.releasedItems);
    fence.release();
    await promoted;
    expect(isAlive(pid)).toBe(false);
    const [timing] = await reply;
    expect(timing?.repliedMs, 'the answer is the shadow’s').toBeGreaterThan(stoppedMs);
    expect(vm.link('nic0').droppedItems).toBeGreaterThanOrEqual(before.heldItems);
    expect(await vm.load.verify()).toMatchObject({ ackedWrites: 1, lostWrites: 0 });
  });

  it('with nobody behind it is killed and restarted cold', async () => {
    await using vm = await TestVm.start({ clients: 0, yaml: 'shadow: {enabled: false, hangTimeoutMs: 1000}' });
    const lost = vm.nextEvent('primary-lost');
    const restarted = vm.nextEvent('restarted-cold');
    vm.signalPrimary('SIGSTOP');
    expect((await lost).facts).toMatchObject({ reason: 'hung' });
    await restarted;
    using console = vm.openConsole();
    await console.take(/understudy-guest: ready/);
    expect(vm.status).toMatchObject({ phase: 'alone', restarts: 1, promotions: 0 });
  });
});

describe('a primary that cannot be trusted any more', () => {
  it.each([
    ['garbled', 'nic0', Buffer.from([0xff, 0xff, 0xff, 0xff, 1, 2, 3])],
    ['qmp-closed', 'qmp', Buffer.from('this is not QMP\n')],
  ])('because of garbage (%s) on its socket %s is fenced, and its shadow goes on', async (reason, name, garbage) => {
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
  });
});
