import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { CompiledWriter } from '../memory/compiled-writer.ts';
import { openDirtyLog } from '../memory/dirty-log-choice.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { MemoryWriter } from '../memory/memory-writer.ts';
import { PreloadChannel } from '../memory/preload-channel.ts';
import { restoreAll } from './full-restore.ts';
import { LazyRestore } from './lazy-restore.ts';
import { SnapshotFile } from './snapshot-file.ts';
import { damageChunk, FIXTURE_FACTS, FIXTURE_PAGES, writePages } from './snapshot-fixture.ts';
import { snapshotStill } from './snapshot-writer.ts';
import { readWorkingSet } from './working-set.ts';

let compiled: CompiledWriter;
let folder: string;
let path: string;

beforeAll(async () => {
  compiled = await CompiledWriter.make();
});
afterAll(() => compiled[Symbol.dispose]());

beforeEach(() => {
  folder = mkdtempSync(`/dev/shm/${marked('lazy')}-`);
  path = join(folder, 'one.usnap');
  onTestFinished(() => rmSync(folder, { recursive: true }));
});

/** Noise, zeros that are there, duplicates, and holes. */
const CONTENT = new Map<number, number | 'noise'>(
  [...Array(FIXTURE_PAGES).keys()].flatMap((page) => {
    if (page % 7 === 6) return [];
    return [[page, page % 3 === 0 ? page % 2 : 'noise'] as [number, number | 'noise']];
  }),
);

/** Writes a snapshot, and returns the memory that is in it. */
async function snapshot(): Promise<Buffer> {
  using memory = GuestMemory.create(join(folder, 'source.ram'), FIXTURE_FACTS.memoryBytes);
  writePages(memory, CONTENT);
  await snapshotStill({
    ...{ path, key: undefined, spec: Buffer.alloc(0), firmware: Buffer.alloc(0) },
    ...{ facts: FIXTURE_FACTS, memory, deviceState: Buffer.alloc(0) },
    ...{ signal: new AbortController().signal, onProgress: () => {} },
  });
  return readFileSync(memory.path);
}

/** A process that maps memory as QEMU does, and the restore into that memory. */
class Guest implements AsyncDisposable {
  readonly memory = GuestMemory.create(join(folder, 'vm.ram'), FIXTURE_FACTS.memoryBytes);
  readonly channel = new PreloadChannel();
  readonly file = SnapshotFile.open(path);
  readonly restore = new LazyRestore(this.file, { key: undefined });
  readonly process = new MemoryWriter({
    ...{ writerPath: compiled.writerPath, libraryPath: compiled.libraryPath },
    ...{ memoryPath: this.memory.path, sizeBytes: this.memory.sizeBytes, channel: this.channel },
  });

  async begin({ onDemandOnly = false } = {}): Promise<this> {
    const hello = await this.channel.awaitHello({ deadlineMs: 20_000, clock });
    await this.restore.begin({ memory: this.memory, hello, onDemandOnly });
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]();
    await this.restore[Symbol.asyncDispose]();
    this.file[Symbol.dispose]();
    this.channel[Symbol.dispose]();
    this.memory[Symbol.dispose]();
    this.memory.remove();
  }
}

function hashOf(memory: Buffer, page: number): string {
  let hash = 0xcbf29ce484222325n;
  for (const byte of memory.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES))
    hash = ((hash ^ BigInt(byte)) * 0x100000001b3n) & 0xffffffffffffffffn;
  return hash.toString(16);
}

const SOME_PAGES = [0, 6, 7, 100, FIXTURE_PAGES - 1, 13, 250, 1];

describe('memory that comes from a snapshot while it is used', () => {
  it('is read as it was by who touches it, page by page, before the rest is there', async () => {
    const expected = await snapshot();
    await using guest = await new Guest().begin({ onDemandOnly: true });
    for (const page of SOME_PAGES) expect(await guest.process.hash(page)).toBe(hashOf(expected, page));
    expect(guest.restore.share).toBeLessThan(1);
    // Why nobody may read the file before it is filled: there are zeros in the place of what is missing.
    expect(readFileSync(guest.memory.path).equals(expected)).toBe(false);
    expect(guest.restore.faults).toBeGreaterThan(3);
    guest.restore.fillInBackground();
    expect(await guest.restore.filled).toMatchObject({ askedChunks: expect.any(Number) });
    expect(readFileSync(guest.memory.path).equals(expected)).toBe(true);
  });

  it('keeps what is written to it, also by the kernel, before the snapshot had brought the page', async () => {
    const expected = await snapshot();
    await using guest = await new Guest().begin({ onDemandOnly: true });
    const kernel = [40, 6];
    await guest.process.do(kernel.map((page) => ({ kind: 'kernel-write', page })));
    await guest.process.do(SOME_PAGES.map((page) => ({ kind: 'write', page, byte: 77 })));
    const before = await Promise.all([guest.process.hash(40)]);
    guest.restore.fillInBackground();
    await guest.restore.filled;
    for (const page of SOME_PAGES) expected[page * PAGE_BYTES + (page % PAGE_BYTES)] = 77;
    const found = readFileSync(guest.memory.path);
    expect(hashOf(found, 40)).toBe(before[0]);
    for (const page of kernel)
      found.copy(expected, page * PAGE_BYTES, page * PAGE_BYTES, page * PAGE_BYTES + 256);
    expect(found.equals(expected)).toBe(true);
  });

  it('is memory like any other afterwards: what is written is found, and what is discarded reads as zeros', async () => {
    await snapshot();
    await using guest = await new Guest().begin();
    await guest.restore.filled;
    using log = openDirtyLog({ memory: guest.memory, channel: guest.channel, method: 'pagemap-scan' }).log;
    await guest.process.do([
      { kind: 'write', page: 9, byte: 1 },
      { kind: 'remove', page: 20, pageCount: 1 },
    ]);
    expect(log.collect()).toEqual([
      { firstPage: 9, pageCount: 1 },
      { firstPage: 20, pageCount: 1 },
    ]);
    expect(await guest.process.hash(20)).toBe(hashOf(Buffer.alloc(PAGE_BYTES), 0));
  });

  it('is filled the next time in the order in which it was asked for', async () => {
    await snapshot();
    {
      await using guest = await new Guest().begin({ onDemandOnly: true });
      for (const page of [301, 2]) await guest.process.hash(page);
      guest.restore.fillInBackground();
      await guest.restore.filled;
    }
    using file = SnapshotFile.open(path);
    const { snapshotHash, index } = file;
    const known = readWorkingSet(path, { snapshotHash, chunkCount: index.chunks.length });
    const chunkOf = (page: number) => Math.floor(((index.places[page] ?? 0) - 1) / 32);
    expect(known).toEqual([chunkOf(301), chunkOf(2)]);
    expect(readWorkingSet(path, { snapshotHash: snapshotHash + 1n, chunkCount: 99 })).toEqual([]);
    writeFileSync(`${path}.working-set`, 'nonsense');
    expect(readWorkingSet(path, { snapshotHash, chunkCount: 99 })).toEqual([]);
  });
});

