import type { Failpoints } from '../base/failpoint.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { PageDecoder } from '../wire/page-codec.ts';
import { WireError } from '../wire/wire-error.ts';
import { type EpochSlot, TAIL_BYTES_MAX } from './epoch-slot.ts';
import { freeSlot } from './epoch-store.ts';
import { HeldPages } from './held-pages.ts';
import type { PeerMessage } from './peer-link.ts';
import { decodeEpoch, decodePages, garbled, MESSAGE, MESSAGE_PAGES_MAX } from './peer-messages.ts';
import type { ShadowDisks } from './shadow-disks.ts';
import type { ShadowImage } from './shadow-image.ts';

export interface EpochReceiverOptions {
  readonly image: ShadowImage;
  readonly failpoints: Failpoints;
  /** This host holds all of the epoch. */
  readonly onHeld: (epoch: EpochId) => void;
  readonly onCopied: (pages: number) => void;
  /** Sends the other side what it asked for. Not waited for: it may be sending itself. */
  readonly onAnswer: (parts: readonly Uint8Array[]) => void;
  /** An epoch counts as held when its writes to disks survive a loss of power here, not before. */
  readonly durable?: boolean;
}

interface Arriving {
  readonly epoch: EpochId;
  readonly slot: EpochSlot;
  readonly tail: Uint8Array[];
  tailBytes: number;
}

/**
 * The end of the way of epochs on the shadow's host: puts each together again, checks it against the checksums that it
 * was cut with, and only then says that it is held. Once closed it takes nothing more: whoever takes over knows what
 * there is.
 */
export class EpochReceiver implements Disposable {
  readonly #options: EpochReceiverOptions;
  readonly #decoder = new PageDecoder();
  readonly #held: HeldPages;
  readonly #forgetApplied: () => void;
  readonly #scratch = Mapping.anonymous(MESSAGE_PAGES_MAX * PAGE_BYTES);
  #arriving: Arriving | undefined;
  #isClosed = false;

  constructor(options: EpochReceiverOptions) {
    this.#options = options;
    const { image } = options;
    this.#held = new HeldPages(image.memory);
    this.#forgetApplied = image.afterApplied((epoch) => this.#held.forget(epoch));
  }

