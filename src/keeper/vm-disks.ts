import { assert } from '../base/assert.ts';
import { DiskDoor } from '../block/disk-door.ts';
import type { EpochDisk } from '../block/epoch-disk.ts';
import type { JournaledImage } from '../block/journaled-image.ts';
import type { NbdServer } from '../block/nbd-server.ts';
import type { SpecDisk } from '../config/spec-disks.ts';
import type { DiskEpochsStatus } from '../control/vm-status.ts';
import { type EpochId, epochId, NO_EPOCH, nextEpoch } from '../epoch/epoch-id.ts';
import { allocatedBytesOf } from '../linux/file.ts';
import type { CopiedDisk } from '../replication/disk-copy.ts';
import type { EpochDiskSource } from '../replication/epoch-writes.ts';
import { type ServedDisks, type ServeOptions, serveExports } from './served-disks.ts';
import type { TriedDisk } from './trial-disks.ts';
import { VmDisk, type VmDiskOptions } from './vm-disk.ts';

export type VmDisksOptions = Omit<VmDiskOptions, keyof DisksListener> & {
  /** Output of an epoch waits until its writes are on disk. */
  readonly durableCommits?: boolean;
};

/** A disk to be copied to another host. */
export interface DiskToCopy extends CopiedDisk {
  /** What the image takes up, without holes. */
  readonly usedBytes: number;
  /** The same for all its copies. */
  readonly identity: string;
  /** Of what is written to it. */
  readonly token: number;
}

/** A QEMU that has the disks. */
interface Client {
  readonly doors: readonly DiskDoor[];
  readonly server: NbdServer;
}

type DisksListener = Pick<VmDiskOptions, 'onCutWanted' | 'onFailed' | 'onUnreadable'>;

const SILENT: DisksListener = { onCutWanted: () => {}, onFailed: () => {}, onUnreadable: () => {} };

/** Whoever listens by then. */
function telling(told: { readonly listener: DisksListener }): DisksListener {
  return {
    onCutWanted: () => told.listener.onCutWanted(),
    onFailed: (path, failure) => told.listener.onFailed(path, failure),
    onUnreadable: (path, failure) => told.listener.onUnreadable(path, failure),
  };
}

/**
 * Disks of one VM that commit with its epochs, served to its QEMUs. What the record of the VM says and what is in the images
 * fit each other at every moment, as a keeper may be killed at any:
 *
 * - `alone`: the record says that the QEMU that acts is to be gone on with. Every write is in an image before it is answered.
 * - `joining`: from the first cut of a new shadow until the record says that this one is to be gone on with. The images are
 *   as of that cut, and writes wait for an answer.
 * - `in-sync`: the images are as of a committed epoch, and the slots of epochs have what images lack. With a shadow on another
 *   host this begins with the first cut, and the record says from before it on that nobody is to be gone on with here: until it
 *   is on record elsewhere that the shadow may act, what the guest is told is durable is in the images.
 */
export class VmDisks implements ServedDisks, AsyncDisposable {
  readonly #disks: readonly VmDisk[];
  readonly #durableCommits: boolean;
  readonly #told: { listener: DisksListener };
  readonly #clients = new Map<number, Client>();
  #phase: 'alone' | 'joining' | 'in-sync' = 'alone';
  /** There is a shadow that will not be in sync: its epochs mean nothing to the disks. */
  #ignoresEpochs = false;
  /** The shadow makes no epoch any more, or is about to be given up. */
  #isLeft = false;
  /** What is written here is for a shadow on another host. */
  #isElsewhere = false;
  /** Writes wait for it. */
  #gate: PromiseWithResolvers<void> | undefined;
  #changing: Promise<void> = Promise.resolve();

