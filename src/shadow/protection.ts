import { unreachable } from '../base/assert.ts';

/**
 * The protection of one VM as a state machine: who acts, whether a shadow could take over, and what happens
 * when either dies. Pure: the keeper reports facts and carries the effects out, one after the other.
 *
 *   starting → alone ⇄ syncing → protected → fencing → promoting → alone → …
 *
 * From each state in which a QEMU acts its VM can be saved: it stands still (`saving`), and then ends or goes on.
 *
 * Only one state lets a QEMU of this VM act at a time, and the way from one acting QEMU to the next always
 * leads through `fencing`: the old one is proven dead before the new one runs.
 */
/** `disk-failed`: it runs, and nothing that its guest writes can be relied on; its shadow has disks of its own. */
export type LossReason =
  | 'exited'
  | 'qmp-closed'
  | 'hung'
  | 'garbled'
  | 'panicked'
  | 'disk-failed'
  | 'planned';

/** `moved`: its shadow on another host acts, as it was told to. `superseded`: it does so by itself. */
export type StopReason = 'requested' | 'powered-off' | 'suspended' | 'failed' | 'moved' | 'superseded';

export const PHASES = [
  'starting',
  'alone',
  'syncing',
  'protected',
  'saving',
  'fencing',
  'promoting',
  'restarting',
  'stopping',
  'stopped',
  // Of a keeper whose VM acts on another host; no state of this machine.
  'shadowing',
] as const;

export type Phase = (typeof PHASES)[number];

export interface ProtectionState {
  readonly phase: Phase;
  /** Whether somebody wants a shadow for this VM; can be changed at any time. */
  readonly wanted: boolean;
  /** Shadows that are to be dropped yet: as long as there are some, what a shadow reports is of no interest any more. */
  readonly dropping: number;
  /** In `saving`: a shadow that was in sync could take over yet. */
  readonly shadowBehind: boolean;
  /** Why the primary was lost; set from `fencing` until the VM acts again. */
  readonly lost: LossReason | undefined;
  /** What follows the fence. */
  readonly after: 'promote' | 'restart' | undefined;
  readonly stopReason: StopReason | undefined;
  readonly promotions: number;
  readonly restarts: number;
  /** Time of the last promotion after a panic: a second panic soon after means that the shadow inherits the cause. */
  readonly panicPromotedAtMs: number | undefined;
  /** Times of recent cold restarts: a VM that dies again and again is stopped. */
  readonly restartedAtMs: readonly number[];
  /** Shadows lost in a row without one being in sync in between. */
  readonly shadowFailures: number;
}

export interface ProtectionPolicy {
  /** A panic within this time after a promotion that followed a panic leads to a cold restart. */
  readonly panicForgetMs: number;
  readonly restartsMax: number;
  readonly restartWindowMs: number;
  /**
   * Between a promotion and the start of the next shadow: those who wait for an answer come first. A guest under
   * TCG has all its code to translate anew just then.
   */
  readonly takeoverQuietMs: number;
  /** First wait before a lost shadow is replaced; doubles with every failure in a row. */
  readonly shadowRetryMs: number;
  readonly shadowRetryMaxMs: number;
}

export const DEFAULT_PROTECTION_POLICY: ProtectionPolicy = {
  panicForgetMs: 600_000,
  restartsMax: 3,
  restartWindowMs: 300_000,
  takeoverQuietMs: 150,
  shadowRetryMs: 250,
  shadowRetryMaxMs: 30_000,
};

export type ProtectionEvent =
  | { readonly kind: 'started' }
  | { readonly kind: 'start-failed' }
  | { readonly kind: 'shadow-starting' }
  | { readonly kind: 'shadow-in-sync' }
  | { readonly kind: 'shadow-lost' }
  | { readonly kind: 'shadow-dropped' }
  | { readonly kind: 'protect-requested' }
  | { readonly kind: 'unprotect-requested' }
  | { readonly kind: 'save-requested' }
  /** The state is on disk. The VM ends, or its guest runs again and is about to be ended. */
  | { readonly kind: 'saved'; readonly next: 'end' | 'power-off' }
  /** The guest runs again as if nothing had been asked. */
  | { readonly kind: 'save-failed' }
  | { readonly kind: 'primary-lost'; readonly reason: LossReason; readonly nowMs: number }
  | { readonly kind: 'fenced' }
  | { readonly kind: 'promoted' }
  | { readonly kind: 'promote-failed' }
  /** The shadow on another host acts. */
  | { readonly kind: 'moved' }
  | { readonly kind: 'superseded' }
  | { readonly kind: 'powered-off' }
  | { readonly kind: 'stop-requested' }
  | { readonly kind: 'stopped' };

