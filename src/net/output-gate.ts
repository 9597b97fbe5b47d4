import { assert } from '../base/assert.ts';
import { type EpochId, NO_EPOCH } from '../epoch/epoch-id.ts';
import type { EpochParticipant } from '../epoch/participant.ts';
import { itemCost, PressureGauge } from './pressure.ts';

type Items = Uint8Array[];

export type Releasable = 'acknowledged' | 'unknown';

interface DueItem {
  readonly item: Uint8Array;
  readonly what: Releasable;
}

export interface OutputGateOptions {
  /** Lets one item out into the world. Must not throw. */
  readonly release: (item: Uint8Array) => void;
  /** Output began to wait for an epoch that is not sealed yet: time for a cut. */
  readonly onHeld: () => void;
  /** More is held than `limitBytes` (true): QEMU has to wait; or there is room again (false). */
  readonly onPressure: (pressed: boolean) => void;
  readonly limitBytes: number;
  /**
   * Asked for each item, at the moment in which it is to leave: may one that a shadow has acknowledged, or one that nobody
   * else knows? What may not waits for `releaseDue`. By default all may.
   */
  readonly mayRelease?: (what: Releasable) => boolean;
  /** Negative control for tests: output leaves at once although it should wait. */
  readonly unsafeReleaseUncommitted?: boolean;
}

/** So many that have left stay in the list before it is made anew without them. */
const DUE_LEFT_MAX = 4096;

/**
 * Output commit: what a guest sends leaves only once the shadow holds the state that sent it (Remus, NSDI
 * 2008, section 3.4). Every item belongs to the epoch in which it was pushed, and items leave in order.
 * Pure: no I/O of its own, no clock.
 */
export class OutputGate implements EpochParticipant {
  readonly #options: OutputGateOptions;
  readonly #gauge: PressureGauge;
  #holding = false;
  /** Would have left, if that were allowed. Before all else, in order. */
  // Those before `#dueAt` have left: taking the first of very many away one by one would move all others each time.
  #due: DueItem[] = [];
  #dueAt = 0;
  #dueBytes = 0;
  #open: Items = [];
  #sealed: { epoch: EpochId; items: Items }[] = [];
  /** Everything up to this epoch has left through this very gate. */
  #released: EpochId = NO_EPOCH;
  #heldItems = 0;
  #releasedItems = 0;
  #releasedBytes = 0;
  #droppedItems = 0;

  constructor(options: OutputGateOptions) {
    this.#options = options;
    this.#gauge = new PressureGauge(options.limitBytes, options.onPressure);
  }

