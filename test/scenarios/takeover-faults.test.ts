import { mkdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { runPaths } from '../../src/control/run-paths.ts';
import { TestVm } from '../kit/test-vm.ts';

describe('a takeover', () => {
  it('is one though it cannot be written down', async () => {
    await using vm = await TestVm.start();
    await vm.load.begin();
    // In the way of every record to come.
    mkdirSync(`${runPaths(vm.status.name).record}.new`);
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    await vm.untilProtected();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(vm.status).toMatchObject({ promotions: 1, restarts: 0 });
  });

  it('that was asked for and does not come about is an error for who asked, and the VM is restarted', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    const held = vm.holdAt('promote.before');
    const asked = vm.keeper.promote();
    await held.reached;
    const restarted = vm.nextEvent('restarted-cold');
    process.kill(vm.standbyPid, 'SIGKILL');
    held.release();
    await expect(asked).rejects.toMatchObject({ code: 'KEEPER_PROMOTE_FAILED' });
    await restarted;
    await vm.untilProtected();
  });

  it('is waited for by a stop, which then asks the guest that goes on', async () => {
    await using vm = await TestVm.start();
    const held = vm.holdAt('promote.before');
    vm.signalPrimary('SIGKILL');
    await held.reached;
    const stopped = vm.keeper.stop({ graceful: true });
    held.release();
    await stopped;
    expect(await vm.keeper.finished).toEqual({ reason: 'powered-off' });
    expect(vm.traces).toEqual([]);
  });
});

describe('a VM without a shadow', () => {
  it('whose QEMU is told to end by somebody else has not powered off: it is restarted', async () => {
    await using vm = await TestVm.start({ clients: 0, yaml: 'shadow: {enabled: false}' });
    const restarted = vm.nextEvent('restarted-cold');
    vm.signalPrimary('SIGTERM');
    await restarted;
    expect(vm.eventKinds).not.toContain('guest-powered-off');
  });
});