export type ProtectionEffect =
  /** Output leaves at once: nobody could take over, so waiting would protect nothing. */
  | { readonly kind: 'pass-output' }
  | { readonly kind: 'start-shadow'; readonly afterMs: number }
  | { readonly kind: 'drop-shadow' }
  /** Close the primary's ports, kill it and wait until it is proven dead. */
  | { readonly kind: 'fence' }
  | { readonly kind: 'promote' }
  | { readonly kind: 'restart' }
  /** Let the VM stand still and write its state to disk. Reports back; what comes next need not wait for it. */
  | { readonly kind: 'save' }
  | { readonly kind: 'stop' };

export interface ProtectionStep {
  readonly next: ProtectionState;
  readonly effects: readonly ProtectionEffect[];
}

export const INITIAL_PROTECTION: ProtectionState = {
  phase: 'starting',
  wanted: true,
  dropping: 0,
  shadowBehind: false,
  lost: undefined,
  after: undefined,
  stopReason: undefined,
  promotions: 0,
  restarts: 0,
  panicPromotedAtMs: undefined,
  restartedAtMs: [],
  shadowFailures: 0,
};

/** A QEMU of the VM runs, and none is being exchanged for another. */
export function isActing({ phase }: ProtectionState): boolean {
  return phase === 'alone' || phase === 'syncing' || phase === 'protected' || phase === 'saving';
}

/** Should its QEMU be lost now, its shadow takes over. */
export function hasHeir({ phase, shadowBehind }: ProtectionState): boolean {
  return phase === 'protected' || (phase === 'saving' && shadowBehind);
}

export function isEnding({ phase }: ProtectionState): boolean {
  return phase === 'stopping' || phase === 'stopped';
}

/** It has ended here, and another host acts as it or is about to. */
export function goesOnElsewhere(reason: StopReason | undefined): boolean {
  return reason === 'moved' || reason === 'superseded';
}

export function stepProtection(
  state: ProtectionState,
  event: ProtectionEvent,
  policy: ProtectionPolicy,
): ProtectionStep {
  if (event.kind === 'shadow-dropped') return stay({ ...state, dropping: state.dropping - 1 });
  const { next, effects } = decide(state, event, policy);
  const drops = effects.some(({ kind }) => kind === 'drop-shadow');
  return drops ? { next: { ...next, dropping: next.dropping + 1 }, effects } : { next, effects };
}

function decide(
  state: ProtectionState,
  event: Exclude<ProtectionEvent, { kind: 'shadow-dropped' }>,
  policy: ProtectionPolicy,
): ProtectionStep {
  if (state.phase === 'stopped') return stay(state);
  if (state.phase === 'stopping') return decideWhileStopping(state, event);
  switch (event.kind) {
    case 'stop-requested':
      return stop(state, 'requested');
    case 'powered-off':
      return stop(state, 'powered-off');
    case 'start-failed':
      return stop(state, 'failed');
    case 'moved':
      return state.phase === 'promoting'
        ? stop({ ...state, promotions: state.promotions + 1 }, 'moved')
        : stay(state);
    case 'superseded':
      return stop(state, 'superseded');
    case 'primary-lost':
      return losePrimary(state, event, policy);
    case 'started':
      return state.phase === 'starting' || state.phase === 'restarting'
        ? act(state, { shadowAfterMs: 0 })
        : stay(state);
    case 'promoted':
      return state.phase === 'promoting'
        ? act({ ...state, promotions: state.promotions + 1 }, { shadowAfterMs: policy.takeoverQuietMs })
        : stay(state);
    case 'shadow-starting':
      return state.phase === 'alone' && state.dropping === 0
        ? stay({ ...state, phase: 'syncing' })
        : stay(state);
    case 'shadow-in-sync':
      return state.phase === 'syncing'
        ? stay({ ...state, phase: 'protected', shadowFailures: 0 })
        : stay(state);
    case 'shadow-lost':
      return state.dropping > 0 ? stay(state) : loseShadow(state, policy);
    case 'protect-requested':
      return protect(state);
    case 'unprotect-requested':
      return unprotect(state);
    case 'save-requested':
      return save(state);
    case 'saved':
      return leaveSaving(state, event);
    case 'save-failed':
      return goOnUnsaved(state, policy);
    case 'fenced':
      return leaveFence(state);
    case 'promote-failed':
      return state.phase === 'promoting' ? restart(state) : stay(state);
    case 'stopped':
      return stay(state);
    default:
      return unreachable(event);
  }
}

