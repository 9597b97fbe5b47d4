import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { assert } from '../base/assert.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import { EpochSlot } from './epoch-slot.ts';
import type { EpochStore } from './epoch-store.ts';
import type { HeldEpoch, PageSender } from './page-sender.ts';
import type { PeerLink } from './peer-link.ts';
import { encodeEpoch, garbled, MESSAGE, MESSAGE_PAGES_MAX } from './peer-messages.ts';

const CHUNK_BYTES = MESSAGE_PAGES_MAX * PAGE_BYTES;

export interface RemoteImageOptions {
  readonly link: PeerLink;
  /** Over the same link. */
  readonly pages: PageSender;
  /** Where epochs lie until the other host holds them: memory-backed. Made here. */
  readonly directory: string;
  readonly memoryBytes: number;
  readonly slotCount: number;
  /** What the other side has to have before the first epoch is sent, as of the moment that it was cut. */
  readonly beforeFirst?: () => Promise<void>;
}

/**
 * The way of epochs to a shadow on another host: each is sent as soon as it is whole, and acknowledged when the other
 * side says that it holds it. The slots here are room to capture in while a link is slow, and nothing is gone on from
 * them.
 */
export class RemoteImage implements EpochStore, AsyncDisposable {
  readonly #link: PeerLink;
  readonly #pages: PageSender;
  readonly #directory: string;
  readonly #slots: readonly EpochSlot[];
  readonly #free: EpochSlot[];
  readonly #awaited = new Map<EpochId, PromiseWithResolvers<void>>();
  /** Of epochs that were sent whole, until they are held. */
  readonly #sent = new Map<EpochId, Omit<HeldEpoch, 'elapsedMs'> & { readonly startMs: number }>();
  #heldMs = 0;
  /** Sent or about to be, and not held yet; oldest first. */
  readonly #unheld: EpochId[] = [];
  #held: EpochId = NO_EPOCH;
  #roomMade = Promise.withResolvers<void>();
  #sending: Promise<void> = Promise.resolve();
  #beforeFirst: (() => Promise<void>) | undefined;
  #lost: unknown;

  /** @throws LinuxError ENOSPC; nothing is left behind then */
  static create(options: RemoteImageOptions): RemoteImage {
    const { link, pages, directory, memoryBytes, slotCount } = options;
    mkdirSync(directory, { mode: 0o700 });
    using making = new DisposableStack();
    making.defer(() => rmSync(directory, { recursive: true, force: true }));
    const slots = Array.from({ length: slotCount }, (_, index) =>
      making.use(EpochSlot.create(join(directory, `outgoing-${index}`), { memoryBytes })),
    );
    making.move();
    const image = new RemoteImage(link, { pages, directory, slots });
    image.#beforeFirst = options.beforeFirst;
    return image;
  }

  private constructor(
    link: PeerLink,
    { pages, directory, slots }: { pages: PageSender; directory: string; slots: EpochSlot[] },
  ) {
    this.#link = link;
    this.#pages = pages;
    this.#directory = directory;
    this.#slots = slots;
    this.#free = [...slots];
    // Who waits for it hears of a loss; without anybody waiting it is no fault.
    this.#roomMade.promise.catch(() => {});
  }

  /** The last epoch that the other side said to hold. */
  get held(): EpochId {
    return this.#held;
  }

  /** Nothing is on its way, or about to be. */
  get isIdle(): boolean {
    return this.#unheld.length === 0;
  }

  take(): EpochSlot | undefined {
    return this.#free.pop();
  }

  giveBack(slot: EpochSlot): void {
    this.#free.push(slot);
    this.#roomMade.resolve();
  }

  async room(): Promise<void> {
    while (this.#free.length === 0) {
      if (this.#lost !== undefined) throw this.#lost;
      this.#roomMade = Promise.withResolvers();
      await this.#roomMade.promise;
    }
  }

  offer(slot: EpochSlot, epoch: EpochId): void {
    const awaited = Promise.withResolvers<void>();
    awaited.promise.catch(() => {});
    this.#awaited.set(epoch, awaited);
    this.#unheld.push(epoch);
    if (this.#lost !== undefined) {
      awaited.reject(this.#lost);
      return;
    }
    // In order: the other side takes one epoch at a time.
    this.#sending = this.#sending.then(() => this.#transmit(slot, epoch)).catch((cause) => this.fail(cause));
  }

  async acknowledge(slot: EpochSlot, epoch: EpochId): Promise<void> {
    const awaited = this.#awaited.get(epoch);
    assert(awaited !== undefined, `epoch ${epoch} was offered`);
    await awaited.promise;
    this.#awaited.delete(epoch);
    this.giveBack(slot);
  }

  /**
   * The other side holds this epoch. It says so in the order in which epochs were sent.
   * @throws ReplicationError REPLICATION_PEER_GARBLED: it is of no use any more
   */
  noteHeld(epoch: EpochId): void {
    if (epoch !== this.#unheld[0]) {
      const cause = garbled(`that it holds epoch ${epoch} out of turn`);
      this.fail(cause);
      throw cause;
    }
    this.#unheld.shift();
    this.#held = epoch;
    this.#noteDelivery(epoch);
    this.#awaited.get(epoch)?.resolve();
  }

  /** The shadow is lost: whoever waits for it hears of it, now and later. */
  fail(cause: unknown): void {
    if (this.#lost !== undefined) return;
    this.#lost = cause;
    for (const { reject } of this.#awaited.values()) reject(cause);
    this.#roomMade.reject(cause);
  }

  async #transmit(slot: EpochSlot, epoch: EpochId): Promise<void> {
    await this.#beforeFirst?.();
    this.#beforeFirst = undefined;
    const { header, runs, pages, tail, writes } = slot.sections();
    const startMs = this.#pages.nowMs();
    const { bytes, packMs } = await this.#pages.send(MESSAGE.pages, { epoch, runs, pages });
    await this.#sendChunks(MESSAGE.tail, epoch, tail);
    await this.#sendChunks(MESSAGE.writes, epoch, writes);
    const restBytes = tail.length + writes.length + header.length;
    this.#sent.set(epoch, { startMs, bytes: bytes + restBytes, pages: pages.length / PAGE_BYTES, packMs });
    await this.#link.send(MESSAGE.seal, [encodeEpoch(epoch), header]);
  }

  /** Epochs go one after the other: while one before it is on its way the link does not begin with the next. */
  #noteDelivery(epoch: EpochId): void {
    const nowMs = this.#pages.nowMs();
    const sent = this.#sent.get(epoch);
    this.#sent.delete(epoch);
    if (sent !== undefined)
      this.#pages.noteHeld({ ...sent, elapsedMs: nowMs - Math.max(sent.startMs, this.#heldMs) });
    this.#heldMs = nowMs;
  }

  async #sendChunks(type: number, epoch: EpochId, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES)
      await this.#link.send(type, [encodeEpoch(epoch), bytes.subarray(at, at + CHUNK_BYTES)]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.fail(new Error('the shadow is given up'));
    // A slot is not taken away while it is being sent.
    await this.#sending;
    for (const slot of this.#slots) await slot[Symbol.asyncDispose]();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
