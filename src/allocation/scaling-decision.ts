import { assert, unreachable } from '../base/assert.ts';
import { CALM_MS_MAX, type ScalingPolicy } from './scaling-policy.ts';

/**
 * What to do about one resource of one VM. Pure: a driver reports what is forecast, used and granted, and carries the effects
 * out. Up is fast, and needs no forecast: a VM that is held back gets more at once. Down is slow.
 */
export interface ScalingState {
  /** What the VM may use. */
  readonly allocated: number;
  /** What is kept for it. */
  readonly reserved: number;
  /** The answer to a question is on its way; there is one at a time of each kind. */
  readonly asking: { readonly reserve: boolean; readonly relief: boolean };
  /** Since when there is too much, and the most that was wanted since then. */
  readonly tooMuch: { readonly sinceMs: number; readonly wanted: number } | undefined;
  readonly loweredAtMs: number;
  /** When the VM was held back last. */
  readonly pressedAtMs: number;
  readonly calmMs: number;
}

export type ScalingEvent =
  /** The policy's quantile of the highest demand within the horizon; undefined where nothing can be said yet. */
  | {
      readonly kind: 'forecast';
      readonly atMs: number;
      readonly peak: number | undefined;
      readonly isAnomalous: boolean;
    }
  /** What it used since the last sample, and the share of that time in which it was held back: throttled, or by PSI. */
  | {
      readonly kind: 'use';
      readonly atMs: number;
      readonly used: number;
      readonly pressureShare: number;
      readonly outOfMemory: boolean;
    }
  | { readonly kind: 'reserved'; readonly granted: number }
  | { readonly kind: 'relieved'; readonly granted: number }
  /** A reservation has ended, or was dropped because the host has less. */
  | { readonly kind: 'expired'; readonly amount: number }
  /** The actuator did not do it, or something else is there than was thought. */
  | { readonly kind: 'measured'; readonly allocated: number };

export type ScalingReason =
  | 'forecast'
  | 'held-back'
  | 'full'
  | 'out-of-memory'
  | 'below-minimum'
  | 'too-much'
  | 'above-maximum';

/** `reserve` and `relief` ask the pool; what it grants comes back as an event. The others are carried out. */
export type ScalingEffect =
  | {
      readonly kind: 'reserve';
      readonly amount: number;
      readonly forMs: number;
      readonly reason: ScalingReason;
    }
  | { readonly kind: 'relief'; readonly amount: number; readonly reason: ScalingReason }
  | {
      readonly kind: 'hand-over';
      readonly amount: number;
      readonly to: number;
      readonly reason: ScalingReason;
    }
  | { readonly kind: 'release'; readonly amount: number; readonly reason: ScalingReason }
  | { readonly kind: 'lower'; readonly to: number; readonly reason: ScalingReason };

export interface ScalingStep {
  readonly next: ScalingState;
  readonly effects: readonly ScalingEffect[];
}

export function initialScaling(allocated: number): ScalingState {
  return {
    allocated,
    reserved: 0,
    asking: { reserve: false, relief: false },
    tooMuch: undefined,
    loweredAtMs: Number.NEGATIVE_INFINITY,
    pressedAtMs: Number.NEGATIVE_INFINITY,
    calmMs: 0,
  };
}

export function stepScaling(state: ScalingState, event: ScalingEvent, policy: ScalingPolicy): ScalingStep {
  switch (event.kind) {
    case 'forecast':
      return onForecast(state, event, policy);
    case 'use':
      return onUse(state, event, policy);
    case 'reserved':
      return only({
        ...state,
        reserved: state.reserved + event.granted,
        asking: { ...state.asking, reserve: false },
      });
    case 'relieved':
      return only({
        ...state,
        allocated: state.allocated + event.granted,
        asking: { ...state.asking, relief: false },
      });
    case 'expired':
      return only({ ...state, reserved: Math.max(0, state.reserved - event.amount) });
    case 'measured':
      return only({ ...state, allocated: event.allocated });
    default:
      return unreachable(event);
  }
}

function onForecast(
  state: ScalingState,
  { atMs, peak, isAnomalous }: ScalingEvent & { kind: 'forecast' },
  policy: ScalingPolicy,
): ScalingStep {
  if (state.allocated > policy.max)
    return {
      next: { ...state, allocated: policy.max, loweredAtMs: atMs },
      effects: [{ kind: 'lower', to: policy.max, reason: 'above-maximum' }],
    };
  // Nothing is known: what the VM has is the best guess, and pressure is answered without a forecast.
  if (peak === undefined || !Number.isFinite(peak)) return only({ ...state, tooMuch: undefined });
  const wanted = bounded(peak * (1 + policy.marginShare), policy);
  const has = state.allocated + state.reserved;
  if (wanted > has) {
    const reason = has < policy.min ? 'below-minimum' : 'forecast';
    const isWorthIt = wanted - has > policy.preAllocationThreshold * has || has < policy.min;
    const next = { ...state, tooMuch: undefined };
    if (!isWorthIt || state.asking.reserve) return only(next);
    return {
      next: { ...next, asking: { ...state.asking, reserve: true } },
      effects: [{ kind: 'reserve', amount: wanted - has, forMs: policy.reservationMs, reason }],
    };
  }
  const isTooMuch = has - wanted > policy.preAllocationThreshold * has;
  // What is not normal teaches nothing about what will be needed.
  if (!isTooMuch || isAnomalous) return only({ ...state, tooMuch: undefined });
  return onTooMuch(state, { atMs, wanted }, policy);
}

