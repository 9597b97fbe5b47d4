import { assert } from '../base/assert.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import type { EpochParticipant } from '../epoch/participant.ts';
import { itemCost, PressureGauge } from './pressure.ts';

export interface InputLogOptions {
  /** More is logged than `limitBytes` (true): the source has to wait; or there is room again (false). */
  readonly onPressure: (pressed: boolean) => void;
  readonly limitBytes: number;
  /** Negative control for tests: what was handed over is forgotten at the cut, whether QEMU had read it or not. */
  readonly unsafeForgetAtCut?: boolean;
}

/**
 * What the world sent to a guest, kept until an epoch that holds its effect is committed.
 *
 * Items live in one list, in the order in which they arrived, and every step concerns a prefix of it:
 *
 *   removed ≤ read ≤ handed ≤ end
 *
 * *handed*: written to QEMU's socket. *read*: QEMU was known to have read it while the VM still ran, so it is
 * in guest memory at the next stop (or was dropped by the nic, which QEMU does with what it holds at a stop).
 * A frame that QEMU reads while the VM stands still waits in QEMU's own queue, which is in no device state:
 * it must not count. Sealing an epoch notes how far was read; its commit removes so much. Pure, no I/O.
 */
export class InputLog implements EpochParticipant {
  readonly #options: InputLogOptions;
  readonly #gauge: PressureGauge;
  #items: Uint8Array[] = [];
  /** Sequence number of `#items[0]`. */
  #removed = 0;
  #read = 0;
  #handed = 0;
  #sealed: { epoch: EpochId; read: number }[] = [];
  #committed: EpochId = NO_EPOCH;
  #logging = false;
  #replayedItems = 0;

  constructor(options: InputLogOptions) {
    this.#options = options;
    this.#gauge = new PressureGauge(options.limitBytes, options.onPressure);
  }

  append(item: Uint8Array): void {
    this.#items.push(item);
    this.#gauge.add(itemCost(item));
  }

  /** The next item that QEMU has not been given, which now counts as handed over. */
  hand(): Uint8Array | undefined {
    const item = this.#items[this.#handed - this.#removed];
    if (item !== undefined) this.#handed += 1;
    return item;
  }

  /** QEMU has read everything it was given, and the VM ran meanwhile. */
  markRead(): void {
    this.#read = this.#handed;
    if (!this.#logging) this.#remove(this.#read);
  }

  /** A shadow comes into being: what is read from now on stays until an epoch covers it. */
  startLogging(): void {
    this.#logging = true;
  }

  /** No shadow will go on from an epoch: what QEMU has read is not needed any more. */
  stopLogging(): void {
    this.#logging = false;
    this.#remove(this.#read);
  }

  seal(epoch: EpochId): void {
    assert(epoch > (this.#sealed.at(-1)?.epoch ?? this.#committed), 'epochs are sealed in rising order');
    this.#sealed.push({ epoch, read: this.#read });
    if (this.#options.unsafeForgetAtCut) this.#remove(this.#handed);
  }

  commit(epoch: EpochId): void {
    const sealed = this.#sealed.shift();
    assert(sealed?.epoch === epoch, `epoch ${epoch} is the oldest sealed one`);
    this.#committed = epoch;
    this.#remove(sealed.read);
  }

  /** What the epoch would have covered is covered by the next one, which has been read up to there or further. */
  abort(epoch: EpochId): void {
    assert(this.#sealed.pop()?.epoch === epoch, `epoch ${epoch} is the latest sealed one`);
  }

  /** The shadow goes on from `committed`: everything whose effect it does not hold is handed over again. */
  rollBack(committed: EpochId): void {
    const covering = this.#sealed.findLast((sealed) => sealed.epoch <= committed);
    if (covering !== undefined) this.#remove(covering.read);
    this.#sealed = [];
    this.#committed = committed;
    this.#replayedItems += this.#handed - this.#removed;
    this.#handed = this.#removed;
    this.#read = this.#removed;
  }

  /** The VM begins anew from nothing: input for its past is no concern of its future. */
  forget(): void {
    this.#sealed = [];
    this.#remove(this.#removed + this.#items.length);
    this.#handed = this.#removed;
  }

  get hasQueued(): boolean {
    return this.#handed < this.#removed + this.#items.length;
  }

  get hasUnread(): boolean {
    return this.#read < this.#handed;
  }

  get isFull(): boolean {
    return this.#gauge.pressed;
  }

  stats(): { loggedItems: number; loggedBytes: number; queuedItems: number; replayedItems: number } {
    let loggedBytes = 0;
    for (const item of this.#items) loggedBytes += item.length;
    return {
      loggedItems: this.#items.length,
      loggedBytes,
      queuedItems: this.#removed + this.#items.length - this.#handed,
      replayedItems: this.#replayedItems,
    };
  }

  #remove(end: number): void {
    if (end <= this.#removed) return;
    const gone = this.#items.splice(0, end - this.#removed);
    this.#removed = end;
    this.#read = Math.max(this.#read, end);
    let bytes = 0;
    for (const item of gone) bytes += itemCost(item);
    this.#gauge.subtract(bytes);
  }
}
