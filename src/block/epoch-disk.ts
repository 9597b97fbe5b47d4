import { assert } from '../base/assert.ts';
import { ConditionWaiters } from '../base/condition-waiters.ts';
import { messageOf } from '../base/errors.ts';
import { MIB } from '../base/units.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import type { EpochParticipant } from '../epoch/participant.ts';
import {
  appendExtent,
  type BlockDevice,
  type DiskExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';
import { BlockError } from './block-error.ts';
import { DiskOverlay, merged, type Segment } from './disk-overlay.ts';
import type { DiskWrite } from './disk-write.ts';
import type { JournalEntry } from './journal-entry.ts';
import type { JournaledImage } from './journaled-image.ts';
import { BLOCK_BYTES, type BlockContent } from './write-set.ts';

/**
 * `in-sync`: all output waits for the shadow, so that nobody can see that a flush was answered before its epoch was
 * committed; it is answered at once. `asynchronous`, `alone`: what the guest is told is durable is in the image.
 */
export type DiskMode = 'in-sync' | 'asynchronous' | 'alone';

export interface EpochDiskOptions {
  /** Belongs to the disk, which closes it. */
  readonly image: JournaledImage;
  readonly mode: DiskMode;
  /** The VM's token now. Goes along with everything that is written. */
  readonly token: () => number;
  /** What may wait in memory for its epoch, about. */
  readonly heldBytesMax: number;
  /** More than half of that is held, and only a cut makes room. Called again for each write until there is. */
  readonly onCutWanted: () => void;
  /** The image cannot be written any more. Every request fails from now on. */
  readonly onFailed: (failure: BlockError) => void;
}

/** Zeros are noted down block by block; so many at a time, about a millisecond. */
const ZERO_STEP_BLOCKS = 8192;
/** Looked at in one question about extents while there is something above the image. */
const EXTENT_SPAN_BYTES = 16 * MIB;
/** Writes that are let through while there is no room are some requests of one guest, and these are limited. */
const HELD_BYTES_LIMIT = 512 * MIB;

/**
 * A guest's disk that commits with the VM's epochs. Reads see all writes at once; the image receives an epoch when it is
 * committed, whole or not at all; epochs that never were vanish with `rollBack`.
 *
 * Before the VM is stopped for a cut, call `letThrough`: `stop` waits for all requests of the guest, and one that waits
 * for room would wait for the very cut.
 */
export class EpochDisk implements BlockDevice, EpochParticipant, AsyncDisposable {
  readonly sizeBytes: number;
  readonly fastZero = true;
  readonly #options: EpochDiskOptions;
  readonly #overlay = new DiskOverlay();
  readonly #changes = new ConditionWaiters();
  #mode: DiskMode;
  #committed: EpochId = NO_EPOCH;
  #durable: EpochId = NO_EPOCH;
  #lettingThrough = false;
  /** Counts how often something left the overlay for the image. */
  #retirements = 0;
  #writing: Promise<void> | undefined;
  #failure: BlockError | undefined;
  #closed = false;

  constructor(options: EpochDiskOptions) {
    assert(options.heldBytesMax <= HELD_BYTES_LIMIT, 'the table of held blocks has room for that');
    this.#options = options;
    this.#mode = options.mode;
    this.sizeBytes = options.image.device.sizeBytes;
  }

  /** Memory that waiting writes take, about. */
  get heldBytes(): number {
    return this.#overlay.heldBytes;
  }

  /** Something is on its way to the image. */
  get isWriting(): boolean {
    return this.#writing !== undefined;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#refuseFailed();
    const endByte = offset + into.length;
    const waits: Promise<void>[] = [];
    let missingFrom = offset;
    const readMissing = (upTo: number) => {
      if (upTo > missingFrom) {
        waits.push(this.#base.read(missingFrom, into.subarray(missingFrom - offset, upTo - offset)));
      }
    };
    // What lies above the image is copied now: later it may be in the image, and the image is read for the rest only.
    for (let at = offset; at < endByte && !this.#overlay.isEmpty; ) {
      const block = Math.floor(at / BLOCK_BYTES);
      const next = Math.min(endByte, (block + 1) * BLOCK_BYTES);
      const content = this.#overlay.get(block);
      if (content !== undefined) {
        readMissing(at);
        copyContent(content, into.subarray(at - offset, next - offset), at - block * BLOCK_BYTES);
        missingFrom = next;
      }
      at = next;
    }
    readMissing(endByte);
    await Promise.all(waits);
  }

  async write(offset: number, bytes: Uint8Array, { fua = false }: WriteOptions = {}): Promise<void> {
    await this.#room();
    const parts = aligned(offset, bytes.length, { diskBytes: this.sizeBytes });
    if (parts.count > 0) {
      const start = parts.firstBlock * BLOCK_BYTES - offset;
      const blocks = bytes.subarray(start, start + parts.count * BLOCK_BYTES);
      this.#overlay.open.put(parts.firstBlock, ownMemory(blocks));
    }
    for (const { at, lengthBytes } of parts.edges) {
      await this.#patch(at, bytes.subarray(at - offset, at - offset + lengthBytes));
    }
    if (fua) await this.flush();
  }

  async zero(offset: number, lengthBytes: number, { mayPunch, fua = false }: ZeroOptions): Promise<void> {
    await this.#room();
    const parts = aligned(offset, lengthBytes, { diskBytes: this.sizeBytes });
    await this.#putZeros(parts, { mayPunch });
    for (const edge of parts.edges) await this.#patch(edge.at, new Uint8Array(edge.lengthBytes));
    if (fua) await this.flush();
  }

  /** What is not a whole block keeps its content, as it may. */
  async trim(offset: number, lengthBytes: number, { fua = false }: WriteOptions = {}): Promise<void> {
    await this.#putZeros(aligned(offset, lengthBytes, { diskBytes: this.sizeBytes }), { mayPunch: true });
    if (fua) await this.flush();
  }

  async flush(): Promise<void> {
    this.#refuseFailed();
    if (this.#mode !== 'in-sync') await this.#writeAll();
  }

  async extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    if (this.#overlay.isEmpty) return await this.#base.extents(offset, lengthBytes);
    const found: DiskExtent[] = [];
    const below = await this.#base.extents(offset, Math.min(lengthBytes, EXTENT_SPAN_BYTES));
    let at = offset;
    for (const extent of below) {
      const endByte = at + extent.lengthBytes;
      while (at < endByte) {
        const block = Math.floor(at / BLOCK_BYTES);
        const next = Math.min(endByte, (block + 1) * BLOCK_BYTES);
        appendExtent(found, { ...extentOf(this.#overlay.get(block), extent), lengthBytes: next - at });
        at = next;
      }
    }
    return found;
  }

  seal(epoch: EpochId): void {
    this.#overlay.seal(epoch);
    this.#lettingThrough = false;
  }

  commit(epoch: EpochId): void {
    this.#overlay.commit(epoch);
    this.#committed = epoch;
    this.#retire();
    this.#startWriting();
  }

  abort(epoch: EpochId): void {
    this.#overlay.unseal(epoch);
    this.#retire();
  }

  /** What the shadow's disk has to receive for this epoch. To be asked for between `seal` and `commit`. */
  sealedWrites(epoch: EpochId): DiskWrite[] {
    return this.#overlay.writesOf(epoch, { diskBytes: this.sizeBytes });
  }

  /** Resolves when a committed epoch survives a loss of power on this side: for `commit: durable`. @throws BlockError */
  async durable(epoch: EpochId): Promise<void> {
    const isDurable = () => this.#durable >= epoch || !this.#overlay.hasUnwrittenUpTo(epoch);
    await this.#changes.until(() => this.#failure !== undefined || this.#closed || isDurable());
    if (!isDurable()) this.#refuseFailed();
  }

  /**
   * Drops this epoch and all that is newer: the VM goes on from an earlier one. Nothing may be connected to the disk.
   * @throws BlockError BLOCK_ROLLBACK_TOO_LATE: the guest had some of it flushed while no shadow was in sync
   */
  rollBack(epoch: EpochId): void {
    assert(epoch > this.#committed, 'what was committed stays');
    if (!this.#overlay.drop(epoch)) {
      throw new BlockError(
        'BLOCK_ROLLBACK_TOO_LATE',
        `writes since epoch ${epoch} are in the image already`,
        {
          hint: 'Use the disk of the other side, or go on with this one as after a loss of power: boot the VM anew.',
        },
      );
    }
    this.#changes.check();
  }

  /**
   * Resolves when what the guest was told is durable is so in the new mode: only then output may leave that waits for
   * nobody. @throws BlockError BLOCK_DISK_FAILED
   */
  async setMode(mode: DiskMode): Promise<void> {
    if (mode !== 'in-sync') this.#mode = mode;
    this.#retire();
    // Also when a shadow is in sync from now on: what was flushed without one is in the image before an epoch can be taken
    // back.
    await this.#writeAll();
    this.#mode = mode;
  }

  /** From now until the next `seal` writes do not wait for room. */
  letThrough(): void {
    this.#lettingThrough = true;
    this.#changes.check();
  }

  /** Committed epochs are written; what was not committed is not. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#changes.check();
    while (this.#writing !== undefined) await this.#writing;
    await this.#options.image.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  get #base(): BlockDevice {
    return this.#options.image.device;
  }

  async #putZeros(parts: Aligned, options: { readonly mayPunch: boolean }): Promise<void> {
    const endBlock = parts.firstBlock + parts.count;
    for (let block = parts.firstBlock; block < endBlock; block += ZERO_STEP_BLOCKS) {
      await this.#room();
      this.#overlay.open.putZeros(block, Math.min(ZERO_STEP_BLOCKS, endBlock - block), options);
      if (block + ZERO_STEP_BLOCKS < endBlock) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Writes a part of a block. */
  async #patch(at: number, bytes: Uint8Array): Promise<void> {
    const block = Math.floor(at / BLOCK_BYTES);
    const start = block * BLOCK_BYTES;
    const whole = new Uint8Array(BLOCK_BYTES);
    let content = this.#overlay.get(block);
    while (content === undefined) {
      const seen = this.#retirements;
      await this.#base.read(start, whole.subarray(0, Math.min(BLOCK_BYTES, this.sizeBytes - start)));
      content = this.#overlay.get(block);
      // Written, committed and in the image, all while it was read: what was read is too old then.
      if (content === undefined && seen === this.#retirements) content = { kind: 'data', bytes: whole };
    }
    if (content.kind === 'zero') whole.fill(0);
    else if (content.bytes !== whole) whole.set(content.bytes);
    whole.set(bytes, at - start);
    this.#overlay.open.put(block, whole);
  }

  /** Waits until a write may be held. A cut is asked for, or writing begun, well before there is no room left. */
  async #room(): Promise<void> {
    this.#refuseFailed();
    const { heldBytesMax, onCutWanted } = this.#options;
    if (this.#overlay.heldBytes < heldBytesMax / 2) return;
    if (this.#mode === 'alone') {
      this.#overlay.releaseAll();
      this.#startWriting();
    } else onCutWanted();
    await this.#changes.until(
      () =>
        this.#overlay.heldBytes < heldBytesMax ||
        this.#lettingThrough ||
        this.#closed ||
        this.#failure !== undefined,
    );
    this.#refuseFailed();
  }

  async #writeAll(): Promise<void> {
    this.#overlay.releaseAll();
    // What comes after this belongs to the next flush: do not wait for it.
    const due = this.#overlay.due();
    this.#startWriting();
    await this.#changes.until(
      () => this.#failure !== undefined || due.every(({ state }) => state === 'written'),
    );
    if (!due.every(({ state }) => state === 'written')) this.#refuseFailed();
    assert(
      due.every(({ state }) => state === 'written'),
      'a flush is answered when all is written',
    );
  }

  #startWriting(): void {
    if (this.#writing !== undefined || this.#failure !== undefined) return;
    if (this.#overlay.due().length === 0) return;
    this.#writing = this.#write().finally(() => {
      this.#writing = undefined;
      this.#changes.check();
    });
  }

  async #write(): Promise<void> {
    try {
      for (let due = this.#overlay.due(); due.length > 0; due = this.#overlay.due()) {
        const entries = this.#entriesOf(due);
        const onDurable = () => {
          this.#durable = entries.at(-1)?.epoch ?? this.#durable;
          this.#changes.check();
        };
        await this.#options.image.apply(entries, { onDurable });
        for (const segment of due) segment.state = 'written';
        this.#retire();
        this.#changes.check();
      }
    } catch (thrown) {
      this.#failure = failed(thrown);
      this.#options.onFailed(this.#failure);
    }
  }

  /** One entry an epoch, so that none is in the image by halves, and one for all that was flushed beyond. */
  #entriesOf(due: readonly Segment[]): JournalEntry[] {
    const token = this.#options.token();
    let position = Math.max(this.#options.image.position.epoch, NO_EPOCH) as EpochId;
    const groups = Map.groupBy(due, (segment) => (segment.committed ? segment.epoch : undefined));
    return [...groups].map(([epoch, segments]) => {
      position = epoch ?? position;
      return { epoch: position, token, writes: merged(segments).writes({ diskBytes: this.sizeBytes }) };
    });
  }

  #retire(): void {
    this.#overlay.retire({ shadowNeeds: this.#mode !== 'alone' });
    this.#retirements += 1;
    this.#changes.check();
  }

  #refuseFailed(): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#closed) {
      throw new BlockError('BLOCK_DISK_CLOSED', 'the disk is closed', {
        hint: 'Nothing: the VM that it belonged to has ended.',
      });
    }
  }
}