function onTooMuch(
  state: ScalingState,
  { atMs, wanted }: { readonly atMs: number; readonly wanted: number },
  policy: ScalingPolicy,
): ScalingStep {
  const sinceMs = state.tooMuch?.sinceMs ?? atMs;
  const most = Math.max(state.tooMuch?.wanted ?? 0, wanted);
  const next = { ...state, tooMuch: { sinceMs, wanted: most } };
  if (atMs - sinceMs < policy.lowerAfterMs) return only(next);
  const surplus = state.allocated + state.reserved - most;
  const released = Math.min(state.reserved, Math.max(0, surplus));
  const isCalm = atMs - state.pressedAtMs >= state.calmMs;
  const isTime = atMs - state.loweredAtMs >= policy.lowerIntervalMs;
  const floor = Math.ceil(state.allocated * (1 - policy.lowerShareMax));
  const to = Math.max(most, floor, policy.min);
  const isWorthIt = state.allocated - to > policy.preAllocationThreshold * state.allocated;
  const effects: ScalingEffect[] = [];
  if (released > 0) effects.push({ kind: 'release', amount: released, reason: 'too-much' });
  if (!isCalm || !isTime || !isWorthIt)
    return { next: { ...next, reserved: state.reserved - released }, effects };
  effects.push({ kind: 'lower', to, reason: 'too-much' });
  // The next step down waits for what this one does: the span in which there is too much stays, its peak begins anew.
  return {
    next: {
      ...next,
      reserved: state.reserved - released,
      allocated: to,
      loweredAtMs: atMs,
      tooMuch: { sinceMs, wanted },
    },
    effects,
  };
}

function onUse(
  state: ScalingState,
  { atMs, used, pressureShare, outOfMemory }: ScalingEvent & { kind: 'use' },
  policy: ScalingPolicy,
): ScalingStep {
  assert(Number.isFinite(used) && used >= 0, 'a sample holds numbers only');
  const reason = needOf({ used, pressureShare, outOfMemory, allocated: state.allocated }, policy);
  if (reason === undefined) return only(state);
  const next = { ...state, pressedAtMs: atMs, calmMs: calmAfter(state, atMs, policy), tooMuch: undefined };
  const wanted = bounded(Math.max(used, state.allocated) * (1 + policy.reliefShare), policy);
  const missing = Math.max(0, wanted - state.allocated);
  const handed = Math.min(missing, state.reserved);
  const asked = state.asking.relief ? 0 : missing - handed;
  const effects: ScalingEffect[] = [];
  if (handed > 0) effects.push({ kind: 'hand-over', amount: handed, to: state.allocated + handed, reason });
  if (asked > 0) effects.push({ kind: 'relief', amount: asked, reason });
  return {
    next: {
      ...next,
      allocated: state.allocated + handed,
      reserved: state.reserved - handed,
      asking: { ...state.asking, relief: state.asking.relief || asked > 0 },
    },
    effects,
  };
}

/** Pressure soon after something was taken means that too much was: the next time that takes twice as long. */
function calmAfter(
  { pressedAtMs, loweredAtMs, calmMs }: ScalingState,
  atMs: number,
  policy: ScalingPolicy,
): number {
  const isFirst = pressedAtMs < loweredAtMs;
  if (!isFirst) return Math.max(calmMs, policy.calmMs);
  const wasOften = atMs - loweredAtMs < CALM_MS_MAX;
  return wasOften ? Math.min(CALM_MS_MAX, Math.max(policy.calmMs, 2 * calmMs)) : policy.calmMs;
}

interface Need {
  readonly used: number;
  readonly allocated: number;
  readonly pressureShare: number;
  readonly outOfMemory: boolean;
}

function needOf(
  { used, allocated, pressureShare, outOfMemory }: Need,
  policy: ScalingPolicy,
): ScalingReason | undefined {
  if (outOfMemory) return 'out-of-memory';
  if (pressureShare > policy.pressureShareMax) return 'held-back';
  if (used > policy.fullShare * allocated) return 'full';
  return undefined;
}

function bounded(amount: number, { min, max }: ScalingPolicy): number {
  return Math.ceil(Math.min(max, Math.max(min, amount)));
}

function only(next: ScalingState): ScalingStep {
  return { next, effects: [] };
}
