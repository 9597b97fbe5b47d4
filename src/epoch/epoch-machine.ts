import { assert, unreachable } from '../base/assert.ts';
import { type EpochId, FIRST_EPOCH, nextEpoch } from './epoch-id.ts';
import {
  affordableAtMs,
  fullBudget,
  type PauseBudget,
  type PauseBudgetPolicy,
  refill,
  spend,
} from './pause-budget.ts';

/**
 * Decides when a VM's epochs are cut and in which order they take effect. Pure: facts in, effects out; the
 * pipeline carries the effects out and reports back.
 *
 * A cut is wanted when output is held, when too much is dirty, when the open epoch is too old, or when
 * somebody demands one. It is made when the pause budget allows and not too many epochs are in flight.
 */
export interface EpochPolicy extends PauseBudgetPolicy {
  readonly maxIntervalMs: number;
  readonly dirtyPagesMax: number;
  readonly epochsInFlightMax: number;
}

export interface EpochState {
  readonly phase: 'open' | 'cutting' | 'halted';
  /** The epoch that collects changes now. */
  readonly open: EpochId;
  readonly openedAtMs: number;
  readonly outputHeld: boolean;
  readonly dirtyPages: number;
  /** Somebody waits for a commit whatever the budget says: a planned promotion, a guest that powered off. */
  readonly demanded: boolean;
  /** Cut, but not yet held by the shadow; oldest first. */
  readonly inFlight: readonly EpochId[];
  readonly budget: PauseBudget;
}

export type EpochEvent =
  | { readonly kind: 'tick'; readonly nowMs: number }
  | { readonly kind: 'output-held'; readonly nowMs: number }
  | { readonly kind: 'dirty'; readonly pages: number; readonly nowMs: number }
  | { readonly kind: 'demand'; readonly nowMs: number }
  /** The VM stands still and all that the epoch holds is known: what comes now belongs to the next one. */
  | { readonly kind: 'sealed'; readonly epoch: EpochId }
  /** The VM runs again after it stood still for `pausedMs`. */
  | { readonly kind: 'resumed'; readonly pausedMs: number; readonly nowMs: number }
  | { readonly kind: 'acknowledged'; readonly epoch: EpochId; readonly nowMs: number }
  | { readonly kind: 'failed'; readonly epoch: EpochId; readonly nowMs: number }
  | { readonly kind: 'halt' }
  /** Nobody will acknowledge what is in flight any more. After a halt. */
  | { readonly kind: 'abandon' };

export type EpochEffect =
  | { readonly kind: 'cut'; readonly epoch: EpochId }
  | { readonly kind: 'commit'; readonly epoch: EpochId }
  | { readonly kind: 'abort'; readonly epoch: EpochId }
  | { readonly kind: 'wake'; readonly atMs: number };

export interface EpochStep {
  readonly next: EpochState;
  readonly effects: readonly EpochEffect[];
}

export function initialEpochState(
  policy: EpochPolicy,
  nowMs: number,
  open: EpochId = FIRST_EPOCH,
): EpochState {
  return {
    phase: 'open',
    open,
    openedAtMs: nowMs,
    outputHeld: false,
    dirtyPages: 0,
    demanded: false,
    inFlight: [],
    budget: fullBudget(policy, nowMs),
  };
}

export function stepEpoch(state: EpochState, event: EpochEvent, policy: EpochPolicy): EpochStep {
  switch (event.kind) {
    case 'halt':
      return { next: { ...state, phase: 'halted' }, effects: [] };
    case 'abandon': {
      assert(state.phase === 'halted', 'epochs are abandoned when no other is cut');
      // The newest first: each joins the one after it.
      const effects = state.inFlight.toReversed().map((epoch) => ({ kind: 'abort', epoch }) as const);
      return { next: { ...state, inFlight: [] }, effects };
    }
    case 'tick':
      return decide(state, [], { policy, nowMs: event.nowMs });
    case 'output-held':
      return decide({ ...state, outputHeld: true }, [], { policy, nowMs: event.nowMs });
    case 'dirty':
      return decide({ ...state, dirtyPages: event.pages }, [], { policy, nowMs: event.nowMs });
    case 'demand':
      return decide({ ...state, demanded: true }, [], { policy, nowMs: event.nowMs });
    case 'sealed':
      assert(state.phase !== 'open' && event.epoch === state.open, `epoch ${event.epoch} was not being cut`);
      return {
        next: {
          ...state,
          open: nextEpoch(state.open),
          outputHeld: false,
          dirtyPages: 0,
          demanded: false,
          inFlight: [...state.inFlight, event.epoch],
        },
        effects: [],
      };
    case 'resumed': {
      const { pausedMs, nowMs } = event;
      const next: EpochState = {
        ...state,
        phase: state.phase === 'halted' ? 'halted' : 'open',
        openedAtMs: nowMs,
        budget: spend(refill(state.budget, policy, nowMs), pausedMs),
      };
      return decide(next, [], { policy, nowMs });
    }
    case 'acknowledged': {
      assert(state.inFlight[0] === event.epoch, `epoch ${event.epoch} is not the oldest in flight`);
      const next = { ...state, inFlight: state.inFlight.slice(1) };
      return decide(next, [{ kind: 'commit', epoch: event.epoch }], { policy, nowMs: event.nowMs });
    }
    case 'failed': {
      // Only the newest can fail alone: what was cut after it builds on it.
      assert(state.inFlight.at(-1) === event.epoch, `epoch ${event.epoch} is not the newest in flight`);
      const next = { ...state, inFlight: state.inFlight.slice(0, -1), outputHeld: true };
      return decide(next, [{ kind: 'abort', epoch: event.epoch }], { policy, nowMs: event.nowMs });
    }
    default:
      return unreachable(event);
  }
}

function decide(
  state: EpochState,
  effects: readonly EpochEffect[],
  { policy, nowMs }: { policy: EpochPolicy; nowMs: number },
): EpochStep {
  if (state.phase !== 'open') return { next: state, effects };
  // An epoch in flight is waited for without a timer: its acknowledgement comes back as an event.
  if (state.inFlight.length >= policy.epochsInFlightMax) return { next: state, effects };
  const budget = refill(state.budget, policy, nowMs);
  const refilled = { ...state, budget };
  const dueAtMs = wantsCut(state, policy) ? nowMs : state.openedAtMs + policy.maxIntervalMs;
  const cutAtMs = state.demanded ? nowMs : Math.max(dueAtMs, affordableAtMs(budget, policy));
  if (cutAtMs > nowMs) return { next: refilled, effects: [...effects, { kind: 'wake', atMs: cutAtMs }] };
  return {
    next: { ...refilled, phase: 'cutting' },
    effects: [...effects, { kind: 'cut', epoch: state.open }],
  };
}

function wantsCut(state: EpochState, policy: EpochPolicy): boolean {
  return state.demanded || state.outputHeld || state.dirtyPages >= policy.dirtyPagesMax;
}