describe('memory whose faults cannot be answered', () => {
  const mayAnswer = readFileSync('/proc/sys/vm/unprivileged_userfaultfd', 'utf8').trim() === '1';

  it.skipIf(mayAnswer)('those of the kernel included, is not restored while it is used', async () => {
    await snapshot();
    chmodSync(folder, 0o755);
    using memory = GuestMemory.create(join(folder, 'vm.ram'), FIXTURE_FACTS.memoryBytes);
    chmodSync(memory.path, 0o666);
    using channel = new PreloadChannel();
    using file = SnapshotFile.open(path);
    await using restore = new LazyRestore(file, { key: undefined });
    await using _process = new MemoryWriter({
      ...{ writerPath: compiled.writerPath, libraryPath: compiled.libraryPath, uid: 65_534 },
      ...{ memoryPath: memory.path, sizeBytes: memory.sizeBytes, channel },
    });
    const hello = await channel.awaitHello({ deadlineMs: 20_000, clock });
    await expect(restore.begin({ memory, hello })).rejects.toMatchObject({ code: 'SNAPSHOT_FILL_REFUSED' });
  });

  it('is restored as a whole, or not at all', async () => {
    const expected = await snapshot();
    using memory = GuestMemory.create(join(folder, 'vm.ram'), FIXTURE_FACTS.memoryBytes);
    {
      using file = SnapshotFile.open(path);
      await restoreAll(file, { memory, signal: undefined });
    }
    expect(readFileSync(memory.path).equals(expected)).toBe(true);
    damageChunk(path, 0);
    using file = SnapshotFile.open(path);
    await expect(restoreAll(file, { memory, signal: undefined })).rejects.toMatchObject({
      code: 'SNAPSHOT_DAMAGED',
    });
  });
});

describe('memory whose restore fails', () => {
  /** Resolves with what is read, or `waits` when nothing has been read while the failure came and went by. */
  async function readAfter(guest: Guest, page: number, failure: Promise<unknown>): Promise<string> {
    const read = guest.process.hash(page);
    await failure;
    // That nothing happens can only be seen by waiting; a read that is answered takes less than a millisecond.
    const stalled = new Promise<string>((resolve) => setTimeout(() => resolve('waits'), 200));
    return await Promise.race([read, stalled]);
  }

  it('because its thread is killed makes who touches a missing page wait, and never read zeros', async () => {
    await snapshot();
    await using guest = await new Guest().begin({ onDemandOnly: true });
    await guest.process.hash(0);
    await guest.restore.kill();
    const failure = expect(guest.restore.filled).rejects.toMatchObject({ code: 'SNAPSHOT_FILL_FAILED' });
    expect(await readAfter(guest, 301, failure)).toBe('waits');
  });

  it('because a chunk is damaged makes who touches its pages wait, and never read something else', async () => {
    await snapshot();
    damageChunk(path, 0);
    await using guest = await new Guest().begin({ onDemandOnly: true });
    const failure = expect(guest.restore.filled).rejects.toMatchObject({
      code: 'SNAPSHOT_FILL_FAILED',
      message: expect.stringContaining('chunk 0 does not fit its checksum'),
    });
    expect(await readAfter(guest, 1, failure)).toBe('waits');
  });

  it('and is not watched would be read as zeros (control)', async () => {
    const expected = await snapshot();
    await using guest = new Guest();
    await guest.channel.awaitHello({ deadlineMs: 20_000, clock });
    expect(await guest.process.hash(1)).toBe(hashOf(Buffer.alloc(PAGE_BYTES), 0));
    expect(await guest.process.hash(1)).not.toBe(hashOf(expected, 1));
  });
});