  /** `recovered` are opened by QEMU itself. @throws BlockError, QemuError, errors of Node; nothing is left open then */
  static async open(
    { served, recovered }: { readonly served: readonly SpecDisk[]; readonly recovered: readonly SpecDisk[] },
    options: VmDisksOptions,
  ): Promise<VmDisks> {
    await using opening = new AsyncDisposableStack();
    const told: { listener: DisksListener } = { listener: SILENT };
    const given: VmDiskOptions = { ...options, ...telling(told) };
    for (const disk of recovered) await VmDisk.recover(disk, given);
    const disks: VmDisk[] = [];
    for (const disk of served) disks.push(opening.use(await VmDisk.open(disk, given)));
    opening.move();
    return new VmDisks(disks, { ...options, told });
  }

  /**
   * Copies of the disks of a VM that acts on another host, as a standby here has them: nothing is written to them until they are
   * gone on from. What they are copies in belongs to others until then.
   */
  static ofCopies(
    copies: readonly { readonly disk: SpecDisk; readonly image: JournaledImage }[],
    options: Pick<VmDisksOptions, 'token' | 'durableCommits'>,
  ): VmDisks {
    // Until then nobody writes to them who could be told of a failure.
    const told: { listener: DisksListener } = { listener: SILENT };
    const given = { ...options, ...telling(told) };
    const all = new VmDisks(
      copies.map((copy) => VmDisk.ofCopy(copy, given)),
      { ...options, told },
    );
    all.#gate = Promise.withResolvers();
    return all;
  }

  private constructor(
    disks: readonly VmDisk[],
    {
      durableCommits = false,
      told,
    }: Pick<VmDisksOptions, 'durableCommits'> & { readonly told: { listener: DisksListener } },
  ) {
    this.#disks = disks;
    this.#told = told;
    this.#durableCommits = durableCommits;
  }

  get names(): string[] {
    return this.#disks.map(({ disk }) => disk.id);
  }

  /** Tells one listener when disks hold so much that only a cut makes room, and when one cannot be written any more. */
  listen(listener: DisksListener): void {
    this.#told.listener = listener;
  }

  /** The images lack what only a shadow has: who goes on with this VM has to go on from that. */
  get isHeld(): boolean {
    return this.#phase === 'in-sync';
  }

