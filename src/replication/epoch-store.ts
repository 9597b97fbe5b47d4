import { assert } from '../base/assert.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { EpochSlot } from './epoch-slot.ts';

/** Where a pipeline's epochs go: a shadow on this host, or the way to one on another. */
export interface EpochStore {
  /** A slot to stage the next epoch in; undefined while all are in use. */
  take(): EpochSlot | undefined;
  /** Gives back a slot whose epoch did not become whole. */
  giveBack(slot: EpochSlot): void;
  /** Resolves when a slot is free. @throws what the shadow was lost by */
  room(): Promise<void>;
  /** The epoch is whole: it may be sent ahead, while those before it are not acknowledged yet. */
  offer(slot: EpochSlot, epoch: EpochId): void;
  /**
   * Returns, or resolves, when the shadow holds the epoch. Called in the order of the epochs; the slot is the store's
   * from then on. @throws what the shadow was lost by
   */
  acknowledge(slot: EpochSlot, epoch: EpochId): Promise<void> | void;
}

/** A slot, when there is one: whoever is slower than the epochs come makes them wait. @throws what the shadow was lost by */
export async function freeSlot(store: Pick<EpochStore, 'take' | 'room'>): Promise<EpochSlot> {
  const slot = store.take();
  if (slot !== undefined) return slot;
  await store.room();
  const freed = store.take();
  assert(freed !== undefined, 'where there is room a slot is free');
  return freed;
}
