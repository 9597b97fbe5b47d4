import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import type { DiskWrite } from '../block/disk-write.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { countPages, mergeRuns, type PageRun } from '../memory/page-runs.ts';
import { EpochSlot } from './epoch-slot.ts';
import type { EpochWrites } from './epoch-writes.ts';
import { ReplicationError } from './replication-error.ts';

const PAGES = 64;
const HEADER_USED_BYTES = 112;
/** The checksum of the header; the marks follow. */
const HEADER_HASH_AT = 96;
const COMMIT_MARK_AT = 104;

let directory: string;
let memory: GuestMemory;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('slot')}-`);
  memory = GuestMemory.create(join(directory, 'vm.ram'), PAGES * PAGE_BYTES);
  onTestFinished(() => {
    memory[Symbol.dispose]();
    rmSync(directory, { recursive: true });
  });
});

/** Gives every page of guest memory a content of its own. */
function writeMemory(seed: number): void {
  using content = Mapping.anonymous(PAGES * PAGE_BYTES);
  for (let at = 0; at < content.bytes.length; at += 512) content.bytes[at] = seed + at / 512;
  memory.writeRuns([{ firstPage: 0, pageCount: PAGES }], content);
}

interface Staged {
  readonly runs: readonly PageRun[];
  readonly deviceState: Uint8Array;
  readonly frame: Uint8Array;
  readonly disks: readonly EpochWrites[];
}

function stage(slot: EpochSlot, epoch: number, { runs, deviceState, frame, disks }: Staged): void {
  slot.begin(epochId(epoch));
  slot.capture(memory, runs);
  slot.finish({ deviceState, outputs: [{ link: 'nic0', items: [frame] }], disks });
}

function createSlot(): EpochSlot {
  return EpochSlot.create(join(directory, `epoch-${crypto.randomUUID()}`), {
    memoryBytes: memory.sizeBytes,
  });
}

/** How reading goes: the error's code, or what was read. */
function readingOf(slot: EpochSlot) {
  try {
    return slot.read();
  } catch (thrown) {
    if (thrown instanceof ReplicationError) return thrown.code;
    throw thrown;
  }
}

const runs = fc
  .array(
    fc.record({ firstPage: fc.nat(PAGES - 1), pageCount: fc.integer({ min: 1, max: 4 }) }).map((run) => ({
      ...run,
      pageCount: Math.min(run.pageCount, PAGES - run.firstPage),
    })),
    { maxLength: 10 },
  )
  .map((list) => mergeRuns(list));
/** Writes in the order of their disk, data and zeros, with gaps and without. */
const diskWrites: fc.Arbitrary<DiskWrite[]> = fc
  .array(
    fc.record({
      gapBytes: fc.nat(9000),
      bytes: fc.uint8Array({ minLength: 1, maxLength: 5000 }),
      kind: fc.constantFrom('data', 'zero', 'hole'),
    }),
    { minLength: 1, maxLength: 5 },
  )
  .map((list) => {
    let at = 0;
    return list.map(({ gapBytes, bytes, kind }): DiskWrite => {
      const offset = at + gapBytes;
      at = offset + bytes.length;
      if (kind === 'data') return { kind, offset, bytes };
      return { kind: 'zero', offset, lengthBytes: bytes.length, mayPunch: kind === 'hole' };
    });
  });
const disks = fc
  .uniqueArray(fc.string({ unit: 'grapheme', maxLength: 20 }), { maxLength: 3 })
  .chain((names) => fc.tuple(...names.map((disk) => diskWrites.map((writes) => ({ disk, writes })))));
const stagedEpoch: fc.Arbitrary<Staged> = fc.record({
  runs,
  deviceState: fc.uint8Array({ minLength: 1, maxLength: 2000 }),
  frame: fc.uint8Array({ minLength: 1, maxLength: 1500 }),
  disks,
});

describe('a slot', () => {
  it('gives back a committed epoch as it was staged', () => {
    using slot = createSlot();
    let epoch = 0;
    fc.assert(
      fc.property(stagedEpoch, fc.nat(255), (staged, seed) => {
        epoch += 1;
        writeMemory(seed);
        stage(slot, epoch, staged);
        expect(slot.read(), 'nothing is committed before the mark').toBeUndefined();
        writeMemory(seed + 1);
        slot.commit();
        const read = slot.read();
        expect(read).toMatchObject({ epoch, runs: staged.runs });
        expect(Buffer.from(staged.deviceState).equals(read?.deviceState ?? Buffer.alloc(0))).toBe(true);
        expect(read?.outputs).toEqual([{ link: 'nic0', items: [staged.frame] }]);
        expect(read?.disks.map(plain)).toEqual(staged.disks);
        expectPages(slot, { staged, seed, pagesOffset: read?.pagesOffset ?? 0 });
      }),
      { numRuns: 50 },
    );
  });

  it('notices any flipped bit of header, list of pages, pages, device state, output and writes to disks', () => {
    using slot = createSlot();
    let epoch = 0;
    fc.assert(
      fc.property(
        stagedEpoch,
        fc.double({ min: 0, max: 1, noNaN: true }),
        fc.nat(7),
        (staged, where, bit) => {
          epoch += 1;
          writeMemory(epoch);
          stage(slot, epoch, staged);
          slot.commit();
          for (const at of bytesThatCount(slot, where)) {
            flip(slot, at, bit);
            expect(['REPLICATION_EPOCH_CORRUPT', undefined], `byte ${at}`).toContain(readingOf(slot));
            flip(slot, at, bit);
            expect(readingOf(slot)).toMatchObject({ epoch });
          }
        },
      ),
      { numRuns: 50 },
    );
  });

  it('takes no damaged header for one that was never committed, but for the mark and its checksum', () => {
    using slot = createSlot();
    stage(slot, 7, { runs: [{ firstPage: 1, pageCount: 2 }], ...TAIL });
    slot.commit();
    for (let at = 0; at < HEADER_USED_BYTES; at += 1) {
      flip(slot, at, 3);
      expect(readingOf(slot), `byte ${at}`).toBe(
        at < HEADER_HASH_AT ? 'REPLICATION_EPOCH_CORRUPT' : undefined,
      );
      flip(slot, at, 3);
    }
  });

  it('does not take the mark of its previous epoch for that of the next', () => {
    using slot = createSlot();
    stage(slot, 1, { runs: [{ firstPage: 0, pageCount: 1 }], ...TAIL });
    slot.commit();
    const staleMark = slot.mapping.bytes.slice(COMMIT_MARK_AT, COMMIT_MARK_AT + 8);
    slot.begin(epochId(2));
    expect(slot.read()).toBeUndefined();
    slot.mapping.bytes.set(staleMark, COMMIT_MARK_AT);
    expect(readingOf(slot), 'as if the writes of `begin` had come in another order').toBe(
      'REPLICATION_EPOCH_CORRUPT',
    );
    stage(slot, 2, { runs: [{ firstPage: 0, pageCount: 1 }], ...TAIL });
    slot.mapping.bytes.set(staleMark, COMMIT_MARK_AT);
    expect(slot.read()).toBeUndefined();
  });

  it('gives back the room of a large epoch when the next one begins', () => {
    using large = GuestMemory.create(join(directory, 'large.ram'), 128 * MIB);
    using slot = EpochSlot.create(join(directory, 'epoch'), { memoryBytes: large.sizeBytes });
    slot.begin(epochId(1));
    slot.capture(large, [{ firstPage: 0, pageCount: (100 * MIB) / PAGE_BYTES }]);
    expect(statSync(slot.path).blocks * 512).toBeGreaterThan(100 * MIB);
    slot.begin(epochId(2));
    expect(statSync(slot.path).blocks * 512).toBeLessThanOrEqual(64 * MIB);
    slot.capture(large, [{ firstPage: 0, pageCount: (100 * MIB) / PAGE_BYTES }]);
  });

  it('that has no room left says so, instead of dying of it, and takes a smaller epoch after that', () => {
    using tmpfs = new SmallTmpfs(3 * MIB);
    using large = GuestMemory.create(join(directory, 'large.ram'), 16 * MIB);
    using slot = EpochSlot.create(join(tmpfs.path, 'epoch'), { memoryBytes: large.sizeBytes });
    slot.begin(epochId(1));
    const noRoom = expect.objectContaining({ code: 'LINUX_CALL_FAILED', errnoName: 'ENOSPC' });
    expect(() => slot.capture(large, [{ firstPage: 0, pageCount: 4096 }])).toThrow(noRoom);
    slot.begin(epochId(2));
    slot.capture(large, [{ firstPage: 0, pageCount: 10 }]);
    const deviceState = new Uint8Array(4 * MIB);
    expect(() => slot.finish({ deviceState, outputs: [] })).toThrow(noRoom);
    slot.begin(epochId(3));
    slot.capture(large, [{ firstPage: 0, pageCount: 10 }]);
    slot.finish({ deviceState: new Uint8Array(10), outputs: [] });
    slot.commit();
    expect(slot.read()?.epoch).toBe(3);
  });

  it('that finds no room when it is made leaves nothing behind', () => {
    using tmpfs = new SmallTmpfs(MIB);
    using filler = GuestMemory.create(join(tmpfs.path, 'filler'), MIB);
    using content = Mapping.anonymous(MIB);
    filler.writeRuns([{ firstPage: 0, pageCount: MIB / PAGE_BYTES }], content);
    const path = join(tmpfs.path, 'epoch');
    expect(() => EpochSlot.create(path, { memoryBytes: MIB })).toThrow(/ENOSPC/);
    expect(() => statSync(path)).toThrow(/ENOENT/);
  });

  it('backs what disks wrote before it copies it, and gives the room of a lot of it back', () => {
    using tmpfs = new SmallTmpfs(40 * MIB);
    using slot = EpochSlot.create(join(tmpfs.path, 'epoch'), { memoryBytes: MIB });
    const epochOf = (epoch: number, writtenBytes: number) => {
      slot.begin(epochId(epoch));
      const bytes = new Uint8Array(writtenBytes).fill(epoch);
      const writes: DiskWrite[] = [{ kind: 'data', offset: 0, bytes }];
      slot.finish({ deviceState: new Uint8Array(10), outputs: [], disks: [{ disk: 'root', writes }] });
      slot.commit();
    };
    const noRoom = expect.objectContaining({ code: 'LINUX_CALL_FAILED', errnoName: 'ENOSPC' });
    expect(() => epochOf(1, 60 * MIB)).toThrow(noRoom);
    epochOf(2, 30 * MIB);
    expect(slot.read()?.disks[0]?.writes[0]).toMatchObject({ offset: 0 });
    slot.begin(epochId(3));
    expect(statSync(slot.path).blocks * 512).toBeLessThan(20 * MIB);
    expect(() => slot.appendWrites(new Uint8Array(641 * MIB))).toThrow(
      expect.objectContaining({ code: 'REPLICATION_EPOCH_TOO_LARGE' }),
    );
  });

  it('takes no room for disks in which nothing was written', () => {
    using slot = createSlot();
    stage(slot, 1, { ...TAIL, runs: [], disks: [{ disk: 'root', writes: [] }] });
    expect(slot.sections().writes).toHaveLength(0);
    expect(statSync(slot.path).blocks * 512).toBeLessThanOrEqual(2 * MIB);
  });

  it('refuses more device state and output than it has room for', () => {
    using slot = createSlot();
    slot.begin(epochId(1));
    slot.capture(memory, []);
    const deviceState = new Uint8Array(97 * MIB);
    expect(() => slot.finish({ deviceState, outputs: [] })).toThrow(
      expect.objectContaining({ code: 'REPLICATION_EPOCH_TOO_LARGE' }),
    );
  });
});

const TAIL = { deviceState: Uint8Array.of(1, 2, 3), frame: Uint8Array.of(4, 5), disks: [] };

/** Without views of a slot, which change with it. */
function plain({ disk, writes }: EpochWrites): EpochWrites {
  const own = (write: DiskWrite) =>
    write.kind === 'data' ? { ...write, bytes: Uint8Array.from(write.bytes) } : write;
  return { disk, writes: writes.map(own) };
}

function flip(slot: EpochSlot, at: number, bit: number): void {
  slot.mapping.bytes[at] = (slot.mapping.bytes[at] ?? 0) ^ (1 << bit);
}

/** One byte of each part, at the same share `where` of it. */
function bytesThatCount(slot: EpochSlot, where: number): number[] {
  const staged = slot.read();
  if (staged === undefined) throw new Error('the epoch is committed');
  const pagesEnd = PAGE_BYTES + countPages(staged.runs) * PAGE_BYTES;
  const tail = pagesEnd + staged.runs.length * 8;
  const output = tail + staged.deviceState.length;
  // u32 links, u16 name length, "nic0", u32 items, u32 length, bytes
  const outputEnd = output + 4 + 2 + 4 + 4 + 4 + (staged.outputs[0]?.items[0]?.length ?? 0);
  const writesAt = slot.sections().writes.byteOffset - slot.mapping.bytes.byteOffset;
  const parts: [number, number][] = [
    [0, HEADER_USED_BYTES],
    [PAGE_BYTES, pagesEnd],
    [pagesEnd, tail],
    [tail, output],
    [output, outputEnd],
    [writesAt, writesAt + slot.sections().writes.length],
  ];
  return parts.flatMap(([start, end]) =>
    end > start ? [start + Math.min(end - start - 1, Math.floor(where * (end - start)))] : [],
  );
}

function expectPages(
  slot: EpochSlot,
  { staged, seed, pagesOffset }: { staged: Staged; seed: number; pagesOffset: number },
): void {
  let offset = pagesOffset;
  for (const { firstPage, pageCount } of staged.runs) {
    for (let page = firstPage; page < firstPage + pageCount; page += 1) {
      const first = seed + (page * PAGE_BYTES) / 512;
      expect(slot.mapping.bytes[offset]).toBe(first & 0xff);
      expect(slot.mapping.bytes[offset + 512]).toBe((first + 1) & 0xff);
      offset += PAGE_BYTES;
    }
  }
}
