import { assert } from '../base/assert.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { DiskWrite } from './disk-write.ts';
import { type BlockContent, WriteSet } from './write-set.ts';

/**
 * Writes that lie above the image, in the order in which they were made. An epoch has one or more of these: a flush of the
 * guest's ends one, so that what is being written to the image does not change any more.
 */
export interface Segment {
  readonly set: WriteSet;
  /** Undefined: of the epoch that is open. */
  epoch: EpochId | undefined;
  committed: boolean;
  /** `due`: on its way to the image, or soon; `journaled`: as far as the journal; `written`: there for good. */
  state: 'held' | 'due' | 'journaled' | 'written';
}

/** What reads see before the image. Decides nothing about when it is written. */
export class DiskOverlay {
  #segments: Segment[] = [newSegment()];

  get open(): WriteSet {
    const last = this.#segments.at(-1);
    assert(last !== undefined && last.epoch === undefined, 'there is always an open set of writes');
    return last.set;
  }

  get heldBytes(): number {
    return this.#segments.reduce((sum, { set }) => sum + set.heldBytes, 0);
  }

  get isEmpty(): boolean {
    return this.#segments.every(({ set }) => set.isEmpty);
  }

  /** Something of this epoch or an older one is not in the image. */
  hasUnwrittenUpTo(epoch: EpochId): boolean {
    return this.#segments.some(
      (segment) => segment.epoch !== undefined && segment.epoch <= epoch && segment.state !== 'written',
    );
  }

  /** The newest content of a block, or undefined where the image has it. */
  get(block: number): BlockContent | undefined {
    for (let index = this.#segments.length - 1; index >= 0; index--) {
      const content = this.#segments[index]?.set.get(block);
      if (content !== undefined) return content;
    }
    return undefined;
  }

  seal(epoch: EpochId): void {
    for (const segment of this.#segments) if (segment.epoch === undefined) segment.epoch = epoch;
    this.#segments.push(newSegment());
  }

  /** It belongs to the open epoch again. */
  unseal(epoch: EpochId): void {
    const newest = this.#segments.findLast((segment) => segment.epoch !== undefined);
    // What was flushed while the VM is alone may be gone already.
    assert(
      (newest?.epoch ?? 0) <= epoch && !this.#of(epoch).some(({ committed }) => committed),
      'the latest sealed epoch is aborted',
    );
    for (const segment of this.#segments) if (segment.epoch === epoch) segment.epoch = undefined;
  }

  commit(epoch: EpochId): void {
    for (const segment of this.#of(epoch)) {
      segment.committed = true;
      // Most epochs of a quiet VM write nothing: these cost no sync.
      if (segment.state === 'held') segment.state = segment.set.isEmpty ? 'written' : 'due';
    }
  }

  /** Everything until now is to be written, and the open set ends. */
  releaseAll(): void {
    if (!this.open.isEmpty) this.#segments.push(newSegment());
    for (const segment of this.#segments.slice(0, -1)) {
      if (segment.state === 'held') segment.state = segment.set.isEmpty ? 'written' : 'due';
    }
  }

  /** What is to be written next: the oldest, without a gap. */
  due(): Segment[] {
    const unwritten = this.#segments.filter(({ state }) => state !== 'written');
    const gap = unwritten.findIndex(({ state }) => state === 'held');
    return gap === -1 ? unwritten : unwritten.slice(0, gap);
  }

  /** Forgets what is in the image and needed by nobody else: the shadow still needs what is not committed. */
  retire(options: { readonly shadowNeeds: boolean }): void {
    this.#keep(
      (segment) =>
        segment === this.#segments.at(-1) ||
        segment.state !== 'written' ||
        !(segment.committed || !options.shadowNeeds),
    );
  }

  writesOf(epoch: EpochId, options: { readonly diskBytes: number }): DiskWrite[] {
    return merged(this.#of(epoch)).writes(options);
  }

  /** Drops the epoch and all that is newer. False, and nothing happens, where some of it is in the image or on its way. */
  drop(epoch: EpochId): boolean {
    const keeps = (segment: Segment) => segment.epoch !== undefined && segment.epoch < epoch;
    const dropped = this.#segments.filter((segment) => !keeps(segment));
    if (dropped.some(({ state, set }) => state !== 'held' && !set.isEmpty)) return false;
    this.#keep(keeps);
    this.#segments.push(newSegment());
    return true;
  }

  #keep(keeps: (segment: Segment) => boolean): void {
    const gone = this.#segments.filter((segment) => !keeps(segment));
    this.#segments = this.#segments.filter(keeps);
    for (const { set } of gone) set.release();
  }

  #of(epoch: EpochId): Segment[] {
    return this.#segments.filter((segment) => segment.epoch === epoch);
  }
}

/** The newest content of each block in all of them. */
export function merged(segments: readonly Segment[]): WriteSet {
  const [first, ...rest] = segments;
  if (first !== undefined && rest.length === 0) return first.set;
  const whole = new WriteSet();
  for (const { set } of segments) whole.absorb(set);
  return whole;
}

function newSegment(): Segment {
  return { set: new WriteSet(), epoch: undefined, committed: false, state: 'held' };
}
