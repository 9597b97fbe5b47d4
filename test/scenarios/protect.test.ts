import { describe, expect, it } from 'vitest';
import { TestVm } from '../kit/test-vm.ts';

const UNPROTECTED = 'shadow: {enabled: false}';

describe('a protected VM that is no longer to be protected', () => {
  it('gives its shadow up and all that belongs to it, and its output leaves at once', async () => {
    await using vm = await TestVm.start();
    const hold = vm.holdOutputCommit();
    const reply = vm.load.paced({ requests: 1, gapMs: 0 });
    await hold.reached;
    const standby = vm.standbyPid;
    const unprotected = vm.keeper.unprotect();
    hold.release();
    await unprotected;
    await reply;
    expect(vm.status).toMatchObject({ phase: 'alone', shadow: null, shadowWanted: false });
    expect(vm.traces).not.toContain(`/proc/${standby}`);
    expect(vm.traces.filter((path) => path.includes('epochs-'))).toEqual([]);
    expect(vm.link('nic0').heldItems).toBe(0);
    expect(await vm.load.verify()).toMatchObject({ ackedWrites: 1, lostWrites: 0 });
  });

  it('is protected again when it is asked for, and survives then', async () => {
    await using vm = await TestVm.start();
    await vm.keeper.unprotect();
    await vm.keeper.protect();
    await vm.untilProtected();
    await vm.load.begin();
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    await vm.untilProtected();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('in the middle of a takeover is taken over, and goes on without a shadow', async () => {
    await using vm = await TestVm.start();
    await vm.load.begin();
    const promoting = vm.holdAt('promote.before');
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoting.reached;
    await vm.keeper.unprotect();
    promoting.release();
    await promoted;
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(vm.status).toMatchObject({ phase: 'alone', shadowWanted: false, promotions: 1, restarts: 0 });
  });

  it('and changes its mind again and again, ends as it was asked for last', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    for (let round = 0; round < 5; round += 1) {
      const unprotected = vm.keeper.unprotect();
      await vm.keeper.protect();
      await unprotected;
    }
    await vm.untilProtected();
    await vm.keeper.unprotect();
    expect(vm.status).toMatchObject({ phase: 'alone', shadow: null });
    expect(vm.traces.filter((path) => path.startsWith('/proc'))).toHaveLength(1);
  });
});

describe('a VM whose specification has no shadow', () => {
  it('can be given one while it runs, and survives then', async () => {
    await using vm = await TestVm.start({ yaml: UNPROTECTED });
    expect(vm.status).toMatchObject({ phase: 'alone', shadowWanted: false });
    await vm.keeper.protect();
    await vm.untilProtected();
    await vm.load.begin();
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });

  it('is refused one where it has what cannot be protected, and goes on as it was', async () => {
    const extraArgs = 'qemu: {extraArgs: [-device, virtio-balloon-pci]}';
    await using vm = await TestVm.start({ yaml: `${UNPROTECTED}\n${extraArgs}`, clients: 0 });
    await expect(vm.keeper.protect()).rejects.toMatchObject({
      code: 'QEMU_UNPROTECTABLE',
      message: expect.stringContaining('virtio-balloon-pci'),
      hint: expect.stringMatching(/\S/),
    });
    expect(vm.status).toMatchObject({ phase: 'alone', shadowWanted: false });
    expect(vm.eventKinds).not.toContain('protect-requested');
  });
});