/** It may turn out that its shadow acts, or has to, as what this host has of its disks is not all. */
function decideWhileStopping(state: ProtectionState, { kind }: ProtectionEvent): ProtectionStep {
  if (kind === 'stopped') return stay({ ...state, phase: 'stopped' });
  if (kind === 'moved') return stay({ ...state, promotions: state.promotions + 1, stopReason: kind });
  return stay(kind === 'superseded' ? { ...state, stopReason: kind } : state);
}

function stay(next: ProtectionState): ProtectionStep {
  return { next, effects: [] };
}

function stop(state: ProtectionState, stopReason: StopReason): ProtectionStep {
  return { next: { ...state, phase: 'stopping', stopReason }, effects: [{ kind: 'stop' }] };
}

/** A QEMU acts and nobody stands behind it yet. */
function act(state: ProtectionState, { shadowAfterMs }: { shadowAfterMs: number }): ProtectionStep {
  const next: ProtectionState = { ...state, phase: 'alone', lost: undefined, after: undefined };
  return { next, effects: [{ kind: 'pass-output' }, ...startIfWanted(state, shadowAfterMs)] };
}

function startIfWanted({ wanted }: ProtectionState, afterMs: number): ProtectionEffect[] {
  return wanted ? [{ kind: 'start-shadow', afterMs }] : [];
}

/** While a takeover or a start is under way the wish is only noted: it counts as soon as a QEMU acts. */
function protect(state: ProtectionState): ProtectionStep {
  if (state.wanted) return stay(state);
  const next = { ...state, wanted: true, shadowFailures: 0 };
  return { next, effects: state.phase === 'alone' ? startIfWanted(next, 0) : [] };
}

function unprotect(state: ProtectionState): ProtectionStep {
  if (!state.wanted) return stay(state);
  const next: ProtectionState = { ...state, wanted: false };
  switch (state.phase) {
    case 'alone':
    case 'syncing':
    case 'protected':
      return {
        next: { ...next, phase: 'alone' },
        effects: [{ kind: 'drop-shadow' }, { kind: 'pass-output' }],
      };
    default:
      return stay(next);
  }
}

/**
 * A shadow in sync stays until the state is on disk: should the VM die meanwhile, it is taken over as always. One that
 * is not in sync is of no use, and none may be started: its cuts would let the guest run.
 */
function save(state: ProtectionState): ProtectionStep {
  switch (state.phase) {
    case 'alone':
    case 'syncing':
      return {
        next: { ...state, phase: 'saving', shadowBehind: false },
        effects: [{ kind: 'drop-shadow' }, { kind: 'pass-output' }, { kind: 'save' }],
      };
    case 'protected':
      return { next: { ...state, phase: 'saving', shadowBehind: true }, effects: [{ kind: 'save' }] };
    default:
      return stay(state);
  }
}

/** What was held leaves: who goes on from the saved state knows of it. */
function leaveSaving(state: ProtectionState, { next }: { next: 'end' | 'power-off' }): ProtectionStep {
  if (state.phase !== 'saving') return stay(state);
  if (next === 'end') {
    const ended = stop(state, 'suspended');
    return { ...ended, effects: [{ kind: 'pass-output' }, ...ended.effects] };
  }
  return {
    next: { ...state, phase: 'alone', wanted: false, shadowBehind: false },
    effects: [{ kind: 'drop-shadow' }, { kind: 'pass-output' }],
  };
}

