import { describe, expect, it } from 'vitest';
import { TestVm, until } from '../kit/test-vm.ts';

describe('a VM that is stopped', () => {
  it.each(['syncing', 'protected', 'fencing', 'promoting', 'promoted', 'alone'])(
    'at the event "%s" of a takeover leaves nothing behind',
    async (kind) => {
      await using vm = await TestVm.start({ clients: 0 });
      expect(vm.traces.length).toBeGreaterThan(10);
      const reached = vm.nextEvent(kind);
      vm.signalPrimary('SIGKILL');
      await reached;
      await vm.keeper.stop({ graceful: false });
      expect(vm.traces).toEqual([]);
    },
  );

  it('while it stands still in a cut leaves nothing behind', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    const cut = vm.holdAt('cut.before-scan');
    await cut.reached;
    const stopped = vm.keeper.stop({ graceful: false });
    cut.release();
    await stopped;
    expect(vm.traces).toEqual([]);
  });

  it('gracefully is powered off by its guest', async () => {
    await using vm = await TestVm.start();
    await vm.keeper.stop({ graceful: true });
    expect(await vm.keeper.finished).toEqual({ reason: 'powered-off' });
    expect(vm.traces).toEqual([]);
  });

  it('gracefully is ended when its guest is deaf to the power button for as long as its specification says', async () => {
    // Nothing in it but a shell: no agent, nobody who listens to ACPI.
    const deaf = { cmdline: 'rdinit=/bin/sh', yaml: 'shutdownTimeoutMs: 1500', clients: 0 };
    await using vm = await TestVm.start(deaf);
    let ended = false;
    const stopped = vm.keeper.stop({ graceful: true }).then(() => {
      ended = true;
    });
    await until(() => vm.primaryQmpLog.includes('system_powerdown'));
    expect(ended).toBe(false);
    await stopped;
    expect(await vm.keeper.finished).toEqual({ reason: 'requested' });
    expect(vm.traces).toEqual([]);
  });
});
