import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { assert } from '../base/assert.ts';
import type { Failpoints } from '../base/failpoint.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import type { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { type PageRun, piecesOf } from '../memory/page-runs.ts';
import { EpochSlot, type StagedEpoch } from './epoch-slot.ts';
import type { EpochStore } from './epoch-store.ts';
import { ReplicationError } from './replication-error.ts';
import type { ShadowDisks } from './shadow-disks.ts';

export const SLOT_PREFIX = 'epoch-';
/** Bytes copied into the shadow's memory before other work gets its turn. */
const APPLY_CHUNK_PAGES = 1024;

/**
 * What the standby side holds of a VM: its memory, and the epochs on their way into it.
 *
 * An epoch is acknowledged when it is staged whole; it is applied to the memory afterwards. So the memory may
 * stand in the middle of an epoch at any time, but never without the staged epoch that completes it: a slot
 * is used again only when its epoch is applied, to the memory and to copies of disks, *and* a later one is committed (its
 * device state and output are what a promotion goes on from) *and* what it wrote to disks of this host is kept by them.
 */
export class ShadowImage implements EpochStore, Disposable, AsyncDisposable {
  readonly memory: GuestMemory;
  /** The VM's disks, where these are copied too. They stay their owner's. */
  readonly disks: ShadowDisks | undefined;
  readonly #slots: readonly EpochSlot[];
  readonly #free: EpochSlot[];
  readonly #failpoints: Failpoints;
  /** Committed and not yet applied, oldest first. */
  readonly #backlog: EpochSlot[] = [];
  #latest: EpochSlot | undefined;
  #committed: EpochId = NO_EPOCH;
  #applying: Promise<void> | undefined;
  /** The application of one epoch; between two of them the memory is as of an epoch. */
  #inApplication: Promise<void> | undefined;
  /** What the one under way writes; of one that was cut short, until it is repeated. */
  #runsInApplication: readonly PageRun[] = [];
  /** As long as it is there no application is begun. */
  #hold: Promise<void> | undefined;
  readonly #kept: NonNullable<ShadowImageOptions['kept']>;
  /** Until what it has for others than this memory is safe elsewhere. */
  readonly #keeping = new Set<Promise<void>>();
  #keepFailure: unknown;
  readonly #onApplied = new Set<(runs: readonly PageRun[]) => void>();
  readonly #afterApplied = new Set<(epoch: EpochId) => void>();

  private constructor(
    slots: readonly EpochSlot[],
    { memory, disks, failpoints, kept = () => undefined }: Omit<ShadowImageOptions, 'directory'>,
  ) {
    this.#kept = kept;
    this.memory = memory;
    this.disks = disks;
    this.#failpoints = failpoints;
    this.#slots = slots;
    this.#free = [...slots];
  }

  /** Throws LinuxError ENOSPC when there is no room for the slots; none is left behind then. */
  static create({ slotCount, ...options }: ShadowImageOptions & { readonly slotCount: number }): ShadowImage {
    const { memory, directory } = options;
    using making = new DisposableStack();
    const slots = Array.from({ length: slotCount }, (_, index) =>
      making.use(EpochSlot.create(slotPath(directory, index), { memoryBytes: memory.sizeBytes })),
    );
    making.move();
    return new ShadowImage(slots, options);
  }

  /**
   * The image that a process left which was killed: the memory as far as it had come, and the epochs that it had
   * committed. `settle` completes it. Takes no further epochs.
   * @throws ReplicationError REPLICATION_EPOCH_CORRUPT
   */
  static recover(options: ShadowImageOptions): ShadowImage {
    const { memory, directory } = options;
    using opening = new DisposableStack();
    const slots = readdirSync(directory)
      .filter((name) => name.startsWith(SLOT_PREFIX))
      .map((name) => opening.use(EpochSlot.open(join(directory, name), { memoryBytes: memory.sizeBytes })));
    const image = new ShadowImage(slots, options);
    image.#recoverFrom(slots);
    opening.move();
    return image;
  }

  /**
   * Leaves a state in `directory` that is whole in the memory already, as an epoch without pages: `recover` finds it
   * there. @throws LinuxError ENOSPC
   */
  static leave(
    directory: string,
    { epoch, memoryBytes, deviceState }: { epoch: EpochId; memoryBytes: number; deviceState: Uint8Array },
  ): void {
    const slot = EpochSlot.create(slotPath(directory, 0), { memoryBytes });
    try {
      slot.begin(epoch);
      slot.finish({ deviceState, outputs: [] });
      slot.commit();
    } finally {
      slot.leave();
    }
  }