  push(item: Uint8Array): void {
    if (!this.#holding || this.#options.unsafeReleaseUncommitted) {
      this.#releaseNow(item, 'unknown');
      return;
    }
    this.#hold(item);
    this.#open.push(item);
    if (this.#open.length === 1) this.#options.onHeld();
  }

  /** From now on output waits for commits. */
  hold(): void {
    this.#holding = true;
  }

  /** There is no shadow to be consistent with: what is held leaves at once, and later output passes through. */
  pass(): void {
    this.#holding = false;
    for (const sealed of this.#sealed) {
      this.#releaseHeld(sealed.items, 'unknown');
      // The epoch itself stays: its commit or abort may still come.
      sealed.items = [];
    }
    this.#releaseHeld(this.#takeOpen(), 'unknown');
  }

  /** What had to wait because it was not allowed to leave may be allowed now. */
  releaseDue(): void {
    for (let next = this.#due[this.#dueAt]; next !== undefined; next = this.#due[this.#dueAt]) {
      if (!this.#isAllowed(next.what)) return;
      this.#dueAt += 1;
      if (this.#dueAt === this.#due.length || this.#dueAt >= DUE_LEFT_MAX) {
        this.#due = this.#due.slice(this.#dueAt);
        this.#dueAt = 0;
      }
      this.#dueBytes -= next.item.length;
      this.#release(next.item);
      this.#letGo(next.item);
    }
  }

  seal(epoch: EpochId): void {
    assert(epoch > (this.#sealed.at(-1)?.epoch ?? this.#released), 'epochs are sealed in rising order');
    this.#sealed.push({ epoch, items: this.#takeOpen() });
  }

  commit(epoch: EpochId): void {
    const sealed = this.#sealed.shift();
    assert(sealed?.epoch === epoch, `epoch ${epoch} is the oldest sealed one`);
    this.#released = epoch;
    this.#releaseHeld(sealed.items, 'acknowledged');
  }

  abort(epoch: EpochId): void {
    const sealed = this.#sealed.pop();
    assert(sealed?.epoch === epoch, `epoch ${epoch} is the latest sealed one`);
    const wasEmpty = this.#open.length === 0;
    this.#open = [...sealed.items, ...this.#open];
    if (wasEmpty && this.#open.length > 0) this.#options.onHeld();
  }

  /** What a sealed epoch holds, to be stored with it. */
  sealedOutput(epoch: EpochId): readonly Uint8Array[] {
    const sealed = this.#sealed.find((candidate) => candidate.epoch === epoch);
    assert(sealed !== undefined, `epoch ${epoch} is sealed`);
    return sealed.items;
  }

  /**
   * The shadow goes on from `committed`: output up to it leaves, later output never happened. A gate that saw
   * this output leave does not repeat it. A gate that does not know (another process held it) lets
   * `lastOutput`, stored with the epoch, leave, on doubt for the second time.
   */
  rollBack(committed: EpochId, lastOutput: readonly Uint8Array[]): void {
    const known = committed <= this.#released || this.#sealed.some((sealed) => sealed.epoch === committed);
    const dead = [
      ...this.#sealed.filter((sealed) => sealed.epoch > committed).map((s) => s.items),
      this.#open,
    ];
    const alive = this.#sealed.filter((sealed) => sealed.epoch <= committed);
    this.#sealed = [];
    this.#open = [];
    this.#released = committed;
    for (const { items } of alive) this.#releaseHeld(items, 'acknowledged');
    if (!known) for (const item of lastOutput) this.#releaseNow(item, 'acknowledged');
    for (const item of dead.flat()) {
      this.#droppedItems += 1;
      this.#letGo(item);
    }
  }

  /** The VM begins anew from nothing: what was not committed never happened. */
  forget(): void {
    this.rollBack(this.#released, []);
  }

  /** What has left since the gate exists. */
  get released(): { readonly items: number; readonly bytes: number } {
    return { items: this.#releasedItems, bytes: this.#releasedBytes };
  }

  /** Of output that would have left, if that were allowed. */
  get dueBytes(): number {
    return this.#dueBytes;
  }

  get isHolding(): boolean {
    return this.#holding;
  }

  stats(): { heldItems: number; heldBytes: number; releasedItems: number; droppedItems: number } {
    let heldBytes = 0;
    for (const item of [...this.#waitingItems]) heldBytes += item.length;
    return {
      heldItems: this.#heldItems,
      heldBytes,
      releasedItems: this.#releasedItems,
      droppedItems: this.#droppedItems,
    };
  }

  get #waitingItems(): Items {
    return [
      ...this.#due.slice(this.#dueAt).map(({ item }) => item),
      ...this.#sealed.flatMap(({ items }) => items),
      ...this.#open,
    ];
  }

  #isAllowed(what: Releasable): boolean {
    return this.#options.mayRelease?.(what) ?? true;
  }

  /** Nothing overtakes what is due. */
  #mayRelease(what: Releasable): boolean {
    if (this.#due.length > 0) this.releaseDue();
    return this.#due.length === 0 && this.#isAllowed(what);
  }

  #hold(item: Uint8Array): void {
    this.#heldItems += 1;
    this.#gauge.add(itemCost(item));
  }

  #takeOpen(): Items {
    const items = this.#open;
    this.#open = [];
    return items;
  }

  #releaseHeld(items: Items, what: Releasable): void {
    for (const item of items) {
      if (this.#mayRelease(what)) {
        this.#release(item);
        this.#letGo(item);
      } else {
        this.#makeDue({ item, what });
      }
    }
  }

  /** One that was not held until now. */
  #releaseNow(item: Uint8Array, what: Releasable): void {
    if (this.#mayRelease(what)) {
      this.#release(item);
    } else {
      this.#hold(item);
      this.#makeDue({ item, what });
    }
  }

  #makeDue(due: DueItem): void {
    this.#due.push(due);
    this.#dueBytes += due.item.length;
  }

  #release(item: Uint8Array): void {
    this.#releasedItems += 1;
    this.#releasedBytes += item.length;
    this.#options.release(item);
  }

  #letGo(item: Uint8Array): void {
    this.#heldItems -= 1;
    this.#gauge.subtract(itemCost(item));
  }
}
