import { assert } from '../base/assert.ts';
import type { DiskWrite } from './disk-write.ts';

/** A disk's writes are kept in blocks of this size: what guests write in, nearly always. */
export const BLOCK_BYTES = 4096;
/** What keeping track of a block takes, beside its bytes. */
export const BLOCK_COST_BYTES = 64;
/** Zeros are noted down block by block; so many at a time, about a millisecond. */
export const ZERO_STEP_BLOCKS = 8192;

/** Whole blocks that were written at once, and how many of them nobody has written since. */
interface DataRecord {
  readonly kind: 'data';
  readonly firstBlock: number;
  readonly bytes: Uint8Array;
  /** Where the bytes are used again by whoever they came from. */
  readonly onFree: (() => void) | undefined;
  live: number;
}

interface ZeroRecord {
  readonly kind: 'zero';
  readonly mayPunch: boolean;
}

const ZERO: ZeroRecord = { kind: 'zero', mayPunch: false };
const HOLE: ZeroRecord = { kind: 'zero', mayPunch: true };

export type BlockContent =
  | { readonly kind: 'data'; readonly bytes: Uint8Array }
  | { readonly kind: 'zero'; readonly mayPunch: boolean };

/** The newest content of each block that was written in some time: the redo record of an epoch, or of a part of one. */
export class WriteSet {
  readonly #blocks = new Map<number, DataRecord | ZeroRecord>();
  readonly #lent = new Set<DataRecord>();
  #recordBytes = 0;

  get isEmpty(): boolean {
    return this.#blocks.size === 0;
  }

  /** Memory that this holds, about. */
  get heldBytes(): number {
    return this.#recordBytes + this.#blocks.size * BLOCK_COST_BYTES;
  }

  /** Whole blocks. `bytes` are kept, not copied; once they have been written over, or this is released, they are free. */
  put(
    firstBlock: number,
    bytes: Uint8Array,
    { onFree }: { readonly onFree?: (() => void) | undefined } = {},
  ): void {
    const count = bytes.length / BLOCK_BYTES;
    assert(Number.isInteger(count), 'whole blocks are kept');
    const record: DataRecord = { kind: 'data', firstBlock, bytes, onFree, live: count };
    if (onFree !== undefined) this.#lent.add(record);
    this.#recordBytes += bytes.length;
    for (let block = firstBlock; block < firstBlock + count; block++) this.#set(block, record);
  }

  putZeros(firstBlock: number, count: number, options: { readonly mayPunch: boolean }): void {
    const record = options.mayPunch ? HOLE : ZERO;
    for (let block = firstBlock; block < firstBlock + count; block++) this.#set(block, record);
  }

  get(block: number): BlockContent | undefined {
    const record = this.#blocks.get(block);
    if (record?.kind !== 'data') return record;
    const at = (block - record.firstBlock) * BLOCK_BYTES;
    return { kind: 'data', bytes: record.bytes.subarray(at, at + BLOCK_BYTES) };
  }

  /** Gives back what is kept. Nobody reads any of it after that. */
  release(): void {
    for (const { onFree } of this.#lent) onFree?.();
    this.#lent.clear();
    this.#blocks.clear();
    this.#recordBytes = 0;
  }

  /** Takes over what another one, written later, has. */
  absorb(newer: WriteSet): void {
    for (const block of newer.#blocks.keys()) {
      const content = newer.get(block);
      assert(content !== undefined, 'a block that is listed is there');
      if (content.kind === 'data') this.put(block, content.bytes);
      else this.putZeros(block, 1, content);
    }
  }

  /** All of it in the order of the disk, in as few pieces as there are, up to the end of the disk. */
  writes(options: { readonly diskBytes: number }): DiskWrite[] {
    const found: DiskWrite[] = [];
    const blocks = Float64Array.from(this.#blocks.keys()).sort();
    for (let index = 0; index < blocks.length; ) {
      const first = at(blocks, index);
      const record = this.#blocks.get(first);
      assert(record !== undefined, 'a block that is listed is there');
      let count = 1;
      while (blocks[index + count] === first + count && this.#blocks.get(first + count) === record) count++;
      index += count;
      found.push(pieceOf(record, { first, count, diskBytes: options.diskBytes }));
    }
    return found;
  }

  #set(block: number, record: DataRecord | ZeroRecord): void {
    const former = this.#blocks.get(block);
    this.#blocks.set(block, record);
    if (former?.kind !== 'data') return;
    former.live -= 1;
    if (former.live > 0) return;
    this.#recordBytes -= former.bytes.length;
    if (this.#lent.delete(former)) former.onFree?.();
  }
}

function pieceOf(
  record: DataRecord | ZeroRecord,
  { first, count, diskBytes }: { first: number; count: number; diskBytes: number },
): DiskWrite {
  const offset = first * BLOCK_BYTES;
  const lengthBytes = Math.min(count * BLOCK_BYTES, diskBytes - offset);
  if (record.kind === 'zero') return { kind: 'zero', offset, lengthBytes, mayPunch: record.mayPunch };
  const start = (first - record.firstBlock) * BLOCK_BYTES;
  return { kind: 'data', offset, bytes: record.bytes.subarray(start, start + lengthBytes) };
}

function at(blocks: Float64Array, index: number): number {
  const block = blocks[index];
  assert(block !== undefined, 'the index lies inside');
  return block;
}
