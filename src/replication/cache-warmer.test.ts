import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock } from '../base/clock.ts';
import { KIB, MIB } from '../base/units.ts';
import { HINT_BYTES_MAX } from '../block/read-hints.ts';
import { CacheWarmer, WAITING_BYTES_MAX } from './cache-warmer.ts';
import { type DiskHint, decodeHints, encodeHints, HINTS_MAX } from './disk-messages.ts';
import { DisksWorld, type DisksWorldOptions } from './remote-disks-fixture.ts';

const DISK_BYTES = 4 * MIB;
const REGION_BYTES = 64 * KIB;
const GARBLED = { code: 'REPLICATION_PEER_GARBLED' };

let options: DisksWorldOptions;

beforeEach(() => {
  const directory = mkdtempSync(`/dev/shm/${marked('warm')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
  options = { directory, imagePath: join(directory, 'root.img'), copyPath: join(directory, 'copy.img') };
  writeFileSync(options.imagePath, randomBytes(DISK_BYTES));
});

/** What is in memory in the first place cannot be cold. */
function copyToDisk(): void {
  const folder = mkdtempSync(join(tmpdir(), 'us-warm-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  options = { ...options, copyPath: join(folder, 'copy.img') };
}

/** Of a file, in the page cache. */
function residentBytes(path: string): number {
  return Number(execFileSync('fincore', ['-b', '-n', '-o', 'RES', path], { encoding: 'utf8' }));
}

/** Has the kernel forget what is in the page cache of a file. */
function makeCold(path: string): void {
  execFileSync('dd', [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0'], {
    stdio: 'ignore',
  });
  expect(residentBytes(path)).toBe(0);
}

async function inSync(): Promise<DisksWorld> {
  const world = await DisksWorld.open(options);
  await world.copy.copy();
  await world.epoch();
  await world.image.settle();
  return world;
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe('the copy of a disk on the host of a shadow', () => {
  it('is in the page cache there where the guest reads, and where it is about to', async () => {
    copyToDisk();
    await using world = await inSync();
    makeCold(options.copyPath);
    world.tellReads();
    await world.read(2 * MIB, 100 * KIB);
    await until(() => world.disks.warmedBytes('root') === 2 * REGION_BYTES);
    // Readahead of the kernel may take more with it.
    expect(residentBytes(options.copyPath)).toBeGreaterThanOrEqual(2 * REGION_BYTES);
    makeCold(options.copyPath);
    await world.read(2 * MIB + 100 * KIB, 28 * KIB);
    // As much again as was read in a row, in whole regions: only these were never told of.
    await until(() => world.disks.warmedBytes('root') === 4 * REGION_BYTES);
    expect(residentBytes(options.copyPath)).toBeGreaterThanOrEqual(2 * REGION_BYTES);
  });

  it('stays cold where nobody tells what is read (control)', async () => {
    copyToDisk();
    await using world = await inSync();
    makeCold(options.copyPath);
    await world.read(2 * MIB, 100 * KIB);
    await world.epoch();
    await world.image.settle();
    expect(world.disks.warmedBytes('root')).toBe(0);
    expect(residentBytes(options.copyPath)).toBe(0);
  });

  it('is warmed when no epoch is on its way, and not before', async () => {
    await using world = await inSync();
    using _telling = world.tellReads();
    const mayGoOn = Promise.withResolvers<void>();
    const reached = Promise.withResolvers<void>();
    world.failpoints.arm('receive.before-acknowledge', async () => {
      reached.resolve();
      await mayGoOn.promise;
    });
    const epoch = world.epoch();
    await reached.promise;
    await world.read(0, MIB);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(world.reads.pendingBytes).toBe(MIB);
    mayGoOn.resolve();
    await epoch;
    await until(() => world.disks.warmedBytes('root') === MIB);
  });

  it('is not looked at beyond its end, whoever says so: the other side is wrong', async () => {
    await using world = await inSync();
    await world.sendHints(encodeHints([{ disk: 0, offset: DISK_BYTES, lengthBytes: REGION_BYTES }]));
    expect(await world.received).toMatchObject(GARBLED);
    expect(world.disks.coldBytes).toBe(0);
  });

  it('is not hinted at before its first epoch', async () => {
    await using world = await DisksWorld.open(options);
    await world.sendHints(encodeHints([{ disk: 0, offset: 0, lengthBytes: 1 }]));
    expect(await world.received).toMatchObject(GARBLED);
  });
});

describe('hints', () => {
  const hint = { disk: 0, offset: 0, lengthBytes: 1 };
  const disks = [{ sizeBytes: DISK_BYTES }];

  it.each<[string, Partial<DiskHint>]>([
    ['beyond the end of a disk', { offset: DISK_BYTES - REGION_BYTES, lengthBytes: REGION_BYTES + 1 }],
    ['far beyond it', { offset: Number.MAX_SAFE_INTEGER }],
    ['of a huge part of it', { lengthBytes: HINT_BYTES_MAX + 1 }],
    ['of more than there can be', { lengthBytes: 2 ** 32 - 1 }],
    ['of nothing', { lengthBytes: 0 }],
    ['of another disk', { disk: 1 }],
  ])('%s are refused', (_, wrong) => {
    const body = encodeHints([hint, { ...hint, lengthBytes: REGION_BYTES, ...wrong }]);
    expect(() => decodeHints(body, disks)).toThrow(expect.objectContaining(GARBLED));
  });

  it('are as many as one message may have, and whole', () => {
    const most = Array.from({ length: HINTS_MAX }, (_, index) => ({ ...hint, offset: index * KIB }));
    expect(decodeHints(encodeHints(most), disks)).toEqual(most);
    const garbled = expect.objectContaining(GARBLED);
    const one = encodeHints([hint]);
    const reserved = Uint8Array.from(one, (byte, at) => (at === 2 ? 1 : byte));
    for (const body of [encodeHints([...most, hint]), encodeHints([]), one.subarray(1), reserved])
      expect(() => decodeHints(body, disks)).toThrow(garbled);
  });

  it('of a flood are forgotten, but the latest; one read is made at a time, and gives way to epochs for a while', async () => {
    const reads: number[] = [];
    let onLate = () => {};
    const clock = {
      ...systemClock,
      after: (_: number, task: () => void) => {
        onLate = task;
        return () => {};
      },
    };
    let isWriting = Promise.withResolvers<void>();
    let readsAtOnce = 0;
    const device = {
      sizeBytes: 2 ** 40,
      read: async (offset: number) => {
        readsAtOnce += 1;
        expect(readsAtOnce).toBe(1);
        reads.push(offset);
        await new Promise((resolve) => setImmediate(resolve));
        readsAtOnce -= 1;
      },
    };
    const idle = async (signal: AbortSignal) => {
      const late = new Promise((_, reject) => signal.addEventListener('abort', reject, { once: true }));
      await Promise.race([isWriting.promise, late]);
    };
    const warmer = new CacheWarmer({ clock, idle, devices: [device] });
    for (let count = 0; count < 5000; count += 1)
      warmer.want([{ disk: 0, offset: count * HINT_BYTES_MAX, lengthBytes: HINT_BYTES_MAX }]);
    expect(warmer.waitingBytes).toBe(WAITING_BYTES_MAX);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(reads).toEqual([]);
    onLate();
    await until(() => reads.length === 1);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(reads).toHaveLength(1);
    isWriting.resolve();
    await until(() => reads.length > 3);
    isWriting = Promise.withResolvers();
    expect(reads[0]).toBeGreaterThan(4900 * HINT_BYTES_MAX);
    await warmer.end();
    isWriting.resolve();
    const madeBefore = reads.length;
    warmer.want([{ disk: 0, offset: 0, lengthBytes: 1 }]);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(reads.length).toBe(madeBefore);
  });
});
