import { ConditionWaiters } from '../base/condition-waiters.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { BlockError } from '../block/block-error.ts';
import { hashRegions } from '../block/block-hashes.ts';
import { copyFailed } from '../block/disk-failures.ts';
import { endOf } from '../block/disk-write.ts';
import type { JournalEntry } from '../block/journal-entry.ts';
import type { JournaledImage } from '../block/journaled-image.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import { CacheWarmer } from './cache-warmer.ts';
import { decodeHints, decodePiece, decodeQuestion, encodeAnswer } from './disk-messages.ts';
import type { EpochWrites } from './epoch-writes.ts';
import { garbled } from './peer-messages.ts';

export interface ShadowDisk {
  readonly name: string;
  /** A copy in the making, until the first epoch completes it. */
  readonly image: JournaledImage;
  /** Of what is written, as the VM's keeper says. */
  readonly token: number;
  /** Resolves when the image is of no more use, though nothing is being written. */
  readonly lost?: Promise<BlockError> | undefined;
}

export interface ShadowDisksOptions {
  /** In the order in which the other side numbers them. */
  readonly disks: readonly ShadowDisk[];
  readonly failpoints: Failpoints;
}

interface Due {
  readonly epoch: EpochId;
  readonly disks: readonly EpochWrites[];
}

/**
 * The disks of a shadow: copies that receive each committed epoch, in order and whole. Epochs that are committed while
 * others are being written are written together. The images belong to it, until they are released to whoever goes on
 * from them.
 */
export class ShadowDisks implements AsyncDisposable {
  /** Resolves when one of them cannot be written any more. */
  readonly failed: Promise<BlockError>;
  readonly #failing = Promise.withResolvers<BlockError>();
  readonly #options: ShadowDisksOptions;
  readonly #changes = new ConditionWaiters();
  readonly #warmer: CacheWarmer;
  readonly #sizes: readonly { readonly sizeBytes: number }[];
  #due: Due[] = [];
  #writing: Promise<void> | undefined;
  /** Parts of a first copy on their way to an image. */
  #copying = 0;
  #durable: EpochId = NO_EPOCH;
  #written: EpochId = NO_EPOCH;
  #failure: BlockError | undefined;
  #isReleased = false;

