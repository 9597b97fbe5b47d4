import { randomUUID } from 'node:crypto';
import {
  closeSync,
  copyFileSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Clock, systemClock } from '../../src/base/clock.ts';
import { PAGE_BYTES } from '../../src/base/units.ts';
import type { RedisLoad } from '../../src/demo/redis-load.ts';
import type { KeeperOptions } from '../../src/keeper/keeper-options.ts';
import { SnapshotFile } from '../../src/snapshot/snapshot-file.ts';
import { locationOf } from '../../src/snapshot/snapshot-format.ts';
import { SnapshotStore } from '../../src/snapshot/snapshot-store.ts';
import { TestVm } from '../kit/test-vm.ts';

/** One guest for all of these: a restore takes it back to where it was. */
let vm: TestVm;
let folder: string;
let first: string;
const nonce = randomUUID();
let runId: string;
let generationAtFirst: string;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-snapshots-'));
  first = join(folder, 'first.usnap');
  vm = await TestVm.start({ clients: 1, yaml: 'generationId: true', boots: true });
});
afterAll(async () => {
  await vm?.[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

/** Redis makes it up when it starts. */
async function askRunId(load = vm.load): Promise<string> {
  return /run_id:(\w+)/.exec(String(await load.command('INFO', 'server')))?.[1] ?? '';
}

/** Everything of the VM is killed, and it goes on from the file. */
async function restore(path: string, options: Partial<KeeperOptions> = {}): Promise<void> {
  await vm.keeper.stop({ graceful: false, termination: 'remove' });
  await vm.startAgain({ restoreFrom: { path }, ...options });
}

/** The memory of a VM that goes on from the file. */
function memoryIn(path: string): Buffer {
  using file = SnapshotFile.open(path);
  const memory = Buffer.alloc(file.facts.memoryBytes);
  const chunks = new Map<number, Buffer>();
  for (const [page, place] of file.index.places.entries()) {
    if (place === 0) continue;
    const { chunk, slot } = locationOf(place);
    const content = chunks.get(chunk) ?? file.chunk(chunk);
    chunks.set(chunk, content);
    content.copy(memory, page * PAGE_BYTES, slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES);
  }
  return memory;
}

/** VMGenID of a QEMU, by its command line. */
function generationOf(pid: number): string {
  return /guid=([0-9a-f-]{36})/.exec(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))?.[1] ?? '';
}

/** As it lies in a guest's memory: the first three fields are little endian there. */
function bytesOf(generation: string): Buffer {
  const bytes = Buffer.from(generation.replaceAll('-', ''), 'hex');
  bytes.subarray(0, 4).swap32();
  bytes.subarray(4, 8).swap16();
  return bytes;
}

/** Pages that are not the same in both. */
function differingPages(one: Buffer, other: Buffer): number {
  let count = one.length === other.length ? 0 : Number.POSITIVE_INFINITY;
  for (let at = 0; at < one.length; at += PAGE_BYTES)
    if (!one.subarray(at, at + PAGE_BYTES).equals(other.subarray(at, at + PAGE_BYTES))) count += 1;
  return count;
}

describe('a snapshot of a VM that is protected and under load', () => {
  it('is written while it goes on: no connection breaks, and nothing is lost', async () => {
    runId = await askRunId();
    generationAtFirst = generationOf(vm.primaryPid);
    await vm.load.command('SET', 'nonce', nonce);
    await vm.load.begin();
    const report = await vm.keeper.snapshot({ path: first });
    const { connections } = await vm.load.end();
    expect(connections).toMatchObject({ survived: 1, total: 1 });
    expect(await vm.load.verify()).toMatchObject({ lostWrites: 0 });
    expect(report).toMatchObject({ path: first, sizeBytes: statSync(first).size });
    expect(vm.status).toMatchObject({ phase: 'protected', promotions: 0 });
    using file = SnapshotFile.open(first);
    await file.verify();
    expect(file.facts).toMatchObject({ vm: vm.status.name, epoch: report.epoch });
    expect(vm.eventKinds).toEqual(expect.arrayContaining(['snapshotting', 'snapshot']));
    await vm.load.command('SET', 'later', 'than the snapshot');
  });

  it('is given up for a takeover, which loses nothing, and leaves no file', async () => {
    const path = join(folder, 'given-up.usnap');
    const hold = vm.holdAt('snapshot.held');
    const snapshot = vm.keeper.snapshot({ path });
    snapshot.catch(() => {});
    await hold.reached;
    await expect(vm.keeper.snapshot({ path })).rejects.toMatchObject({ code: 'KEEPER_SNAPSHOT_UNDER_WAY' });
    const fencing = vm.nextEvent('fencing');
    const promoted = vm.nextEvent('promoted');
    vm.signalPrimary('SIGKILL');
    await fencing;
    hold.release();
    await promoted;
    await expect(snapshot).rejects.toMatchObject({ code: 'KEEPER_SAVE_FAILED' });
    expect(readdirSync(folder)).toEqual(['first.usnap']);
    expect(await vm.load.command('GET', 'later')).toBe('than the snapshot');
    await vm.untilProtected();
  });
});

describe('a VM that goes on from a snapshot when everything of it was killed', () => {
  const second = () => join(folder, 'second.usnap');

  it('answers before its memory is there, with what it held then, and at the right time', async () => {
    const hold = vm.holdAt('restore.background');
    await restore(first);
    await hold.reached;
    const load = await vm.newLoad();
    expect(await load.command('GET', 'nonce')).toBe(nonce);
    expect(await load.command('GET', 'later')).toBe(null);
    expect(await askRunId(load)).toBe(runId);
    expect(vm.eventKinds).not.toContain('memory-whole');
    expect(vm.status.phase).toBe('alone');
    // Nobody may copy what is not there yet.
    await expect(vm.keeper.snapshot({ path: second() })).rejects.toMatchObject({
      code: 'KEEPER_NOT_PROTECTED',
    });
    const whole = vm.nextEvent('memory-whole');
    hold.release();
    expect((await whole).facts.faults).toBeGreaterThan(100);
    await vm.untilProtected();
    expect(Math.abs(await load.guestClockErrorMs())).toBeLessThan(2000);
  });

  it('is told that it is in another future, which it stays in through a takeover', async () => {
    expect(generationOf(vm.primaryPid)).not.toBe(generationAtFirst);
    expect(generationOf(vm.standbyPid)).toBe(generationOf(vm.primaryPid));
    const memory = readFileSync(vm.memoryPath(vm.status.primary));
    expect(memory.includes(bytesOf(generationOf(vm.primaryPid)))).toBe(true);
    expect(memoryIn(first).includes(bytesOf(generationAtFirst))).toBe(true);
  });

  it('is protected and snapshotted again without a page lost', async () => {
    // No epoch is committed any more, so that the shadow stands still.
    const hold = vm.holdAt('commit.before-acknowledge');
    await hold.reached;
    await vm.keeper.snapshot({ path: second() });
    const shadow = readFileSync(vm.memoryPath(vm.status.shadow));
    hold.release();
    expect(differingPages(memoryIn(second()), shadow)).toBe(0);
    // The control: pages that are as they were earlier are found.
    expect(differingPages(memoryIn(first), shadow)).toBeGreaterThan(0);
  });

  it('can be taken over, and gone on from again: a restore of a restore', async () => {
    const promoted = vm.nextEvent('promoted');
    const generation = generationOf(vm.primaryPid);
    vm.signalPrimary('SIGKILL');
    await promoted;
    expect(generationOf(vm.primaryPid)).toBe(generation);
    await vm.untilProtected();
    await restore(second());
    const load = await vm.newLoad();
    expect(await load.command('GET', 'nonce')).toBe(nonce);
    expect(await askRunId(load)).toBe(runId);
    await vm.untilProtected();
  });
});

describe('a VM with a schedule of snapshots', () => {
  it('takes one when it is due, and can go on from it like from any other', async () => {
    let aheadMs = 0;
    const clock: Clock = {
      ...systemClock,
      wallMs: () => systemClock.wallMs() + aheadMs,
      // Who waits for the next moment sees soon that the clock was set.
      sleep: (ms, signal) => systemClock.sleep(ms > 10_000 ? 100 : ms, signal),
    };
    const directory = join(folder, 'own');
    const store = new SnapshotStore(directory, vm.spec.name);
    const schedule = { everyMs: 60_000, keep: 2, daily: 0, onShutdown: false, directory };
    await restore(first, { clock, spec: { ...vm.spec, snapshots: schedule } });
    await vm.untilProtected();
    await (await vm.newLoad()).command('SET', 'later', 'than the first snapshot');
    const taken = vm.nextEvent('snapshot');
    aheadMs = schedule.everyMs;
    await taken;
    const [newest] = store.list();
    expect(newest?.outline?.facts).toMatchObject({ reason: 'schedule' });
    await restore(newest?.path ?? '');
    expect(await (await vm.newLoad()).command('GET', 'later')).toBe('than the first snapshot');
    await vm.untilProtected();
  });
});

describe('a snapshot of a VM without a shadow', () => {
  it('is written while it stands still, if it may, and is that VM to the last page', async () => {
    const third = join(folder, 'third.usnap');
    const load = await vm.newLoad();
    await load.begin();
    await vm.keeper.unprotect();
    await expect(vm.keeper.snapshot({ path: third })).rejects.toMatchObject({ code: 'KEEPER_NOT_PROTECTED' });
    const hold = vm.holdAt('save.paused');
    const snapshot = vm.keeper.snapshot({ path: third, pause: true });
    await hold.reached;
    const memory = readFileSync(vm.memoryPath(vm.status.primary));
    hold.release();
    await snapshot;
    expect(differingPages(memoryIn(third), memory)).toBe(0);
    const { connections } = await load.end();
    expect(connections).toMatchObject({ survived: 1, total: 1 });
    expect(await load.verify()).toMatchObject({ lostWrites: 0 });
    await restore(third);
    const again = await vm.newLoad();
    expect(await again.command('GET', 'nonce')).toBe(nonce);
    await vm.untilProtected();
  });
});

describe('a snapshot that is damaged', () => {
  const copy = () => join(folder, 'copy.usnap');

  /** Changes bytes in the file itself, which may be in use. */
  function damage({ from, to, step }: { from: number; to: number; step: number }): void {
    const fd = openSync(copy(), 'r+');
    for (let at = from; at < to; at += step) writeSync(fd, Buffer.from([0x5a]), 0, 1, at);
    closeSync(fd);
  }

  it('is refused before there is a VM when its header or index is', async () => {
    copyFileSync(first, copy());
    damage({ from: 100, to: 101, step: 1 });
    await expect(restore(copy())).rejects.toMatchObject({ code: 'SNAPSHOT_DAMAGED' });
    copyFileSync(first, copy());
    const { size } = statSync(copy());
    damage({ from: size - 5000, to: size - 4000, step: 10 });
    await expect(vm.startAgain({ restoreFrom: { path: copy() } })).rejects.toMatchObject({
      code: 'SNAPSHOT_DAMAGED',
    });
  });

  it('is named as the cause where the device state needs memory that it does not have', async () => {
    copyFileSync(first, copy());
    const [hold, background] = [vm.holdAt('restore.before-load'), vm.holdAt('restore.background')];
    const starting = vm.startAgain({ restoreFrom: { path: copy() } });
    const refused = expect(starting).rejects.toMatchObject({ code: 'SNAPSHOT_FILL_FAILED' });
    await hold.reached;
    damage({ from: PAGE_BYTES, to: statSync(copy()).size, step: 1000 });
    hold.release();
    await refused;
    background.release();
  });

  it('while memory still comes from it stops the VM, which has read nothing else in its place', async () => {
    copyFileSync(first, copy());
    const hold = vm.holdAt('restore.background');
    await vm.startAgain({ restoreFrom: { path: copy() } });
    await hold.reached;
    damage({ from: PAGE_BYTES, to: statSync(copy()).size, step: 1000 });
    hold.release();
    expect(await vm.keeper.finished).toEqual({ reason: 'failed' });
    const failed = vm.keeper.eventsSince(0).find(({ kind }) => kind === 'failed');
    expect(failed?.facts).toMatchObject({ during: 'restore', code: 'SNAPSHOT_FILL_FAILED' });
    expect(vm.eventKinds).not.toContain('restarted-cold');
    expect(vm.traces).toEqual([]);
    await vm.startAgain({ restoreFrom: { path: first } });
  });
});

describe('a VM whose memory is still missing', () => {
  /** Nothing of its memory comes for much longer than a QEMU may be silent. */
  async function starve(options: Partial<KeeperOptions>): Promise<{ end(): void; load: Promise<RedisLoad> }> {
    const shadow = { ...vm.spec.shadow, hangTimeoutMs: 500, restartTimeoutMs: 500 };
    const background = vm.holdAt('restore.background');
    const filling = vm.holdAt('restore.filling');
    await vm.startAgain({ restoreFrom: { path: first }, spec: { ...vm.spec, shadow }, ...options });
    await Promise.all([background.reached, filling.reached]);
    // Its QEMU takes frames in, and has no memory to put them.
    const load = vm.newLoad();
    load.catch(() => {});
    const end = () => {
      filling.release();
      background.release();
    };
    return { end, load };
  }

  it('waits for it, however long that takes, and is not taken for one that hangs', async () => {
    await vm.keeper.stop({ graceful: false, termination: 'remove' });
    const { end, load } = await starve({});
    await systemClock.sleep(1800);
    end();
    expect(await (await load).command('GET', 'nonce')).toBe(nonce);
    await vm.untilProtected();
    expect(vm.eventKinds).not.toContain('primary-lost');
    await vm.keeper.stop({ graceful: false, termination: 'remove' });
  });

  it('would be killed and begin anew, if nobody looked at what keeps its QEMU (control)', async () => {
    const { end, load } = await starve({ unsafe: { blameQemu: true } });
    await vm.nextEvent('restarted-cold');
    end();
    await load.catch(() => {});
    expect(await (await vm.newLoad()).command('GET', 'nonce')).toBe(null);
    await vm.untilProtected();
    await vm.keeper.stop({ graceful: false, termination: 'remove' });
    await vm.startAgain({ restoreFrom: { path: first } });
  });

  it('is stopped like any other, and leaves nothing behind', async () => {
    const hold = vm.holdAt('restore.background');
    await restore(first);
    await hold.reached;
    await vm.keeper.stop({ graceful: false, termination: 'remove' });
    expect(await vm.keeper.finished).toEqual({ reason: 'requested' });
    expect(vm.traces).toEqual([]);
  });

  it('and whose QEMU dies begins anew, like any VM without a shadow', async () => {
    const hold = vm.holdAt('restore.background');
    await vm.startAgain({ restoreFrom: { path: first } });
    await hold.reached;
    const restarted = vm.nextEvent('restarted-cold');
    vm.signalPrimary('SIGKILL');
    await restarted;
    await vm.untilProtected();
    const load = await vm.newLoad();
    expect(await load.command('GET', 'nonce')).toBe(null);
    expect(vm.eventKinds).not.toContain('memory-whole');
  });
});
