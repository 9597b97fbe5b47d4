import { assert } from '../base/assert.ts';
import type { Brand } from '../base/units.ts';

/** Number of an epoch: the interval between two cuts of one VM. Counts from 1 and never goes back. */
export type EpochId = Brand<number, 'EpochId'>;

export const FIRST_EPOCH = 1 as EpochId;

/** Stands for "before any epoch": nothing is committed yet. */
export const NO_EPOCH = 0 as EpochId;

export function epochId(value: number): EpochId {
  assert(Number.isSafeInteger(value) && value >= 0, `an epoch id is a whole number, not ${value}`);
  return value as EpochId;
}

export function nextEpoch(epoch: EpochId): EpochId {
  return epochId(epoch + 1);
}