  #recoverFrom(slots: readonly EpochSlot[]): void {
    const committed = slots
      .map((slot) => ({ slot, epoch: slot.read()?.epoch }))
      .filter((entry): entry is { slot: EpochSlot; epoch: EpochId } => entry.epoch !== undefined)
      .sort((one, other) => one.epoch - other.epoch);
    // A slot that was freed keeps its old epoch until it is used again. Applied once more after later ones, that would
    // bring old pages back.
    this.#backlog.push(...committed.map(({ slot }) => slot).filter((slot) => !slot.isApplied));
    this.#latest = committed.at(-1)?.slot;
    this.#committed = committed.at(-1)?.epoch ?? NO_EPOCH;
    this.#free.length = 0;
  }

  get committed(): EpochId {
    return this.#committed;
  }

  /** A slot to stage the next epoch in; undefined while all are waiting to be applied. */
  take(): EpochSlot | undefined {
    return this.#free.pop();
  }

  /** Gives back a slot whose epoch did not become whole. */
  giveBack(slot: EpochSlot): void {
    this.#free.push(slot);
  }

  async room(): Promise<void> {
    await this.settle();
    while (this.#free.length === 0 && this.#keeping.size > 0) await Promise.race(this.#keeping);
    if (this.#keepFailure !== undefined) throw this.#keepFailure;
  }

  /** Nothing to do: it is here already. */
  offer(): void {}

  /** The epoch in `slot` is whole. From now on a promotion goes on from it. */
  acknowledge(slot: EpochSlot, epoch: EpochId): void {
    assert(epoch > this.#committed, `epoch ${epoch} comes after ${this.#committed}`);
    slot.commit();
    const committedBefore = this.#committed;
    this.#committed = epoch;
    const before = this.#latest;
    this.#latest = slot;
    // A latest epoch that still waits to be applied is freed by the application.
    if (before !== undefined && !this.#backlog.includes(before)) this.#setFree(before, committedBefore);
    this.#backlog.push(slot);
    this.disks?.offer(epoch, slot.diskWrites());
    // Its failure is reported by `settle`, which everybody calls who relies on the memory.
    this.#startApplying().catch(() => {});
  }

  /**
   * Resolves with the last committed epoch once all of it is in the memory, and on the disks. Repeats an application that
   * was cut short. Throws REPLICATION_EPOCH_CORRUPT, BLOCK_DISK_FAILED, or REPLICATION_NOTHING_COMMITTED before the first
   * epoch.
   */
  async settle(): Promise<StagedEpoch> {
    await this.#applying?.catch(() => {});
    await this.#startApplying();
    const staged = this.#latest?.read();
    if (staged === undefined) throw nothingCommitted();
    return staged;
  }

  /**
   * Tells which pages applications write, before they do, until the returned function is called: at once those of one
   * under way, which has written only a part of them yet.
   */
  onApplied(listener: (runs: readonly PageRun[]) => void): () => void {
    this.#onApplied.add(listener);
    if (this.#runsInApplication.length > 0) listener(this.#runsInApplication);
    return () => this.#onApplied.delete(listener);
  }

  /** Tells which epoch is whole in the memory, until the returned function is called. */
  afterApplied(listener: (epoch: EpochId) => void): () => void {
    this.#afterApplied.add(listener);
    return () => this.#afterApplied.delete(listener);
  }

  /**
   * While `task` runs no epoch is applied, so that the memory and the epochs handed to it stand still together: the
   * memory with `backlog` applied is as of `staged`. Epochs are committed meanwhile and wait in their slots; when all
   * slots wait, so does the VM's next cut, and whoever relies on the memory (`settle`): be quick.
   * @throws ReplicationError REPLICATION_EPOCH_CORRUPT, REPLICATION_NOTHING_COMMITTED
   */
  async whileStill<Result>(task: (still: StillImage) => Promise<Result>): Promise<Result> {
    assert(this.#hold === undefined, 'an image is held by one at a time');
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#hold = promise;
    try {
      // One that was cut short is repeated by its epoch in the backlog.
      await this.#inApplication?.catch(() => {});
      const staged = this.#latest?.read();
      if (staged === undefined) throw nothingCommitted();
      const backlog = this.#backlog.map((slot) => {
        const epoch = slot.read();
        assert(epoch !== undefined, 'only committed epochs wait to be applied');
        return { staged: epoch, mapping: slot.mapping };
      });
      return await task({ staged, backlog });
    } finally {
      this.#hold = undefined;
      resolve();
    }
  }

  [Symbol.dispose](): void {
    for (const slot of this.#slots) slot[Symbol.dispose]();
  }

  /** The same, without holding this thread up, and after an application under way has come to its end. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#applying?.catch(() => {});
    await this.disks?.idle();
    for (const slot of this.#slots) await slot[Symbol.asyncDispose]();
  }

  /** One application at a time: two would take the same slot from the backlog. */
  #startApplying(): Promise<void> {
    this.#applying ??= this.#applyBacklog().finally(() => {
      this.#applying = undefined;
    });
    return this.#applying;
  }

  async #applyBacklog(): Promise<void> {
    // What waits for the commit leaves first.
    await new Promise<void>((resolve) => setImmediate(resolve));
    for (let slot = this.#backlog[0]; slot !== undefined; slot = this.#backlog[0]) {
      while (this.#hold !== undefined) await this.#hold;
      const staged = slot.read();
      assert(staged !== undefined, 'only committed epochs wait to be applied');
      this.#inApplication = this.#apply(slot, staged);
      await this.#inApplication;
      // Epochs that were committed meanwhile are written together with it, or right after.
      await this.disks?.written(staged.epoch);
      slot.noteApplied();
      for (const listener of this.#afterApplied) listener(staged.epoch);
      this.#backlog.shift();
      if (slot !== this.#latest) this.#setFree(slot, staged.epoch);
    }
  }

  #setFree(slot: EpochSlot, epoch: EpochId): void {
    const keeping = this.#kept(epoch);
    if (keeping === undefined) {
      this.#free.push(slot);
      return;
    }
    const waiting = keeping.then(
      () => void this.#free.push(slot),
      (failure) => {
        this.#keepFailure = failure;
      },
    );
    this.#keeping.add(waiting);
    void waiting.then(() => this.#keeping.delete(waiting));
  }

  async #apply(slot: EpochSlot, staged: StagedEpoch): Promise<void> {
    let offset = staged.pagesOffset;
    let pagesInTurn = 0;
    this.#runsInApplication = staged.runs;
    for (const listener of this.#onApplied) listener(staged.runs);
    await this.#failpoints.hit('apply.before');
    for (const piece of piecesOf(staged.runs, APPLY_CHUNK_PAGES)) {
      this.memory.writeRuns([piece], slot.mapping, offset);
      offset += piece.pageCount * PAGE_BYTES;
      pagesInTurn += piece.pageCount;
      await this.#failpoints.hit('apply.middle');
      if (pagesInTurn >= APPLY_CHUNK_PAGES) {
        pagesInTurn = 0;
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
    }
    this.#runsInApplication = [];
    await this.#failpoints.hit('apply.after');
  }
}

export interface ShadowImageOptions {
  readonly memory: GuestMemory;
  /** Where the slots' files go: memory-backed, e.g. below /dev/shm. */
  readonly directory: string;
  readonly failpoints: Failpoints;
  /** Copies of the disks of a VM that acts on another host. */
  readonly disks?: ShadowDisks | undefined;
  /**
   * Undefined, or resolves, when the writes to disks in an epoch survive the end of this process without its slot, which is
   * not used again before.
   */
  readonly kept?: ((epoch: EpochId) => Promise<void> | undefined) | undefined;
}

/** What does not change while an image is held. */
export interface StillImage {
  /** The newest epoch that was committed when the hold began. */
  readonly staged: StagedEpoch;
  /** Epochs that the memory lacks yet, oldest first. */
  readonly backlog: readonly { readonly staged: StagedEpoch; readonly mapping: Mapping }[];
}

function nothingCommitted(): ReplicationError {
  return new ReplicationError('REPLICATION_NOTHING_COMMITTED', 'the shadow holds no whole epoch yet');
}

function slotPath(directory: string, index: number): string {
  return join(directory, `${SLOT_PREFIX}${index}`);
}
