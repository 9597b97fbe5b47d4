import type { EpochId } from './epoch-id.ts';

/**
 * Whoever holds something that belongs to an epoch (output that waits, input that was read, written pages)
 * takes part in it. The driver calls, in this order and never twice at the same time:
 *
 *   seal(e)                   the VM stands still: what was collected until now belongs to e
 *   then either commit(e)     the shadow holds the whole of e
 *   or          abort(e)      e never became whole: what it held joins the epoch that is open now
 *
 * Commits come in the order of the seals. An abort concerns the latest sealed epoch only, and everything
 * sealed before it is committed or aborted on its own.
 */
export interface EpochParticipant {
  seal(epoch: EpochId): void;
  commit(epoch: EpochId): void;
  abort(epoch: EpochId): void;
}
