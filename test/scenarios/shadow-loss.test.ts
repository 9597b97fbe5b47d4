import { closeSync, openSync, readSync, rmSync, statfsSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { MIB, PAGE_BYTES } from '../../src/base/units.ts';
import { SmallTmpfs } from '../kit/small-tmpfs.ts';
import { TestVm, until } from '../kit/test-vm.ts';

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

describe('a VM for whose shadow there is no room any more', () => {
  it('goes on alone, and is protected as soon as there is', async () => {
    using tmpfs = new SmallTmpfs(800 * MIB);
    await using vm = await TestVm.start({ memoryDirectory: tmpfs.path });
    const filler = join(tmpfs.path, 'filler');
    const failed = vm.nextEvent('shadow-failed');
    const alone = vm.nextEvent('alone');
    process.kill(vm.standbyPid, 'SIGKILL');
    await alone;
    // The room is taken when the old shadow has given its own back, and before the new one wants it.
    await until(() => vm.traces.every((path) => !path.includes('epochs-')));
    const { bavail, bsize } = statfsSync(tmpfs.path);
    writeFileSync(filler, Buffer.alloc(bavail * bsize - MIB));
    expect((await failed).facts).toMatchObject({ code: 'MEMORY_NO_ROOM' });
    await vm.load.paced({ requests: 1, gapMs: 0 });
    rmSync(filler);
    await vm.untilProtected();
    expect(await vm.load.verify()).toMatchObject({ ackedWrites: 1, lostWrites: 0 });
    expect(vm.traces.filter((path) => path.startsWith('/proc'))).toHaveLength(2);
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

describe('a VM whose last epoch was damaged in its shadow', () => {
  it('does not go on from it, but is restarted cold', async () => {
    await using vm = await TestVm.start({ clients: 0 });
    const promoting = vm.holdAt('promote.before');
    const failed = vm.nextEvent('promote-failed');
    const restarted = vm.nextEvent('restarted-cold');
    vm.signalPrimary('SIGKILL');
    await promoting.reached;
    // In every slot the first byte behind header and list of pages: of a page, or of the device state.
    for (const path of vm.epochPaths(vm.status.shadow)) flipBit(path, 2 * PAGE_BYTES);
    promoting.release();
    expect((await failed).facts).toMatchObject({ code: 'REPLICATION_EPOCH_CORRUPT' });
    await restarted;
    expect(vm.status).toMatchObject({ promotions: 0, restarts: 1 });
  });
});

function flipBit(path: string, at: number): void {
  const fd = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, at);
  writeSync(fd, Uint8Array.of((byte[0] ?? 0) ^ 1), 0, 1, at);
  closeSync(fd);
}