  /**
   * Takes a message of an epoch or of the first copy. Messages are taken one after the other.
   * @throws ReplicationError REPLICATION_PEER_GARBLED, REPLICATION_EPOCH_CORRUPT; LinuxError ENOSPC
   */
  async take({ type, body }: PeerMessage): Promise<void> {
    if (this.#isClosed) return;
    switch (type) {
      case MESSAGE.copy:
        return this.#takeCopy(body);
      case MESSAGE.pages:
        return await this.#takePages(body);
      case MESSAGE.tail:
        return await this.#takeTail(body);
      case MESSAGE.writes:
        return await this.#takeWrites(body);
      case MESSAGE.diskCopy:
        return await this.#disksBeforeEpochs().takeCopy(body);
      case MESSAGE.diskAsk:
        return this.#options.onAnswer(await this.#disksBeforeEpochs().answer(body));
      case MESSAGE.diskHints:
        return this.#takeHints(body);
      case MESSAGE.seal:
        return await this.#takeSeal(body);
      default:
        throw garbled(`a message of the unknown kind ${type}`);
    }
  }

  /** From now on no epoch is taken or acknowledged. What is half here never happened. */
  close(): void {
    this.#isClosed = true;
    if (this.#arriving !== undefined) this.#options.image.giveBack(this.#arriving.slot);
    this.#arriving = undefined;
  }

  [Symbol.dispose](): void {
    this.close();
    this.#forgetApplied();
    this.#scratch[Symbol.dispose]();
  }

  #takeCopy(body: Uint8Array): void {
    const { image, onCopied } = this.#options;
    // Epochs build on the copy: written over by it they would be lost.
    if (image.committed !== NO_EPOCH) throw garbled('a copy after epochs');
    const { runs, pageCount, packed } = decodePages(body, image.memory.pageCount);
    this.#unpack(packed, pageCount);
    image.memory.writeRuns(runs, this.#scratch);
    onCopied(pageCount);
  }

  /** Into the scratch memory, which holds what the pages were packed against. */
  #unpack(packed: Uint8Array, pageCount: number): Uint8Array {
    const target = this.#scratch.bytes.subarray(0, pageCount * PAGE_BYTES);
    try {
      this.#decoder.decodePages({ input: packed, target });
    } catch (cause) {
      if (!(cause instanceof WireError)) throw cause;
      throw garbled('pages that cannot be unpacked', cause);
    }
    return target;
  }

  async #takePages(body: Uint8Array): Promise<void> {
    const { epoch, runs, continues, pageCount, packed } = decodePages(
      body,
      this.#options.image.memory.pageCount,
    );
    const arriving = await this.#arrivingOf(epoch);
    if (arriving === undefined) return;
    this.#held.read(runs, this.#scratch);
    const { slot } = arriving;
    const offset = slot.append(runs, { continues, bytes: this.#unpack(packed, pageCount) });
    this.#held.note(epoch, { runs, mapping: slot.mapping, offset });
  }

  async #takeTail(body: Uint8Array): Promise<void> {
    const { epoch, rest } = decodeEpoch(body);
    const arriving = await this.#arrivingOf(epoch);
    if (arriving === undefined) return;
    if (rest.length === 0) throw garbled('a part of an epoch with nothing in it');
    arriving.tailBytes += rest.length;
    if (arriving.tailBytes > TAIL_BYTES_MAX) throw garbled('more than an epoch may hold');
    arriving.tail.push(Uint8Array.from(rest));
  }

  async #takeWrites(body: Uint8Array): Promise<void> {
    const { epoch, rest } = decodeEpoch(body);
    const arriving = await this.#arrivingOf(epoch);
    if (arriving === undefined) return;
    if (this.#options.image.disks === undefined) throw garbled('writes to disks of a VM without any');
    if (rest.length === 0) throw garbled('a part of an epoch with nothing in it');
    arriving.slot.appendWrites(rest);
  }

  #disksBeforeEpochs(): ShadowDisks {
    const { committed, disks } = this.#options.image;
    if (committed !== NO_EPOCH || disks === undefined) throw garbled('a part of a disk out of turn');
    return disks;
  }

  #takeHints(body: Uint8Array): void {
    const { committed, disks } = this.#options.image;
    if (committed === NO_EPOCH || disks === undefined) throw garbled('a hint out of turn');
    disks.warm(body);
  }

  async #takeSeal(body: Uint8Array): Promise<void> {
    const { image, failpoints } = this.#options;
    const { epoch, rest } = decodeEpoch(body);
    const arriving = await this.#arrivingOf(epoch);
    if (arriving === undefined) return;
    await failpoints.hit('receive.before-finish');
    arriving.slot.finishAs({ header: rest, tail: Buffer.concat(arriving.tail) });
    image.disks?.check(arriving.slot.diskWrites());
    await failpoints.hit('receive.before-acknowledge');
    // A failpoint may have taken its time.
    if (this.#isClosed) return;
    this.#arriving = undefined;
    image.acknowledge(arriving.slot, epoch);
    await failpoints.hit('receive.after-acknowledge');
    this.#sayHeld(epoch);
  }

  #sayHeld(epoch: EpochId): void {
    const { image, onHeld, durable = false } = this.#options;
    if (!durable || image.disks === undefined) {
      onHeld(epoch);
      return;
    }
    // The next epoch may arrive meanwhile. They become durable in order; a failure is told by the disks themselves.
    image.disks.durable(epoch).then(
      () => this.#isClosed || onHeld(epoch),
      () => {},
    );
  }

  /** Undefined once nothing is taken any more. */
  async #arrivingOf(epoch: EpochId): Promise<Arriving | undefined> {
    const { image } = this.#options;
    if (this.#arriving !== undefined) {
      if (this.#arriving.epoch !== epoch) throw garbled('an epoch in the middle of another one');
      return this.#arriving;
    }
    if (epoch <= image.committed) throw garbled('an epoch that is older than what is held');
    const slot = await freeSlot(image);
    if (this.#isClosed) {
      image.giveBack(slot);
      return undefined;
    }
    slot.begin(epoch);
    this.#arriving = { epoch, slot, tail: [], tailBytes: 0 };
    return this.#arriving;
  }
}
