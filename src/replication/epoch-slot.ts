import { closeSync, ftruncateSync, openSync, unlinkSync } from 'node:fs';
import { xxh64 } from '@node-rs/xxhash';
import { assert } from '../base/assert.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { type EpochId, epochId } from '../epoch/epoch-id.ts';
import { BackedRegion } from '../linux/backed-region.ts';
import { closeElsewhere } from '../linux/file.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { countPages, type PageRun } from '../memory/page-runs.ts';
import { decodeOutputs, encodeOutputs, type LinkOutput } from './epoch-output.ts';
import { decodeWrites, type EpochWrites, encodeWrites, WRITES_BYTES_MAX } from './epoch-writes.ts';
import { ReplicationError } from './replication-error.ts';

/**
 * One staged epoch: a file that holds all that the epoch changed, and a commit mark. It is a redo log:
 * applying it twice does the same as applying it once, so that an application cut short is simply repeated.
 *
 * Layout, little endian: a header page, the contents of the pages, their runs (u32 first page, u32 count), the
 * device state and the output; the writes to disks in a place of their own behind all that there may be of these. Each
 * section has an xxh64, the header has one over all that it says, and the marks (committed, applied) are derived from that
 * one: a mark left over from the slot's previous use cannot fit a new header.
 */
const MAGIC = 0x3248434f50455355n; // "USEPOCH2"
const COMMIT_XOR = 0x434f4d4d49544544n; // "COMMITED"
const APPLIED_XOR = 0x4150504c49454421n; // "APPLIED!"
const HEADER = {
  magic: 0,
  epoch: 8,
  memoryBytes: 16,
  runCount: 24,
  pageCount: 32,
  deviceStateBytes: 40,
  outputBytes: 48,
  writesBytes: 56,
  runsHash: 64,
  pagesHash: 72,
  tailHash: 80,
  writesHash: 88,
  headerHash: 96,
  commitMark: 104,
  appliedMark: 112,
} as const;
/** Without the marks, which each side sets for itself. */
export const HEADER_BYTES = HEADER.commitMark;
const RUN_BYTES = 8;
/** Before the pause, in it, and after the device state was saved. */
const CAPTURES_MAX = 3;
/** Device state and output of one epoch. */
export const TAIL_BYTES_MAX = 96 * MIB;
/** A slot keeps at most this much memory between two uses, so that one large epoch does not cost for ever. */
const KEEP_BYTES = 64 * MIB;
const KEEP_WRITES_BYTES = 16 * MIB;

export interface StagedEpoch {
  readonly epoch: EpochId;
  readonly runs: readonly PageRun[];
  /** Where in the slot's mapping the contents of `runs` begin, one after the other, to be applied in this order. */
  readonly pagesOffset: number;
  readonly deviceState: Buffer;
  readonly outputs: readonly LinkOutput[];
  /** Of the disks that were written to. Data are views of the slot, like the pages. */
  readonly disks: readonly EpochWrites[];
}

/** A finished epoch in its parts. They are views of the slot: good until it is used again. */
export interface EpochSections {
  /** All that is said about the others, with their checksums. */
  readonly header: Uint8Array;
  readonly runs: readonly PageRun[];
  /** Contents of `runs`, one after the other. */
  readonly pages: Uint8Array;
  /** Device state and output. */
  readonly tail: Uint8Array;
  /** Writes to disks; empty where there are none. */
  readonly writes: Uint8Array;
}

interface Layout {
  readonly epoch: number;
  readonly runCount: number;
  readonly pagesEnd: number;
  readonly tail: number;
  readonly deviceStateBytes: number;
  readonly tailBytes: number;
}

export class EpochSlot implements Disposable, AsyncDisposable {
  readonly path: string;
  readonly #fd: number;
  readonly #memoryBytes: number;
  readonly #view: DataView;
  readonly mapping: Mapping;
  /** All but the writes to disks, and these. */
  readonly #main: BackedRegion;
  readonly #writes: BackedRegion;
  #writesBytes = 0;
  #epoch: EpochId | undefined;
  #runs: PageRun[] = [];
  #pageCount = 0;

