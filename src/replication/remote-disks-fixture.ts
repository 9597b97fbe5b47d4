import { mkdtempSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { systemClock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { PAGE_BYTES } from '../base/units.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { openCopyTarget } from '../block/copy-target.ts';
import type { DiskCopyOptions } from '../block/disk-journal.ts';
import { EpochDisk } from '../block/epoch-disk.ts';
import { FileDevice } from '../block/file-device.ts';
import { openJournalFile } from '../block/journal-file.ts';
import { JournaledImage } from '../block/journaled-image.ts';
import { ReadHints } from '../block/read-hints.ts';
import { type EpochId, epochId } from '../epoch/epoch-id.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { DiskCopy } from './disk-copy.ts';
import { EpochReceiver } from './epoch-receiver.ts';
import { HintSender } from './hint-sender.ts';
import { PageSender } from './page-sender.ts';
import type { PeerLink } from './peer-link.ts';
import { linkWithin, type Tamper } from './peer-link-fixture.ts';
import { decodeWords, encodeWords, MESSAGE } from './peer-messages.ts';
import { RemoteImage } from './remote-image.ts';
import { type ShadowDisk, ShadowDisks } from './shadow-disks.ts';
import { ShadowImage } from './shadow-image.ts';

const MEMORY_BYTES = 16 * PAGE_BYTES;
const SLOTS = 3;

export interface DisksWorldOptions {
  /** Memory-backed: of both sides. */
  readonly directory: string;
  /** Of the VM; made before. */
  readonly imagePath: string;
  /** Of the copy. */
  readonly copyPath: string;
  readonly tamper?: Tamper;
  readonly durable?: boolean;
  readonly token?: number;
  /** Where images are not raw. */
  readonly openSource?: () => Promise<BlockDevice>;
  readonly openTarget?: (of: TargetOf) => Promise<Omit<ShadowDisk, 'name' | 'token'> & { isNew: boolean }>;
}

/** What is copied. */
export type TargetOf = Pick<DiskCopyOptions, 'identity' | 'diskBytes' | 'token'>;

/** A disk of a VM, the way to the host of its shadow, and the copy there. Without the VM: its epochs have no pages. */
export class DisksWorld implements AsyncDisposable {
  readonly disk: EpochDisk;
  readonly image: ShadowImage;
  readonly disks: ShadowDisks;
  readonly store: RemoteImage;
  readonly copy: DiskCopy;
  readonly failpoints: Failpoints;
  /** Ends with what the shadow's side found wrong, if anything. */
  readonly received: Promise<unknown>;
  /** What its guest reads by `read`. */
  readonly reads: ReadHints;
  /** Of parts of the disk in the first copy. */
  copiedBytes = 0;
  readonly #near: PeerLink;
  readonly #far: PeerLink;
  readonly #copyPath: string;
  readonly #owned: AsyncDisposableStack;
  #epoch: number;
  readonly #firstEpoch: number;

  static async open(options: DisksWorldOptions): Promise<DisksWorld> {
    const owned = new AsyncDisposableStack();
    const source = await JournaledImage.open({
      device: await (options.openSource?.() ?? FileDevice.open(options.imagePath)),
      journal: await openJournalFile(`${options.imagePath}.journal`),
    });
    const token = options.token ?? 1;
    const disk = new EpochDisk({
      ...{ image: source, mode: 'alone', heldBytesMax: 64 * 2 ** 20 },
      ...{ token: () => token, onCutWanted: () => {}, onFailed: () => {} },
    });
    owned.defer(() => disk.close().catch(() => {}));
    const failpoints = new Failpoints();
    try {
      const openTarget = (of: TargetOf) =>
        openCopyTarget({ imagePath: options.copyPath, journalPath: `${options.copyPath}.journal` }, of);
      const of = { identity: source.identity, diskBytes: disk.sizeBytes, token };
      const target = await (options.openTarget ?? openTarget)(of);
      const disks = new ShadowDisks({ disks: [{ ...target, name: 'root', token }], failpoints });
      owned.defer(() => disks[Symbol.asyncDispose]().catch(() => {}));
      return new DisksWorld(options, { owned, disk, disks, failpoints, isHeld: !target.isNew, source });
    } catch (cause) {
      await owned.disposeAsync();
      throw cause;
    }
  }

  private constructor(
    { directory, copyPath, tamper, durable }: DisksWorldOptions,
    parts: {
      owned: AsyncDisposableStack;
      disk: EpochDisk;
      disks: ShadowDisks;
      failpoints: Failpoints;
      isHeld: boolean;
      source: JournaledImage;
    },
  ) {
    const { owned, disk, disks, failpoints } = parts;
    this.#owned = owned;
    this.#copyPath = copyPath;
    this.#epoch = parts.source.position.epoch;
    this.#firstEpoch = this.#epoch + 1;
    this.disk = disk;
    this.disks = disks;
    this.failpoints = failpoints;
    const memory = owned.use(GuestMemory.create(join(directory, crypto.randomUUID()), MEMORY_BYTES));
    const slotsOf = mkdtempSync(join(directory, 'slots-'));
    this.image = owned.use(
      ShadowImage.create({ memory, disks, failpoints, directory: slotsOf, slotCount: SLOTS }),
    );
    const { near, far } = linkWithin((message) => {
      if (message.type === MESSAGE.diskCopy) this.copiedBytes += message.body.length;
      return tamper === undefined ? message : tamper(message);
    });
    this.#near = near;
    this.#far = far;
    this.reads = new ReadHints({ diskBytes: disk.sizeBytes, nowMs: () => performance.now() });
    const pages = owned.use(new PageSender(near, { nowMs: () => performance.now() }));
    this.store = RemoteImage.create({
      ...{ pages, link: near, memoryBytes: MEMORY_BYTES, slotCount: SLOTS },
      directory: join(directory, crypto.randomUUID()),
      beforeFirst: () => this.copy.complete(),
    });
    this.copy = new DiskCopy({
      link: near,
      disks: [
        {
          name: 'root',
          sizeBytes: disk.sizeBytes,
          read: (offset, into) => disk.read(offset, into),
          extents: (offset, lengthBytes) => disk.extents(offset, lengthBytes),
          watch: (onWritten) => disk.watch(onWritten),
          readAtCut: (offset, into) => parts.source.device.read(offset, into),
          completed: () => disk.setMode('asynchronous'),
        },
      ],
      held: new Set(parts.isHeld ? ['root'] : []),
      signal: new AbortController().signal,
      onProgress: () => {},
    });
    this.received = this.#receive(durable ?? false);
    const hearing = this.#hear(near);
    owned.defer(async () => {
      near.close();
      this.copy.fail(new Error('the world ends'));
      await this.store[Symbol.asyncDispose]();
      await Promise.all([hearing, this.received]);
    });
  }

  /** What the guest has written until now becomes an epoch. Resolves when it is acknowledged, with the disk as of then. */
  async epoch(): Promise<{ readonly epoch: EpochId; readonly content: Buffer }> {
    this.#epoch += 1;
    const epoch = epochId(this.#epoch);
    await this.store.room();
    const slot = this.store.take();
    if (slot === undefined) throw new Error('there is room');
    slot.begin(epoch);
    this.disk.letThrough();
    if (this.#epoch === this.#firstEpoch) this.disk.join();
    this.disk.seal(epoch);
    const content = this.content();
    const disks = [{ disk: 'root', writes: this.disk.sealedWrites(epoch) }];
    slot.finish({ deviceState: Buffer.from(`state ${epoch}`), outputs: [], disks });
    this.store.offer(slot, epoch);
    await this.store.acknowledge(slot, epoch);
    this.disk.commit(epoch);
    if (this.#epoch === this.#firstEpoch) await this.disk.setMode('in-sync');
    return { epoch, content: await content };
  }

  /** From now on the other side is told what is read, when nothing else is to be said. */
  tellReads(): HintSender {
    const isIdle = () => this.store.isIdle;
    return this.#owned.use(
      new HintSender({ isIdle, link: this.#near, disks: [this.reads], clock: systemClock }),
    );
  }

  /** As one that means harm says it. */
  async sendHints(body: Uint8Array): Promise<void> {
    await this.#near.send(MESSAGE.diskHints, [body]);
  }

  async read(offset: number, lengthBytes: number): Promise<void> {
    this.reads.noteRead(offset, lengthBytes);
    await this.disk.read(offset, Buffer.alloc(lengthBytes));
  }

  /** As the guest sees it. */
  async content(): Promise<Buffer> {
    const bytes = Buffer.alloc(this.disk.sizeBytes);
    await this.disk.read(0, bytes);
    return bytes;
  }

  copied(): Buffer {
    return readFileSync(this.#copyPath);
  }

  async #receive(durable: boolean): Promise<unknown> {
    const { image, failpoints } = this;
    const far = this.#far;
    const receiver = this.#owned.use(
      new EpochReceiver({
        ...{ image, failpoints, durable, onCopied: () => {} },
        onHeld: (epoch) =>
          void far.send(MESSAGE.words, [encodeWords({ kind: 'held', epoch })]).catch(() => {}),
        onAnswer: (answer) => void far.send(MESSAGE.diskAnswer, answer).catch(() => {}),
      }),
    );
    try {
      for await (const message of far.messages()) await receiver.take(message);
      return undefined;
    } catch (thrown) {
      return thrown;
    } finally {
      far.close();
    }
  }

  async #hear(near: PeerLink): Promise<void> {
    for await (const { type, body } of near.messages()) {
      if (type === MESSAGE.diskAnswer) this.copy.takeAnswer(body);
      else {
        const words = decodeWords(body);
        if (words.kind === 'held') this.store.noteHeld(epochId(words.epoch));
      }
    }
    this.copy.fail(new Error('the link is closed'));
    this.store.fail(new Error('the link is closed'));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned.disposeAsync();
  }
}