  constructor(options: ShadowDisksOptions) {
    this.#options = options;
    this.#sizes = options.disks.map(({ image }) => ({ sizeBytes: image.device.sizeBytes }));
    this.#warmer = new CacheWarmer({
      devices: options.disks.map(({ image }) => image.device),
      idle: (signal) => this.idle(signal),
    });
    this.failed = this.#failing.promise;
    for (const { lost } of options.disks) void lost?.then((cause) => this.#fail(cause));
  }

  /** Takes a part of the first copy. @throws ReplicationError REPLICATION_PEER_GARBLED; BlockError BLOCK_DISK_FAILED */
  async takeCopy(body: Uint8Array): Promise<void> {
    const { disk, write } = decodePiece(body, this.#sizes);
    const device = this.#image(disk).device;
    await this.#options.failpoints.hit('disks.copy');
    this.#copying += 1;
    try {
      await orCopyFailed(
        write.kind === 'data'
          ? device.write(write.offset, write.bytes)
          : device.zero(write.offset, write.lengthBytes, write),
      );
    } finally {
      this.#copying -= 1;
      this.#changes.check();
    }
  }

  /** Answers what the other side asks about a copy. @throws ReplicationError REPLICATION_PEER_GARBLED; BlockError BLOCK_DISK_FAILED */
  async answer(body: Uint8Array): Promise<Uint8Array[]> {
    const { question, key } = decodeQuestion(body, this.#sizes);
    if (question.what === 'hashes') {
      const { device } = this.#image(question.disk);
      const hashes = await orCopyFailed(hashRegions(device, { ...question, key }));
      return encodeAnswer(question, hashes);
    }
    for (const { image } of this.#options.disks) await orCopyFailed(image.device.flush());
    return encodeAnswer(question, new Uint8Array(0));
  }

  /** What the guest reads is to be in the cache here too. Waits for nothing. @throws ReplicationError REPLICATION_PEER_GARBLED */
  warm(body: Uint8Array): void {
    this.#warmer.want(decodeHints(body, this.#sizes));
  }

  /** Of this disk, read for that reason. Undefined where there is none of that name. */
  warmedBytes(name: string): number | undefined {
    const disk = this.#options.disks.findIndex((it) => it.name === name);
    return disk === -1 ? undefined : this.#warmer.warmedBytes(disk);
  }

  /** Told of, and not read yet. */
  get coldBytes(): number {
    return this.#warmer.waitingBytes;
  }

  /**
   * Whether writes can be carried out. To be asked before their epoch is acknowledged.
   * @throws ReplicationError REPLICATION_PEER_GARBLED
   */
  check(disks: readonly EpochWrites[]): void {
    for (const { disk, writes } of disks) {
      const own = this.#options.disks.find(({ name }) => name === disk);
      const last = writes.at(-1);
      // In the order of the disk, as was seen when they were decoded.
      if (own === undefined || (last !== undefined && endOf(last) > own.image.device.sizeBytes))
        throw garbled('writes beyond the disks of the VM');
    }
  }

  /** A committed epoch, in order. What is written is not copied: keep it until `written` has resolved. */
  offer(epoch: EpochId, disks: readonly EpochWrites[]): void {
    this.#due.push({ epoch, disks });
    if (this.#failure !== undefined) return;
    this.#writing ??= this.#write().finally(() => {
      this.#writing = undefined;
      this.#changes.check();
    });
  }

  /** Resolves when this epoch and all before it survive a loss of power. @throws BlockError BLOCK_DISK_FAILED */
  async durable(epoch: EpochId): Promise<void> {
    await this.#reach(() => this.#durable >= epoch);
  }

  /** Resolves when this epoch is in the images, and these can be gone on from. @throws BlockError BLOCK_DISK_FAILED */
  async written(epoch: EpochId): Promise<void> {
    await this.#reach(() => this.#written >= epoch);
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** For whoever looks at them while epochs go on being written. */
  looks(): (Pick<ShadowDisk, 'name' | 'image'> & { readonly written: (epoch: EpochId) => Promise<void> })[] {
    return this.#options.disks.map(({ name, image }) => ({
      ...{ name, image, written: (epoch) => this.written(epoch) },
    }));
  }

  /** Resolves when nothing is being written, and nothing that was offered is looked at any more. */
  async idle(signal?: AbortSignal): Promise<void> {
    await this.#changes.until(() => this.#writing === undefined && this.#copying === 0, signal);
  }

  /**
   * Hands the images over, by the names of their disks, as of the last epoch that was offered. They belong to the caller
   * from then on. @throws BlockError BLOCK_DISK_FAILED
   */
  async release(): Promise<ReadonlyMap<string, JournaledImage>> {
    this.#warmer.stop();
    await this.idle();
    if (this.#failure !== undefined) throw this.#failure;
    this.#isReleased = true;
    return new Map(this.#options.disks.map(({ name, image }) => [name, image]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#warmer.end();
    await this.idle();
    if (this.#isReleased) return;
    this.#isReleased = true;
    for (const { image } of this.#options.disks) await image.close();
  }

  #image(disk: number): JournaledImage {
    const image = this.#options.disks[disk]?.image;
    if (image === undefined) throw garbled('a part of no disk');
    return image;
  }

  async #reach(isReached: () => boolean): Promise<void> {
    await this.#changes.until(() => this.#failure !== undefined || isReached());
    if (!isReached() && this.#failure !== undefined) throw this.#failure;
  }

  async #write(): Promise<void> {
    try {
      for (let batch = this.#due; batch.length > 0; batch = this.#due) {
        this.#due = [];
        await this.#writeBatch(batch);
      }
    } catch (thrown) {
      this.#fail(thrown);
    }
  }

  /** Also of an image that nothing is written to: who takes over would find out. */
  #fail(cause: unknown): void {
    if (this.#isReleased) return;
    this.#failure ??= copyFailed(cause);
    this.#failing.resolve(this.#failure);
    this.#changes.check();
  }

  async #writeBatch(batch: readonly Due[]): Promise<void> {
    const { disks, failpoints } = this.#options;
    const last = batch.at(-1)?.epoch ?? NO_EPOCH;
    const work = disks
      .map((disk) => ({ disk, entries: this.#entriesOf(disk, batch) }))
      .filter(({ entries }) => entries.length > 0);
    let notDurable = work.length;
    const onDurable = () => {
      notDurable -= 1;
      if (notDurable === 0) this.#reachDurable(last);
      return undefined;
    };
    await failpoints.hit('disks.before-journal');
    const outcomes = await Promise.allSettled(
      work.map(({ disk, entries }) => disk.image.apply(entries, { onDurable })),
    );
    // What one of them still writes must not be taken away from it because another one failed.
    for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason;
    await failpoints.hit('disks.after-image');
    this.#reachDurable(last);
    this.#written = last;
    this.#changes.check();
  }

  #reachDurable(epoch: EpochId): void {
    this.#durable = epoch;
    this.#changes.check();
  }

  #entriesOf({ name, image, token }: ShadowDisk, batch: readonly Due[]): JournalEntry[] {
    const entries = batch.map(({ epoch, disks }) => ({
      ...{ epoch, token },
      writes: disks.find(({ disk }) => disk === name)?.writes ?? [],
    }));
    // The first epoch completes a copy, also when nothing was written in it. Later ones without writes cost no sync.
    return entries.filter(({ writes }, index) => writes.length > 0 || (index === 0 && image.isPartial));
  }
}

async function orCopyFailed<Value>(work: Promise<Value>): Promise<Value> {
  try {
    return await work;
  } catch (thrown) {
    throw copyFailed(thrown);
  }
}