  private constructor(path: string, fd: number, { memoryBytes }: { memoryBytes: number }) {
    this.path = path;
    this.#fd = fd;
    this.#memoryBytes = memoryBytes;
    // Sparse: only what an epoch really holds takes room in the file system.
    const mainBytes = mainBytesMax(memoryBytes);
    const lengthBytes = mainBytes + WRITES_BYTES_MAX;
    ftruncateSync(fd, lengthBytes);
    this.#main = new BackedRegion(fd, { startByte: 0, lengthBytes: mainBytes, keepBytes: KEEP_BYTES });
    this.#writes = new BackedRegion(fd, {
      ...{ startByte: mainBytes, lengthBytes: WRITES_BYTES_MAX, keepBytes: KEEP_WRITES_BYTES },
    });
    this.#main.back(PAGE_BYTES);
    this.mapping = Mapping.ofFile(fd, lengthBytes, { writable: true });
    this.#view = new DataView(this.mapping.bytes.buffer, this.mapping.bytes.byteOffset, PAGE_BYTES);
  }

  /** Makes the file. Throws LinuxError ENOSPC, and leaves nothing behind then. */
  static create(path: string, options: { memoryBytes: number }): EpochSlot {
    const fd = openSync(path, 'wx+', 0o600);
    try {
      return new EpochSlot(path, fd, options);
    } catch (cause) {
      closeSync(fd);
      unlinkSync(path);
      throw cause;
    }
  }

  /** Opens a file that another process made, for what it holds. */
  static open(path: string, options: { memoryBytes: number }): EpochSlot {
    const fd = openSync(path, 'r+');
    try {
      return new EpochSlot(path, fd, options);
    } catch (cause) {
      closeSync(fd);
      throw cause;
    }
  }

  /** Starts a new epoch in this slot; whatever it held before is no longer valid. Called before the VM stops. */
  begin(epoch: EpochId): void {
    this.#set(HEADER.commitMark, 0n);
    this.#set(HEADER.magic, 0n);
    this.#epoch = epoch;
    this.#runs = [];
    this.#pageCount = 0;
    this.#writesBytes = 0;
    this.#main.trim();
    this.#writes.trim();
  }

  /**
   * Copies the pages of `runs` out of the VM's memory. All of guest memory may be captured three times for one
   * epoch; of a page that stands in it twice the later copy counts.
   * Throws LinuxError ENOSPC when the file system is full; what was captured before stays.
   */
  capture(memory: GuestMemory, runs: readonly PageRun[]): void {
    const offset = this.#pagesEnd();
    const pageCount = countPages(runs);
    this.#main.back(offset + pageCount * PAGE_BYTES);
    memory.readRuns(runs, this.mapping, offset);
    this.#runs = this.#runs.concat(runs);
    this.#pageCount += pageCount;
  }

  /**
   * The same with pages that come from elsewhere: `bytes` are their contents, one after the other. The first run may be the
   * rest of the one before. Returns where they lie.
   */
  append(runs: readonly PageRun[], { bytes, continues }: { bytes: Uint8Array; continues: boolean }): number {
    const offset = this.#pagesEnd();
    const pageCount = countPages(runs);
    assert(bytes.length === pageCount * PAGE_BYTES, 'each page that is appended has its contents');
    const fits =
      (this.#pageCount + pageCount) * PAGE_BYTES <= CAPTURES_MAX * this.#memoryBytes &&
      (this.#runs.length + runs.length) * RUN_BYTES <= CAPTURES_MAX * runsBytesMax(this.#memoryBytes);
    if (!fits) throw corrupt({ path: this.path, epoch: this.#epoch ?? 0 }, 'the number of pages');
    this.#main.back(offset + bytes.length);
    this.mapping.bytes.set(bytes, offset);
    this.#runs = continues ? joined(this.#runs, runs) : this.#runs.concat(runs);
    this.#pageCount += pageCount;
    return offset;
  }

  /**
   * Adds bytes to the writes to disks, encoded elsewhere. Throws REPLICATION_EPOCH_TOO_LARGE, LinuxError ENOSPC; what was
   * added before stays.
   */
  appendWrites(bytes: Uint8Array): void {
    const endBytes = this.#writesBytes + bytes.length;
    if (endBytes > WRITES_BYTES_MAX) throw this.#tooLarge('writes to disks', endBytes);
    this.#writes.back(endBytes);
    this.mapping.bytes.set(bytes, this.#writes.startByte + this.#writesBytes);
    this.#writesBytes = endBytes;
  }

  /** Adds what else belongs to the epoch and seals it with checksums. The VM may run again already. */
  finish({ deviceState, outputs, disks = [] }: FinishOptions): void {
    assert(this.#epoch !== undefined, 'a slot is finished after it was begun');
    for (const part of encodeWrites(disks)) this.appendWrites(part);
    const encoded = encodeOutputs(outputs);
    const tailBytes = deviceState.length + encoded.length;
    const { pagesEnd, tail } = this.#writeTail([deviceState, encoded]);
    this.#set(HEADER.magic, MAGIC);
    this.#set(HEADER.epoch, BigInt(this.#epoch));
    this.#set(HEADER.memoryBytes, BigInt(this.#memoryBytes));
    this.#set(HEADER.runCount, BigInt(this.#runs.length));
    this.#set(HEADER.pageCount, BigInt(this.#pageCount));
    this.#set(HEADER.deviceStateBytes, BigInt(deviceState.length));
    this.#set(HEADER.outputBytes, BigInt(encoded.length));
    this.#set(HEADER.writesBytes, BigInt(this.#writesBytes));
    this.#set(HEADER.pagesHash, this.#hash(PAGE_BYTES, pagesEnd - PAGE_BYTES));
    this.#set(HEADER.runsHash, this.#hash(pagesEnd, tail - pagesEnd));
    this.#set(HEADER.tailHash, this.#hash(tail, tailBytes));
    this.#set(HEADER.writesHash, this.#hash(this.#writes.startByte, this.#writesBytes));
    this.#set(HEADER.headerHash, this.#hash(0, HEADER.headerHash));
  }

  /** What a finished epoch consists of, for another host to put together again with `append`, `appendWrites` and `finishAs`. */
  sections(): EpochSections {
    const pagesEnd = this.#pagesEnd();
    const tail = pagesEnd + this.#runs.length * RUN_BYTES;
    const tailBytes = Number(this.#get(HEADER.deviceStateBytes) + this.#get(HEADER.outputBytes));
    const { bytes } = this.mapping;
    const writesAt = this.#writes.startByte;
    return {
      header: bytes.subarray(0, HEADER_BYTES),
      runs: this.#runs,
      pages: bytes.subarray(PAGE_BYTES, pagesEnd),
      tail: bytes.subarray(tail, tail + tailBytes),
      writes: bytes.subarray(writesAt, writesAt + this.#writesBytes),
    };
  }

  /**
   * Makes what was appended the epoch that `header` speaks of. The checksums in it are those of the host where the epoch
   * was cut: what they fit is what was captured there, whatever it has passed on its way.
   * @throws ReplicationError REPLICATION_EPOCH_CORRUPT, REPLICATION_EPOCH_TOO_LARGE; LinuxError ENOSPC
   */
  finishAs({ header, tail }: Pick<EpochSections, 'header' | 'tail'>): void {
    assert(this.#epoch !== undefined, 'a slot is finished after it was begun');
    const { pagesEnd } = this.#writeTail([tail]);
    this.mapping.bytes.set(header.subarray(0, HEADER_BYTES), 0);
    const fits = (field: number, value: number) => this.#get(field) === BigInt(value);
    const isOurs =
      header.length === HEADER_BYTES &&
      fits(HEADER.epoch, this.#epoch) &&
      fits(HEADER.runCount, this.#runs.length) &&
      PAGE_BYTES + Number(this.#get(HEADER.pageCount)) * PAGE_BYTES === pagesEnd &&
      this.#get(HEADER.deviceStateBytes) + this.#get(HEADER.outputBytes) === BigInt(tail.length) &&
      fits(HEADER.writesBytes, this.#writesBytes);
    if (!isOurs) throw corrupt({ path: this.path, epoch: this.#epoch }, 'the header');
    this.#check();
    // What is held is applied later on: then it is too late to find that it means nothing.
    this.diskWrites();
  }

  /** The shadow holds the whole epoch from the moment that this returns. */
  commit(): void {
    this.#set(HEADER.commitMark, this.#get(HEADER.headerHash) ^ COMMIT_XOR);
  }

  /** All of the epoch is in the memory: whoever goes on from these files need not apply it again. */
  noteApplied(): void {
    this.#set(HEADER.appliedMark, this.#get(HEADER.headerHash) ^ APPLIED_XOR);
  }

  get isApplied(): boolean {
    return this.#get(HEADER.appliedMark) === (this.#get(HEADER.headerHash) ^ APPLIED_XOR);
  }

  /** The epoch if it was committed, checked to the last byte. Throws REPLICATION_EPOCH_CORRUPT. */
  read(): StagedEpoch | undefined {
    const headerHash = this.#get(HEADER.headerHash);
    if (this.#get(HEADER.commitMark) !== (headerHash ^ COMMIT_XOR)) return undefined;
    const { epoch, runCount, pagesEnd, tail, deviceStateBytes, tailBytes } = this.#check();
    return {
      epoch: epochId(epoch),
      runs: this.#readRuns(pagesEnd, runCount),
      pagesOffset: PAGE_BYTES,
      deviceState: Buffer.from(this.mapping.bytes.subarray(tail, tail + deviceStateBytes)),
      outputs: decodeOutputs(
        Buffer.from(this.mapping.bytes.subarray(tail + deviceStateBytes, tail + tailBytes)),
      ),
      disks: this.diskWrites(),
    };
  }

  /** The writes to disks of a finished epoch, without another look at checksums. Data are views of the slot. */
  diskWrites(): EpochWrites[] {
    const at = this.#writes.startByte;
    return decodeWrites(this.mapping.bytes.subarray(at, at + Number(this.#get(HEADER.writesBytes))));
  }

  /** Every checksum. @throws ReplicationError REPLICATION_EPOCH_CORRUPT */
  #check(): Layout {
    const size = (field: number): number => Number(this.#get(field));
    const epoch = size(HEADER.epoch);
    const check = (what: string, holds: boolean): void => {
      if (!holds) throw corrupt({ path: this.path, epoch }, what);
    };
    const headerHash = this.#get(HEADER.headerHash);
    check('the header', this.#get(HEADER.magic) === MAGIC && this.#hash(0, HEADER.headerHash) === headerHash);
    check('the memory size', size(HEADER.memoryBytes) === this.#memoryBytes);
    const runCount = size(HEADER.runCount);
    const pagesEnd = PAGE_BYTES + size(HEADER.pageCount) * PAGE_BYTES;
    const tail = pagesEnd + runCount * RUN_BYTES;
    const deviceStateBytes = size(HEADER.deviceStateBytes);
    const tailBytes = deviceStateBytes + size(HEADER.outputBytes);
    check('the memory', this.#hash(PAGE_BYTES, pagesEnd - PAGE_BYTES) === this.#get(HEADER.pagesHash));
    check('the list of pages', this.#hash(pagesEnd, tail - pagesEnd) === this.#get(HEADER.runsHash));
    check('the device state', this.#hash(tail, tailBytes) === this.#get(HEADER.tailHash));
    const writesBytes = size(HEADER.writesBytes);
    const writesHash = this.#hash(this.#writes.startByte, Math.min(writesBytes, WRITES_BYTES_MAX));
    check('the writes to disks', writesHash === this.#get(HEADER.writesHash));
    return { epoch, runCount, pagesEnd, tail, deviceStateBytes, tailBytes };
  }

  /** Closes the file and leaves it for whoever goes on from it. */
  leave(): void {
    this.mapping[Symbol.dispose]();
    closeSync(this.#fd);
  }

  [Symbol.dispose](): void {
    this.mapping[Symbol.dispose]();
    unlinkSync(this.path);
    closeSync(this.#fd);
  }

  /** The same, without holding this thread up. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.mapping[Symbol.dispose]();
    unlinkSync(this.path);
    await closeElsewhere(this.#fd);
  }

  /** The list of pages and what follows it. */
  #writeTail(parts: readonly Uint8Array[]): { pagesEnd: number; tail: number } {
    const tailBytes = parts.reduce((sum, part) => sum + part.length, 0);
    if (tailBytes > TAIL_BYTES_MAX) throw this.#tooLarge('device state and output', tailBytes);
    const pagesEnd = this.#pagesEnd();
    const tail = pagesEnd + this.#runs.length * RUN_BYTES;
    this.#main.back(tail + tailBytes);
    this.#writeRuns(pagesEnd);
    let offset = tail;
    for (const part of parts) {
      this.mapping.bytes.set(part, offset);
      offset += part.length;
    }
    return { pagesEnd, tail };
  }

  #pagesEnd(): number {
    return PAGE_BYTES + this.#pageCount * PAGE_BYTES;
  }

  #table(offset: number, runCount: number): DataView {
    return new DataView(
      this.mapping.bytes.buffer,
      this.mapping.bytes.byteOffset + offset,
      runCount * RUN_BYTES,
    );
  }

  #writeRuns(offset: number): void {
    const table = this.#table(offset, this.#runs.length);
    for (const [index, run] of this.#runs.entries()) {
      table.setUint32(index * RUN_BYTES, run.firstPage, true);
      table.setUint32(index * RUN_BYTES + 4, run.pageCount, true);
    }
  }

  #readRuns(offset: number, runCount: number): PageRun[] {
    const table = this.#table(offset, runCount);
    return Array.from({ length: runCount }, (_, index) => ({
      firstPage: table.getUint32(index * RUN_BYTES, true),
      pageCount: table.getUint32(index * RUN_BYTES + 4, true),
    }));
  }

  #tooLarge(what: string, bytes: number): ReplicationError {
    const message = `${what} of epoch ${this.#epoch} take ${bytes} bytes`;
    return new ReplicationError('REPLICATION_EPOCH_TOO_LARGE', message);
  }

  #hash(offset: number, lengthBytes: number): bigint {
    return xxh64(this.mapping.bytes.subarray(offset, offset + lengthBytes));
  }

  #set(field: number, value: bigint): void {
    this.#view.setBigUint64(field, value, true);
  }

  #get(field: number): bigint {
    return this.#view.getBigUint64(field, true);
  }
}

interface FinishOptions {
  readonly deviceState: Uint8Array;
  readonly outputs: readonly LinkOutput[];
  readonly disks?: readonly EpochWrites[];
}

function mainBytesMax(memoryBytes: number): number {
  return PAGE_BYTES + CAPTURES_MAX * (memoryBytes + runsBytesMax(memoryBytes)) + TAIL_BYTES_MAX;
}

/** At worst every second page is dirty. */
function runsBytesMax(memoryBytes: number): number {
  return (memoryBytes / PAGE_BYTES / 2 + 1) * RUN_BYTES;
}

function corrupt({ path, epoch }: { path: string; epoch: number }, what: string): ReplicationError {
  return new ReplicationError(
    'REPLICATION_EPOCH_CORRUPT',
    `epoch ${epoch} in ${path}: ${what} does not fit its checksum`,
    {
      facts: { path, epoch },
      hint: 'The shadow cannot be trusted; the VM is not promoted from it. Check the memory of this host.',
    },
  );
}

/** `more` goes on where `runs` end; if it does not, checksums will not fit. */
function joined(runs: readonly PageRun[], [first, ...more]: readonly PageRun[]): PageRun[] {
  const last = runs.at(-1);
  if (last === undefined || first === undefined) return [...runs, ...more];
  const whole = { firstPage: last.firstPage, pageCount: last.pageCount + first.pageCount };
  return [...runs.slice(0, -1), whole, ...more];
}
