import { assert } from '../base/assert.ts';
import { ConditionWaiters } from '../base/condition-waiters.ts';
import { MIB } from '../base/units.ts';
import { type EpochId, epochId, NO_EPOCH, nextEpoch } from '../epoch/epoch-id.ts';
import type { EpochParticipant } from '../epoch/participant.ts';
import type { BlockDevice, DiskExtent, WriteOptions, ZeroOptions } from './block-device.ts';
import type { BlockError } from './block-error.ts';
import { diskClosed, diskFailed, diskUnreadable } from './disk-failures.ts';
import { DiskOverlay, merged, type Segment } from './disk-overlay.ts';
import { type Aligned, aligned, inZeroSteps, ownMemory } from './disk-range.ts';
import { DiskView } from './disk-view.ts';
import type { DiskWrite } from './disk-write.ts';
import type { JournalEntry } from './journal-entry.ts';
import { type JournaledImage, rollbackTooLate } from './journaled-image.ts';
import { BLOCK_BYTES } from './write-set.ts';

/**
 * `in-sync`: all output waits for the shadow, so that nobody can see that a flush was answered before its epoch was
 * committed; it is answered at once. `asynchronous`: what the guest is told is durable is in the image. `alone`: what it is told is written
 * is, so that it survives this process.
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
  /** The image cannot be read in some place. The guest is told so as soon as this returns. */
  readonly onUnreadable?: ((failure: BlockError) => void) | undefined;
}

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
  readonly #view: DiskView;
  readonly #changes = new ConditionWaiters();
  #mode: DiskMode;
  #committed: EpochId = NO_EPOCH;
  #sealed: EpochId = NO_EPOCH;
  #kept: EpochId = NO_EPOCH;
  #durable: EpochId = NO_EPOCH;
  /** No shadow is in sync any more, or will not be: what was not committed waits in the journal to be let into the image. */
  #leaving: { readonly mayWrite: PromiseWithResolvers<boolean>; readonly epoch: EpochId } | undefined;
  /** Writes on their way to the image, and into the overlay. */
  #passing = 0;
  #composing = 0;
  #lettingThrough = false;
  /** Counts how often something left the overlay for the image. */
  #retirements = 0;
  #writing: Promise<void> | undefined;
  #failure: BlockError | undefined;
  #closed = false;
  #onWritten: ((offset: number, lengthBytes: number) => void) | undefined;

  constructor(options: EpochDiskOptions) {
    assert(options.heldBytesMax <= HELD_BYTES_LIMIT, 'the table of held blocks has room for that');
    this.#options = options;
    this.#mode = options.mode;
    this.#view = new DiskView(this.#overlay, options.image.device);
    this.sizeBytes = options.image.device.sizeBytes;
  }

  /** Memory that waiting writes take, about. */
  get heldBytes(): number {
    return this.#overlay.heldBytes;
  }

  /** It cannot be written any more. */
  get hasFailed(): boolean {
    return this.#failure !== undefined;
  }

  /** Something is on its way to the image. */
  get isWriting(): boolean {
    return this.#writing !== undefined;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#refuseFailed();
    await this.#readable(this.#view.read(offset, into));
  }

  async write(offset: number, bytes: Uint8Array, options: WriteOptions = {}): Promise<void> {
    if (await this.#passesThrough())
      return await this.#through([offset, bytes.length], (image) => image.write(offset, bytes, options));
    using composing = this.#compose();
    const parts = aligned(offset, bytes.length, { diskBytes: this.sizeBytes });
    if (parts.count > 0) {
      const start = parts.firstBlock * BLOCK_BYTES - offset;
      const blocks = bytes.subarray(start, start + parts.count * BLOCK_BYTES);
      const kept = ownMemory(blocks);
      // What was copied, or has edges that are still to be read, is left to the garbage collector.
      const isWhole = kept === blocks && parts.edges.length === 0;
      this.#put(parts.firstBlock, kept, isWhole ? { onFree: options.onFree } : {});
    }
    for (const { at, lengthBytes } of parts.edges) {
      await this.#patch(at, bytes.subarray(at - offset, at - offset + lengthBytes));
    }
    await this.#answerable(composing, options);
  }

  async zero(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    if (await this.#passesThrough())
      return await this.#through([offset, lengthBytes], (image) => image.zero(offset, lengthBytes, options));
    const { mayPunch, fua = false } = options;
    using composing = this.#compose();
    const parts = aligned(offset, lengthBytes, { diskBytes: this.sizeBytes });
    await this.#putZeros(parts, { mayPunch });
    for (const edge of parts.edges) await this.#patch(edge.at, new Uint8Array(edge.lengthBytes));
    await this.#answerable(composing, { fua });
  }

  /** What is not a whole block keeps its content, as it may. */
  async trim(offset: number, lengthBytes: number, options: WriteOptions = {}): Promise<void> {
    if (await this.#passesThrough())
      return await this.#through([offset, lengthBytes], (image) => image.trim(offset, lengthBytes, options));
    using composing = this.#compose();
    await this.#putZeros(aligned(offset, lengthBytes, { diskBytes: this.sizeBytes }), { mayPunch: true });
    await this.#answerable(composing, options);
  }

  async flush(): Promise<void> {
    this.#refuseFailed();
    if (this.#mode === 'in-sync') return;
    await this.#writeAll();
    if (this.#mode === 'alone') await this.#base.flush();
  }

  async extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    return await this.#view.extents(offset, lengthBytes);
  }

  seal(epoch: EpochId): void {
    this.#overlay.seal(epoch);
    this.#sealed = epoch;
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
   * Undefined, or resolves, when a committed epoch survives the end of this process: when the journal has it.
   * @throws BlockError BLOCK_DISK_FAILED
   */
  kept(epoch: EpochId): Promise<void> | undefined {
    const isKept = () => this.#kept >= epoch || !this.#overlay.hasUnwrittenUpTo(epoch);
    if (isKept()) return undefined;
    return this.#until(isKept);
  }

  /** Resolves when this epoch, which was sealed, and all before it are in the image. @throws BlockError */
  async written(epoch: EpochId): Promise<void> {
    await this.#until(() => !this.#overlay.hasUnwrittenUpTo(epoch));
  }

  /**
   * Drops this epoch and all that is newer: the VM goes on from an earlier one. Nothing may be connected to the disk.
   * @throws BlockError BLOCK_ROLLBACK_TOO_LATE: the guest had some of it flushed while no shadow was in sync
   */
  rollBack(epoch: EpochId): void {
    assert(epoch > this.#committed, 'what was committed stays');
    if (!this.#overlay.drop(epoch)) throw rollbackTooLate(epoch);
    this.#changes.check();
  }

  /**
   * Resolves when all that the guest was told is written is in the journal, behind all epochs, and nothing more is told.
   * What was not committed reaches the image with `setMode` only, or never, with `withdraw`. The VM makes no epoch meanwhile.
   * @throws BlockError BLOCK_DISK_FAILED
   */
  async keepAll(): Promise<void> {
    this.#leaving ??= {
      mayWrite: Promise.withResolvers<boolean>(),
      epoch: nextEpoch(epochId(Math.max(this.#sealed, this.#committed, this.#options.image.position.epoch))),
    };
    await this.#until(() => this.#composing === 0);
    this.#overlay.releaseAll();
    const due = this.#overlay.due();
    this.#startWriting();
    await this.#until(() => due.every(({ state }) => state !== 'due'));
  }

  /** What was kept and not committed can be rolled back again. */
  async withdraw(): Promise<void> {
    this.#leaving?.mayWrite.resolve(false);
    while (this.#writing !== undefined) await this.#writing;
    this.#leaving = undefined;
    this.#changes.check();
  }

  /**
   * Resolves when what the guest was told is durable is so in the new mode: only then output may leave that waits for
   * nobody. From then on writes of a disk that is alone go to the image before they are answered.
   * @throws BlockError BLOCK_DISK_FAILED
   */
  async setMode(mode: DiskMode): Promise<void> {
    if (mode !== 'in-sync') this.#mode = mode;
    this.#leaving?.mayWrite.resolve(true);
    await this.#until(() => this.#passing === 0 || mode === 'alone');
    this.#retire();
    // Also when a shadow is in sync from now on: what was flushed without one is in the image before an epoch can be taken
    // back.
    await this.#writeAll();
    this.#leaving = undefined;
    this.#mode = mode;
    this.#changes.check();
  }

  /** Tells what reads see from now on, as soon as all of it is seen; until the returned function is called. */
  watch(onWritten: (offset: number, lengthBytes: number) => void): () => void {
    assert(this.#onWritten === undefined, 'a disk is watched by one at a time');
    this.#onWritten = onWritten;
    return () => {
      this.#onWritten = undefined;
    };
  }

  /** The image says for good that a writer with the token of now has had it. @throws BlockError BLOCK_DISK_FAILED */
  async noteToken(): Promise<void> {
    while (this.#writing !== undefined) await this.#writing;
    this.#refuseFailed();
    const noting = this.#options.image.noteToken(this.#options.token());
    this.#writing = noting
      .catch(() => {})
      .finally(() => {
        this.#writing = undefined;
        this.#startWriting();
        this.#changes.check();
      });
    await noting.catch((thrown) => {
      throw diskFailed(thrown);
    });
  }

  /** In sync at once, with an epoch that is cut now: the VM stands still, and no write of its is on its way. */
  join(): void {
    assert(this.#passing === 0, 'a VM that stands still has had its answers');
    this.#mode = 'in-sync';
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
    this.#leaving?.mayWrite.resolve(false);
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

  async #readable(reading: Promise<void>): Promise<void> {
    try {
      await reading;
    } catch (thrown) {
      if (!this.#closed) this.#options.onUnreadable?.(diskUnreadable(thrown));
      throw thrown;
    }
  }

  #put(firstBlock: number, bytes: Uint8Array, options: Pick<WriteOptions, 'onFree'> = {}): void {
    this.#overlay.open.put(firstBlock, bytes, options);
    this.#onWritten?.(firstBlock * BLOCK_BYTES, bytes.length);
  }

  async #putZeros(parts: Aligned, options: { readonly mayPunch: boolean }): Promise<void> {
    await inZeroSteps(parts, async (block, count) => {
      await this.#room();
      this.#overlay.open.putZeros(block, count, options);
      this.#onWritten?.(block * BLOCK_BYTES, count * BLOCK_BYTES);
    });
  }

  /** Whether a write goes to the image at once. Waits for room where it does not. */
  async #passesThrough(): Promise<boolean> {
    for (;;) {
      this.#refuseFailed();
      if (this.#leaving !== undefined) await this.#until(() => this.#leaving === undefined);
      else if (this.#mode === 'alone') {
        if (this.#overlay.isEmpty && this.#composing === 0) return true;
        await this.#until(() => this.#overlay.isEmpty && this.#composing === 0);
      } else if (this.#passing > 0) {
        // What is put together from a part of the image must not be older than that.
        await this.#until(() => this.#passing === 0);
      } else if (await this.#room()) return false;
    }
  }

  async #through(
    range: readonly [offset: number, lengthBytes: number],
    write: (image: BlockDevice) => Promise<void>,
  ): Promise<void> {
    this.#passing += 1;
    try {
      await this.#options.image.settle();
      await write(this.#base);
    } finally {
      this.#passing -= 1;
      this.#onWritten?.(...range);
      this.#changes.check();
    }
  }

  /** Until what it returns is disposed of something is on its way into the overlay. */
  #compose(): DisposableStack {
    const composing = new DisposableStack();
    this.#composing += 1;
    composing.defer(() => {
      this.#composing -= 1;
      this.#changes.check();
    });
    return composing;
  }

  /** What was put into the overlay may be told to be written: where no shadow holds it, when the image does. */
  async #answerable(composing: DisposableStack, { fua = false }: WriteOptions): Promise<void> {
    composing.dispose();
    if (this.#mode === 'alone') await this.#writeAll();
    else if (fua) await this.flush();
  }

  /** Writes a part of a block. */
  async #patch(at: number, bytes: Uint8Array): Promise<void> {
    const block = Math.floor(at / BLOCK_BYTES);
    const start = block * BLOCK_BYTES;
    const whole = new Uint8Array(BLOCK_BYTES);
    let content = this.#overlay.get(block);
    while (content === undefined) {
      const seen = this.#retirements;
      const lengthBytes = Math.min(BLOCK_BYTES, this.sizeBytes - start);
      await this.#readable(this.#base.read(start, whole.subarray(0, lengthBytes)));
      content = this.#overlay.get(block);
      // Written, committed and in the image, all while it was read: what was read is too old then.
      if (content === undefined && seen === this.#retirements) content = { kind: 'data', bytes: whole };
    }
    if (content.kind === 'zero') whole.fill(0);
    else if (content.bytes !== whole) whole.set(content.bytes);
    whole.set(bytes, at - start);
    this.#put(block, whole);
  }

  /**
   * Waits until a write may be held: true when it needed not. A cut is asked for, or writing begun, well before there is no
   * room left.
   */
  async #room(): Promise<boolean> {
    this.#refuseFailed();
    const { heldBytesMax, onCutWanted } = this.#options;
    if (this.#overlay.heldBytes < heldBytesMax / 2 || this.#mode === 'alone') return true;
    onCutWanted();
    const isThere = () =>
      this.#overlay.heldBytes < heldBytesMax || this.#lettingThrough || this.#leaving !== undefined;
    if (isThere()) return true;
    await this.#until(isThere);
    return false;
  }

  /** @throws BlockError: it cannot come to that any more */
  async #until(holds: () => boolean): Promise<void> {
    await this.#changes.until(() => this.#closed || this.#failure !== undefined || holds());
    if (!holds()) this.#refuseFailed();
  }

  async #writeAll(): Promise<void> {
    this.#overlay.releaseAll();
    // What comes after this belongs to the next flush: do not wait for it.
    const due = this.#overlay.due();
    this.#startWriting();
    const isWritten = () => due.every(({ state }) => state === 'written');
    await this.#changes.until(() => this.#failure !== undefined || isWritten());
    if (!isWritten()) this.#refuseFailed();
    assert(isWritten(), 'a flush is answered when all is written');
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
      for (let due = this.#batch(); due.length > 0; due = this.#batch()) {
        const entries = this.#entriesOf(due);
        const epoch = entries.at(-1)?.epoch ?? NO_EPOCH;
        const onWritten = () => {
          this.#kept = epoch;
          this.#changes.check();
        };
        const isWritten = await this.#options.image.apply(entries, {
          onWritten,
          onDurable: () => this.#noteDurable(due, epoch),
        });
        for (const segment of due) segment.state = isWritten ? 'written' : 'held';
        this.#retire();
        if (!isWritten) return;
      }
    } catch (thrown) {
      this.#failure = diskFailed(thrown);
      this.#options.onFailed(this.#failure);
    }
  }

  /** While the disk is left, what was not committed comes alone, so that it can be withdrawn. */
  #batch(): Segment[] {
    const due = this.#overlay.due();
    if (this.#leaving === undefined) return due;
    const uncommitted = due.findIndex(({ committed }) => !committed);
    return uncommitted > 0 ? due.slice(0, uncommitted) : due;
  }

  async #noteDurable(due: readonly Segment[], epoch: EpochId): Promise<boolean> {
    this.#durable = epoch;
    const leaving = due[0]?.committed === false ? this.#leaving : undefined;
    if (leaving !== undefined) for (const segment of due) segment.state = 'journaled';
    this.#changes.check();
    return (await leaving?.mayWrite.promise) ?? true;
  }

  /** One entry an epoch, so that none is in the image by halves, and one for all that was flushed beyond. */
  #entriesOf(due: readonly Segment[]): JournalEntry[] {
    const token = this.#options.token();
    let position = Math.max(this.#options.image.position.epoch, NO_EPOCH) as EpochId;
    const groups = Map.groupBy(due, (segment) => (segment.committed ? segment.epoch : undefined));
    return [...groups].map(([epoch, segments]) => {
      position = epoch ?? this.#leaving?.epoch ?? position;
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
    if (this.#closed) throw diskClosed();
  }
}
