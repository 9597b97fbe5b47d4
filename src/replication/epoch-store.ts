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
