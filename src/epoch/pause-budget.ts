/**
 * Bounds the share of time for which a VM stands still: a token bucket whose tokens are milliseconds of
 * pause. It refills at `pauseShare` of real time up to `pauseBurstMs`, so that a lone request after a quiet
 * while is answered at once and a steady load is batched. A cut may overdraw it; the debt is waited for.
 */
export interface PauseBudget {
  readonly creditMs: number;
  readonly atMs: number;
}

export interface PauseBudgetPolicy {
  /** Longest share of time that may be spent paused, 0 … 1. */
  readonly pauseShare: number;
  /** Credit that a quiet time can save up, in milliseconds of pause. */
  readonly pauseBurstMs: number;
}

export function fullBudget(policy: PauseBudgetPolicy, nowMs: number): PauseBudget {
  return { creditMs: policy.pauseBurstMs, atMs: nowMs };
}

export function refill(budget: PauseBudget, policy: PauseBudgetPolicy, nowMs: number): PauseBudget {
  const elapsedMs = Math.max(0, nowMs - budget.atMs);
  return {
    creditMs: Math.min(policy.pauseBurstMs, budget.creditMs + elapsedMs * policy.pauseShare),
    atMs: Math.max(nowMs, budget.atMs),
  };
}

/** Books a pause. The share is one of all time, so that credit has grown during the pause as well. */
export function spend(budget: PauseBudget, pausedMs: number): PauseBudget {
  return { ...budget, creditMs: budget.creditMs - pausedMs };
}

/** When a cut is affordable: now, or the time at which the debt is paid off. */
export function affordableAtMs(budget: PauseBudget, policy: PauseBudgetPolicy): number {
  return budget.creditMs > 0 ? budget.atMs : budget.atMs - budget.creditMs / policy.pauseShare;
}
