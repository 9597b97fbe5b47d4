import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { systemClock as clock } from '../../src/base/clock.ts';
import { identityOf, standsStill, waitForEnd } from '../../src/control/process-identity.ts';
import { eventsPathOf, RunDirectory } from '../../src/control/run-directory.ts';
import { KeptVm } from '../kit/kept-vm.ts';
import { runningQemus } from '../kit/running-qemus.ts';

const DEADLINE_MS = 60_000;

let vm: KeptVm;

afterEach(() => vm[Symbol.asyncDispose]());

describe('a VM whose keeper is killed', () => {
  it('has its disk again with the next keeper, which does not make another one in its place', async () => {
    const images = mkdtempSync(join(tmpdir(), 'us-lost-'));
    onTestFinished(() => rmSync(images, { recursive: true }));
    const path = join(images, 'data.qcow2');
    const disk = { path, format: 'qcow2', size: '8MiB', create: true, unprotectedDisk: true };
    vm = await KeptVm.start({ clients: 1, disks: [disk] });
    await vm.shell('echo marked | dd of=/dev/vda conv=fsync,notrunc && echo writ""ten', /written/);
    await vm.killKeeper();
    renameSync(path, `${path}.away`);
    await expect(vm.startKeeper()).rejects.toMatchObject({ code: 'BLOCK_IMAGE_MISSING' });
    expect(readdirSync(images)).not.toContain('data.qcow2');
    renameSync(`${path}.away`, path);
    await vm.startKeeper();
    expect(await vm.kinds()).toContain('inherited');
    await vm.shell(
      'dd if=/dev/vda iflag=direct bs=4096 count=1 2>/dev/null | head -c 4; echo ":re""ad"',
      /mark:read/,
    );
  });

  it('stands still: none of its QEMUs runs on, though nobody clears them away', async () => {
    vm = await KeptVm.start({ clients: 1 });
    const { processes } = vm.record;
    expect(processes).toHaveLength(2);
    expect(runningQemus(vm.memoryDirectory)).toHaveLength(2);
    await vm.killKeeper();
    // The kernel has sent the signals when the keeper is gone; the threads of QEMU take it a moment later.
    await vi.waitFor(() => expect(runningQemus(vm.memoryDirectory)).toEqual([]), { timeout: DEADLINE_MS });
    for (const qemu of processes) expect(standsStill(qemu)).toBe(true);
    await RunDirectory.sweep(vm.name, { clock });
    for (const qemu of processes) expect(identityOf(qemu.pid)).toBeUndefined();
  });

  it('goes on from its shadow with the next keeper: nothing acknowledged is lost, and its connections live on', async () => {
    vm = await KeptVm.start();
    await vm.load.begin();
    for (let round = 0; round < 3; round++) {
      await clock.sleep(200 + Math.random() * 500);
      const before = vm.record.processes;
      await vm.killKeeper();
      await vm.startKeeper();
      for (const { pid } of before) expect(identityOf(pid)).toBeUndefined();
      expect(await vm.kinds()).toContain('inherited');
      await vm.until('protected');
    }
    const report = await vm.load.end();
    expect(report.connections).toMatchObject({ survived: 3, total: 3 });
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(await vm.isSameGuest()).toBe(true);
  });

  it('goes on though the next keepers are killed as well, wherever they have come to', async () => {
    vm = await KeptVm.start({ clients: 1 });
    await vm.load.begin();
    await clock.sleep(300);
    await vm.killKeeper();
    for (let round = 0; round < 5; round++) {
      const keeper = vm.spawnKeeper();
      keeper.started().catch(() => {});
      await clock.sleep(Math.random() * 1500);
      // Nothing but SIGKILL: a keeper that is asked to end while it starts may end its VM before it is killed.
      process.kill(keeper.pid ?? 0, 'SIGKILL');
      await keeper.exited;
      keeper.release();
    }
    await vm.startKeeper();
    await vm.until('protected');
    expect((await vm.load.end()).connections).toMatchObject({ survived: 1 });
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(await vm.isSameGuest()).toBe(true);
  });

  it('begins anew, and says so, when what was left is damaged', async () => {
    vm = await KeptVm.start({ clients: 1 });
    await vm.killKeeper();
    for (const name of readdirSync(vm.memoryDirectory, { recursive: true, encoding: 'utf8' })) {
      if (/epochs-\d+\/epoch-\d+$/.test(name)) corrupt(join(vm.memoryDirectory, name));
    }
    await vm.startKeeper();
    expect(await vm.kinds()).toEqual(expect.arrayContaining(['inherit-failed', 'alone']));
    expect(await vm.kinds()).not.toContain('inherited');
    await vm.until('protected');
  });

  it('begins anew with another specification', async () => {
    vm = await KeptVm.start({ clients: 1 });
    await vm.killKeeper();
    const other = { ...JSON.parse(readFileSync(vm.specPath, 'utf8')), memory: '160MiB' };
    writeFileSync(vm.specPath, JSON.stringify(other));
    await vm.startKeeper();
    expect(await vm.kinds()).not.toContain('inherited');
    await vm.until('protected');
    expect(readdirSync(vm.memoryDirectory)).toHaveLength(1);
  });
});

describe('a VM whose keeper has a fault', () => {
  it('is ended as a whole, and nothing takes over meanwhile', async () => {
    const plant = "process.on('SIGUSR2', () => { throw new Error('planted'); });";
    vm = await KeptVm.start({ clients: 1, plant });
    const { keeper, processes } = vm.record;
    process.kill(keeper.pid, 'SIGUSR2');
    for (const each of [keeper, ...processes])
      expect(await waitForEnd(each, { deadlineMs: DEADLINE_MS, clock })).toBe(true);
    expect(vm.record.failed).toBe(true);
    const events = readFileSync(eventsPathOf(vm.name), 'utf8').trim().split('\n');
    const kinds = events.map((line) => JSON.parse(line).kind);
    expect(kinds).toContain('protected');
    for (const kind of ['primary-lost', 'promoted', 'shadow-lost']) expect(kinds).not.toContain(kind);
  });
});

function corrupt(path: string): void {
  const file = openSync(path, 'r+');
  // In the contents of its pages, and after a header that is whole.
  writeSync(file, Buffer.alloc(64, 0x5a), 0, 64, 4096 + 128);
  closeSync(file);
}