/** The epochs of the shadow ended with the attempt, so that there has to be another one. */
function goOnUnsaved(state: ProtectionState, policy: ProtectionPolicy): ProtectionStep {
  if (state.phase !== 'saving') return stay(state);
  return {
    next: { ...state, phase: 'alone', shadowBehind: false },
    effects: [
      { kind: 'drop-shadow' },
      { kind: 'pass-output' },
      ...startIfWanted(state, policy.shadowRetryMs),
    ],
  };
}

function loseShadow(state: ProtectionState, policy: ProtectionPolicy): ProtectionStep {
  switch (state.phase) {
    case 'alone':
    case 'syncing':
    case 'protected': {
      const afterMs = Math.min(policy.shadowRetryMaxMs, policy.shadowRetryMs * 2 ** state.shadowFailures);
      return {
        next: { ...state, phase: 'alone', shadowFailures: state.shadowFailures + 1 },
        effects: [{ kind: 'drop-shadow' }, { kind: 'pass-output' }, ...startIfWanted(state, afterMs)],
      };
    }
    case 'saving':
      return state.shadowBehind
        ? {
            next: { ...state, shadowBehind: false },
            effects: [{ kind: 'drop-shadow' }, { kind: 'pass-output' }],
          }
        : stay(state);
    // The shadow died while the primary was being fenced: there is nothing left to promote.
    case 'fencing':
      return state.after === 'promote'
        ? { next: { ...state, after: 'restart' }, effects: [{ kind: 'drop-shadow' }] }
        : stay(state);
    // A shadow that dies in the middle of its promotion shows as `promote-failed`.
    default:
      return stay(state);
  }
}

function losePrimary(
  state: ProtectionState,
  { reason, nowMs }: { reason: LossReason; nowMs: number },
  policy: ProtectionPolicy,
): ProtectionStep {
  switch (state.phase) {
    case 'alone':
    case 'syncing':
    case 'protected':
    case 'saving': {
      const inherits =
        reason === 'panicked' &&
        state.panicPromotedAtMs !== undefined &&
        nowMs - state.panicPromotedAtMs < policy.panicForgetMs;
      if (hasHeir(state) && !inherits) {
        const panicPromotedAtMs = reason === 'panicked' ? nowMs : state.panicPromotedAtMs;
        return {
          next: { ...state, phase: 'fencing', lost: reason, after: 'promote', panicPromotedAtMs },
          effects: [{ kind: 'fence' }],
        };
      }
      return restartAfterFence(state, { reason, nowMs }, policy);
    }
    // It died while it was being started or is being fenced already: whoever waits for it reports.
    default:
      return stay(state);
  }
}

function restartAfterFence(
  state: ProtectionState,
  { reason, nowMs }: { reason: LossReason; nowMs: number },
  policy: ProtectionPolicy,
): ProtectionStep {
  const recent = state.restartedAtMs.filter((atMs) => nowMs - atMs < policy.restartWindowMs);
  if (recent.length >= policy.restartsMax) return stop({ ...state, lost: reason }, 'failed');
  return {
    next: { ...state, phase: 'fencing', lost: reason, after: 'restart', restartedAtMs: [...recent, nowMs] },
    // The shadow goes afterwards: one that hangs while it starts must not keep the old primary alive.
    effects: [{ kind: 'fence' }],
  };
}

function leaveFence(state: ProtectionState): ProtectionStep {
  if (state.phase !== 'fencing') return stay(state);
  return state.after === 'promote'
    ? { next: { ...state, phase: 'promoting' }, effects: [{ kind: 'promote' }] }
    : restart(state);
}

/** A disk that has failed would be no other one for a guest that begins anew. */
function restart(state: ProtectionState): ProtectionStep {
  if (state.lost === 'disk-failed') return stop(state, 'failed');
  return {
    next: { ...state, phase: 'restarting', after: 'restart', restarts: state.restarts + 1 },
    effects: [{ kind: 'drop-shadow' }, { kind: 'restart' }],
  };
}