interface Aligned {
  readonly firstBlock: number;
  readonly count: number;
  /** What is no whole block: at the beginning, at the end, or both. */
  readonly edges: readonly { readonly at: number; readonly lengthBytes: number }[];
}

/** Whole blocks and the rest. The last block of a disk is whole only where the disk is a multiple of blocks. */
function aligned(offset: number, lengthBytes: number, { diskBytes }: { diskBytes: number }): Aligned {
  const endByte = offset + lengthBytes;
  assert(offset >= 0 && endByte <= diskBytes, `${lengthBytes} bytes at ${offset} lie outside of the disk`);
  const firstBlock = Math.ceil(offset / BLOCK_BYTES);
  const endBlock = Math.floor(endByte / BLOCK_BYTES);
  if (endBlock < firstBlock) return { firstBlock, count: 0, edges: [{ at: offset, lengthBytes }] };
  const edges = [
    { at: offset, lengthBytes: firstBlock * BLOCK_BYTES - offset },
    { at: endBlock * BLOCK_BYTES, lengthBytes: endByte - endBlock * BLOCK_BYTES },
  ];
  return { firstBlock, count: endBlock - firstBlock, edges: edges.filter((edge) => edge.lengthBytes > 0) };
}

/** Bytes that keep no more memory than they count for: a small write may be a view of all that came with it. */
function ownMemory(bytes: Uint8Array): Uint8Array {
  return bytes.buffer.byteLength > 2 * bytes.length ? new Uint8Array(bytes) : bytes;
}

function copyContent(content: BlockContent, into: Uint8Array, from: number): void {
  if (content.kind === 'zero') into.fill(0);
  else into.set(content.bytes.subarray(from, from + into.length));
}

function extentOf(content: BlockContent | undefined, below: DiskExtent): Omit<DiskExtent, 'lengthBytes'> {
  if (content === undefined) return below;
  if (content.kind === 'data') return { hole: false, zero: false };
  return { hole: content.mayPunch, zero: true };
}

function failed(cause: unknown): BlockError {
  return new BlockError('BLOCK_DISK_FAILED', `a disk cannot be written any more: ${messageOf(cause)}`, {
    hint: 'Free space or mend the disk of this host. The other side has all that was committed.',
    cause,
  });
}
