import { describe, expect, it } from 'vitest';
import { TestVm } from '../kit/test-vm.ts';

describe('a VM whose shadow is killed', () => {
  it('goes on with its connections, and gets another one', async () => {
    await using vm = await TestVm.start();
    await vm.load.begin();
    const { primary } = vm.status;
    const lost = vm.nextEvent('shadow-lost');
    const alone = vm.nextEvent('alone');
    process.kill(vm.standbyPid, 'SIGKILL');
    await lost;
    await alone;
    await vm.untilProtected();
    expect((await vm.load.end()).connections.survived).toBe(1);
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(vm.status).toMatchObject({ primary, promotions: 0, restarts: 0 });
  });

  it('before an epoch is committed lets its output out: nobody could take over', async () => {
    await using vm = await TestVm.start();
    const hold = vm.holdOutputCommit();
    const reply = vm.load.paced({ requests: 1, gapMs: 0 });
    await hold.reached;
    const lost = vm.nextEvent('shadow-lost');
    process.kill(vm.standbyPid, 'SIGKILL');
    await lost;
    hold.release();
    await reply;
    await vm.untilProtected();
    expect(await vm.load.verify()).toMatchObject({ ackedWrites: 1, lostWrites: 0 });
  });

  it('while its memory is being copied gets another one', async () => {
    await using vm = await TestVm.start();
    const kills: number[] = [];
    const off = vm.keeper.onEvent(({ kind }) => {
      // The event comes before the first page is copied.
      if (kind !== 'syncing' || kills.length === 2) return;
      kills.push(vm.standbyPid);
      process.kill(vm.standbyPid, 'SIGKILL');
    });
    await vm.load.begin();
    process.kill(vm.standbyPid, 'SIGKILL');
    await vm.nextEvent('protected');
    off();
    expect(kills).toHaveLength(2);
    expect(vm.eventKinds.filter((kind) => kind === 'shadow-lost')).toHaveLength(3);
    expect((await vm.load.end()).connections.survived).toBe(1);
    // Nothing of the shadows that failed is in the way of a takeover.
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await promoted;
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
  });
});

describe('a VM whose primary and shadow are both killed', () => {
  it.each(['fence.before-kill', 'promote.before', 'promote.after-load', 'promote.after'])(
    'the shadow at %s, is restarted cold and protected again',
    async (place) => {
      await using vm = await TestVm.start({ clients: 0 });
      using console = vm.openConsole();
      await console.take(/understudy-guest: ready/);
      const standby = vm.standbyPid;
      const restarted = vm.nextEvent('restarted-cold');
      const hit = vm.atNext(place, () => process.kill(standby, 'SIGKILL'));
      vm.signalPrimary('SIGKILL');
      await hit;
      await restarted;
      await vm.untilProtected();
      await console.take(/understudy-guest: ready/);
      expect(vm.status.restarts).toBe(1);
      await using load = await vm.newLoad();
      const promoted = vm.nextEvent('promoted');
      await load.begin();
      vm.signalPrimary('SIGKILL');
      await promoted;
      await vm.untilProtected();
      expect((await load.end()).connections.survived).toBe(1);
      expect(await load.verify()).toMatchObject({ lostWrites: 0 });
    },
  );

  it('the primary before the first epoch is committed, is restarted cold and protected again', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    const restarted = vm.nextEvent('restarted-cold');
    let killed = false;
    // Output waits already, for an epoch that will never be.
    vm.failpoints.arm('cut.before-pause', () => {
      if (killed || vm.status.phase !== 'syncing') return;
      killed = true;
      vm.signalPrimary('SIGKILL');
    });
    process.kill(vm.standbyPid, 'SIGKILL');
    await restarted;
    await vm.untilProtected();
    using console = vm.openConsole();
    await console.take(/understudy-guest: ready/);
    expect(vm.status.restarts).toBe(1);
  });
});