  /** No epoch that begins now may have a number up to this one. */
  get lastEpoch(): EpochId {
    return epochId(Math.max(NO_EPOCH, ...this.#disks.map(({ image }) => image.position.epoch)));
  }

  /** The highest one that its images know. */
  get lastToken(): number {
    return Math.max(0, ...this.#disks.map(({ image }) => image.position.token));
  }

  /** Without this keeper its QEMU is not to be gone on with: it would miss what it has written. */
  get isElsewhere(): boolean {
    return this.#isElsewhere;
  }

  /**
   * A new shadow is to be in sync. Returns what takes part in its epochs. `record` writes down that it is on another host, if it
   * is.
   */
  beginEpochs(record: () => void, { remote }: { readonly remote?: unknown }): EpochDiskSource[] {
    this.#ignoresEpochs = false;
    this.#isLeft = false;
    this.#isElsewhere = remote !== undefined && this.#disks.length > 0;
    if (this.#isElsewhere) record();
    return this.#disks.map(({ disk, epochs }) => ({
      name: disk.id,
      letThrough: () => epochs.letThrough(),
      sealedWrites: (epoch) => epochs.sealedWrites(epoch),
      seal: (epoch) => {
        this.#beginToJoin();
        epochs.seal(epoch);
      },
      commit: (epoch) => epochs.commit(epoch),
      abort: (epoch) => {
        epochs.abort(epoch);
        if (this.#phase === 'joining') this.#stayAlone();
      },
    }));
  }

  /** For a QEMU that is only tried out. */
  tried(): TriedDisk[] {
    return this.#disks.map(({ disk, epochs, image }) => ({
      ...{ name: disk.id, image, written: (epoch) => epochs.written(epoch) },
    }));
  }

  /**
   * To be waited for before a copy on another host learns of the token of now: the images here know it as well, and are never
   * taken for older than what was copied from them. @throws BlockError BLOCK_DISK_FAILED
   */
  async noteToken(): Promise<void> {
    for (const { epochs } of this.#disks) await epochs.noteToken();
  }

  /** For a copy on another host. */
  copied(): DiskToCopy[] {
    return this.#disks.map(({ disk, epochs, image, reads }) => ({
      ...{
        name: disk.id,
        reads,
        sizeBytes: epochs.sizeBytes,
        usedBytes: allocatedBytesOf(disk.disk.path),
        identity: image.identity,
        token: image.position.token,
      },
      read: (offset, into) => epochs.read(offset, into),
      // Held writes are not in the image: from the cut on it has nothing newer.
      readAtCut: (offset, into) => image.device.read(offset, into),
      completed: () => this.#noteCopied(epochs),
      extents: (offset, lengthBytes) => epochs.extents(offset, lengthBytes),
      watch: (onWritten) => epochs.watch(onWritten),
    }));
  }

  /** Serves the disks to one QEMU, until it is fenced or what this returns is disposed of. @throws Error of Node */
  async serve({ instance, ...place }: ServeOptions): Promise<AsyncDisposable> {
    if (this.#disks.length === 0) return { [Symbol.asyncDispose]: async () => {} };
    const doors = this.#disks.map(
      ({ epochs, reads }) =>
        new DiskDoor(epochs, {
          gate: () => this.#gate?.promise,
          onRead: (offset, lengthBytes) => reads.noteRead(offset, lengthBytes),
        }),
    );
    const exports = this.#disks.map(({ disk }, index) => {
      const device = doors[index];
      assert(device !== undefined, 'each disk has a door');
      return { name: disk.id, device, readOnly: false };
    });
    const server = await serveExports(exports, place);
    assert(!this.#clients.has(instance), 'the QEMU before it with this number was fenced');
    this.#clients.set(instance, { doors, server });
    return { [Symbol.asyncDispose]: () => this.fence(instance) };
  }

  /** Nothing of this QEMU, which is dead or about to be, reaches a disk any more when this resolves. */
  async fence(instance: number): Promise<void> {
    const client = this.#clients.get(instance);
    this.#clients.delete(instance);
    // One that waits for room would wait for a cut that nobody makes.
    for (const { epochs } of this.#disks) epochs.letThrough();
    await Promise.all(client?.doors.map((door) => door.close()) ?? []);
    await client?.server.close();
  }

  /** Undefined, or resolves, when the slots of this epoch are not needed any more for the disks' sake. */
  kept(epoch: EpochId): Promise<void> | undefined {
    const waits = this.#disks.map(({ epochs }) => epochs.kept(epoch)).filter((wait) => wait !== undefined);
    return waits.length === 0 ? undefined : Promise.all(waits).then(() => {});
  }

  /**
   * Undefined where epochs are committed when the shadow holds them; else resolves when what was written up to this epoch,
   * which the shadow holds, survives a loss of power. @throws BlockError
   */
  durable(epoch: EpochId): Promise<void> | undefined {
    if (!this.#durableCommits || this.#disks.length === 0) return undefined;
    const disks = this.#disks.map(async ({ epochs }) => {
      // It will be told so once more when output leaves.
      epochs.commit(epoch);
      await (this.#phase === 'in-sync' ? epochs.durable(epoch) : epochs.flush());
    });
    return Promise.all(disks).then(() => {});
  }

  /** What people see of a disk; undefined where it is none of these. */
  status(id: string): DiskEpochsStatus | undefined {
    const found = this.#disks.find(({ disk }) => disk.id === id);
    if (found === undefined) return undefined;
    const { heldBytes } = found.epochs;
    return {
      mode: this.#phase,
      heldBytes,
      journalBytes: found.journalBytes,
      lastEpoch: found.image.position.epoch,
    };
  }

  get heldBytes(): number {
    return this.#disks.reduce((sum, { epochs }) => sum + epochs.heldBytes, 0);
  }

  /** Writes wait: the guest runs already, and a keeper that is killed now would let it run from the same state once more. */
  holdWrites(): void {
    this.#gate ??= Promise.withResolvers();
  }

  passWrites(): void {
    this.#openGate();
  }

  /** The record says now who is to be gone on with: its shadow, or still the QEMU that acts. */
  noteRecorded({ isProtected }: { readonly isProtected: boolean }): void {
    if (this.#isElsewhere && this.isHeld && isProtected) {
      this.#changing = this.#setMode('in-sync');
      this.#changing.catch(() => {});
    }
    if (this.#phase !== 'joining') return;
    if (!isProtected) {
      this.#ignoresEpochs = true;
      this.#stayAlone();
      return;
    }
    this.#phase = 'in-sync';
    this.#changing = this.#setMode('in-sync').then(() => this.#openGate());
    // Whoever changes next meets it.
    this.#changing.catch(() => {});
  }

  /** All that was written is kept beside the images. The VM stands still, and makes no epoch. @throws BlockError */
  async keepAll(): Promise<void> {
    this.#isLeft = true;
    await this.#changing;
    if (this.#phase === 'in-sync') await Promise.all(this.#disks.map(({ epochs }) => epochs.keepAll()));
  }

  /**
   * The shadow is given up, and makes no epoch any more: all that was written is in the images when this resolves. `record`
   * writes down that the QEMU that acts is to be gone on with.
   * @throws BlockError: a disk failed. Nothing may leave then that it should have
   */
  async leave(record: () => void): Promise<void> {
    await this.keepAll();
    const wasHeld = this.isHeld;
    const wasElsewhere = this.#isElsewhere;
    // Until all is in them these images are not to be gone on with, but the shadow is, which has it.
    if (wasHeld && wasElsewhere) await this.#setMode('alone');
    this.#stayAlone();
    if (wasHeld || wasElsewhere) record();
    if (wasHeld && !wasElsewhere) await this.#setMode('alone');
  }

  /** The shadow goes on from this epoch: the images are as of it, and nothing else can write to them, when this resolves. */
  async goOnFrom(epoch: EpochId, { acting }: { readonly acting: number }): Promise<void> {
    await this.#changing.catch(() => {});
    const others = [...this.#clients.keys()].filter((instance) => instance !== acting);
    await Promise.all(others.map((instance) => this.fence(instance)));
    if (!this.isHeld) {
      this.#openGate();
      return;
    }
    for (const { epochs } of this.#disks) {
      await epochs.withdraw();
      epochs.rollBack(nextEpoch(epoch));
    }
    await this.#setMode('alone');
    this.#stayAlone();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await using closing = new AsyncDisposableStack();
    for (const disk of this.#disks) closing.use(disk);
    for (const instance of this.#clients.keys()) await this.fence(instance);
  }

  /** From here on it waits to be on record. A shadow that is being given up may come to this as well, and changes nothing then. */
  async #noteCopied(epochs: EpochDisk): Promise<void> {
    if (this.#isLeft || !this.isHeld || !this.#isElsewhere) return;
    const changing = Promise.all([this.#changing, epochs.setMode('asynchronous')]).then(() => {});
    this.#changing = changing;
    await changing;
  }

  /** The VM stands still for a cut: what it has written is in the images. */
  #beginToJoin(): void {
    if (this.#phase !== 'alone' || this.#ignoresEpochs) return;
    if (this.#isElsewhere) {
      this.#phase = 'in-sync';
      for (const { epochs } of this.#disks) epochs.join();
      return;
    }
    this.#phase = 'joining';
    this.#gate = Promise.withResolvers();
  }

  #stayAlone(): void {
    this.#phase = 'alone';
    this.#isElsewhere = false;
    this.#openGate();
  }

  #openGate(): void {
    this.#gate?.resolve();
    this.#gate = undefined;
  }

  async #setMode(mode: 'alone' | 'in-sync'): Promise<void> {
    await Promise.all(this.#disks.map(({ epochs }) => epochs.setMode(mode)));
  }
}
