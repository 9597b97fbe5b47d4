import type { LeaseRecord, SavedWord, StoredLease, SwapOutcome } from './lease-record.ts';

/**
 * One host's view of who may act for one VM.
 *
 *   idle ─── claiming ─► alone ─► closing ─► joining ─► in-sync      the primary
 *    │          ▲   ▲      ▲ └── pause ──┐                │
 *    └─ shadow ─┘   └──────┼─────────────┴────────────────┘
 *
 * `claiming` is the way to the right to act alone, from wherever: a shadow that takes over, a primary that leaves sync,
 * one whose right ran out, a host that boots the VM anew. What becomes of the VM is told by `body`.
 */
export type LeasePhase =
  | 'idle'
  /** Holds a copy and acknowledges epochs. */
  | 'shadow'
  /** Has sent "alone" to the store, or is about to. */
  | 'claiming'
  | 'alone'
  /** Alone still, but releases only what is acknowledged: the shadow is about to be in sync. */
  | 'closing'
  /** The shadow holds all that was ever released; "in sync" is on its way to the store. */
  | 'joining'
  | 'in-sync'
  /** Another host acts: the VM here is being ended. */
  | 'stopping';

/** What this host has of the VM. */
export type LeaseBody = 'none' | 'copy' | 'runs' | 'paused';

/** A write that may have reached the store. There is one at a time, and it is repeated until its outcome is known. */
export interface PendingSwap {
  readonly goal: 'claim' | 'join' | 'note' | 'disown' | 'end';
  readonly expectedRevision: number;
  readonly record: LeaseRecord;
  readonly onlyIfUnheld: boolean;
  /** When the first try that may have been carried out was sent: the right to act is counted from there. */
  readonly sentAtMs: number;
  /** Some try may have been carried out, or may yet be. */
  readonly isUncertain: boolean;
  /** No try is under way; the next tick sends one. */
  readonly isWaiting: boolean;
}

export interface LeaseState {
  readonly self: string;
  readonly phase: LeasePhase;
  readonly body: LeaseBody;
  /** Under which this host acts; else the highest it has heard of. */
  readonly token: number;
  /** Of the record, as far as known. */
  readonly revision: number;
  /** As shadow: the copy held here. As primary: the copy that its shadow holds. */
  readonly copy: number | undefined;
  readonly shadowHost: string | undefined;
  /**
   * As primary: the keeper of this copy has said that it heard this host, and takes nothing over before this time; later it
   * may have. Undefined where it says no such thing: then it notices a loss by the end of its connection alone.
   */
  readonly heard: { readonly copy: number; readonly untilMs: number } | undefined;
  /** In `closing`: the shadow holds everything once it acknowledges this epoch. */
  readonly joinEpoch: number | undefined;
  readonly isPeerLost: boolean;
  /** The shadow on record has let its copy go, and said so: nobody can go on from it. */
  readonly isDismissed: boolean;
  readonly isStoreAway: boolean;
  readonly isReading: boolean;
  readonly mayStartCold: boolean;
  /** Somebody has asked for the VM since it ended. */
  readonly isStartWanted: boolean;
  /** The VM here has ended, and the record does not say so yet. */
  readonly isEnding: boolean;
  /** As primary: the token on record of the state that lies here. */
  readonly suspended: number | undefined;
  /** What the record is to say of it yet. */
  readonly savedState: SavedWord;
  /** The other host was proven dead, and with it whatever acted under this token. */
  readonly provenDeadToken: number | undefined;
  /** While alone: from when the right is counted, on CLOCK_BOOTTIME. */
  readonly heldSinceMs: number | undefined;
  readonly renewalSentMs: number;
  readonly pending: PendingSwap | undefined;
}

export interface LeasePolicy {
  /** How long the store keeps the right of a holder that is alone and does not renew it. */
  readonly holdTtlMs: number;
  /** Bound on how much slower than the store's a host's clock may run, as a share: 0.01 is one in a hundred. */
  readonly clockRateBound: number;
  /** What a host may take from looking at its clock to sending, and to stop a VM. */
  readonly slackMs: number;
  readonly renewEveryMs: number;
}

const CLOCK_RATE_BOUND = 0.01;
const SLACK_SHARE = 0.1;
const RENEWALS_PER_HOLD = 5;

/** For a hold of so long: a holder misses four renewals before it stops. */
export function leasePolicy({ holdTtlMs }: { holdTtlMs: number }): LeasePolicy {
  return {
    holdTtlMs,
    clockRateBound: CLOCK_RATE_BOUND,
    slackMs: holdTtlMs * SLACK_SHARE,
    renewEveryMs: holdTtlMs / RENEWALS_PER_HOLD,
  };
}

/** `nowMs` is CLOCK_BOOTTIME: it goes on while the host sleeps, and is never set. */
export type LeaseEvent = { readonly nowMs: number } & LeaseFact;

export type LeaseFact =
  | { readonly kind: 'tick' }
  /** Heartbeats of the other host stopped, or its acknowledgements did. May be wrong. */
  | { readonly kind: 'peer-lost' }
  | { readonly kind: 'peer-back' }
  /** The other host says who acts. */
  | { readonly kind: 'peer-told'; readonly token: number; readonly holder: string }
  /** Somebody saw to it that the other host is off. */
  | { readonly kind: 'peer-proven-dead'; readonly token: number }
  /** A primary begins to copy the VM to this host. */
  | { readonly kind: 'copy-begun'; readonly copy: number; readonly token: number }
  | { readonly kind: 'copy-lost' }
  /** The copy on another host is whole; from `epoch`, which is open now, on it follows by epochs. */
  | { readonly kind: 'shadow-ready'; readonly host: string; readonly copy: number; readonly epoch: number }
  /** The shadow has promised not to act, and let this copy go. */
  | { readonly kind: 'shadow-dismissed'; readonly copy: number }
  | { readonly kind: 'epoch-acknowledged'; readonly copy: number; readonly epoch: number }
  /** Its keeper has heard this host, and takes nothing over before this time. */
  | { readonly kind: 'shadow-heard'; readonly copy: number; readonly untilMs: number }
  | { readonly kind: 'read'; readonly stored: StoredLease }
  | { readonly kind: 'read-failed' }
  | { readonly kind: 'swap-answered'; readonly expectedRevision: number; readonly outcome: SwapOutcome }
  /** `sentAtMs` is that of the effect, never the time of the answer. */
  | { readonly kind: 'renewed'; readonly token: number; readonly sentAtMs: number }
  | { readonly kind: 'renewal-refused'; readonly token: number }
  | { readonly kind: 'renewal-failed' }
  /** After `stop-vm`: it is gone. */
  | { readonly kind: 'vm-stopped' }
  /** The VM stands still, and all of its state but the header is on disk here: nobody else may go on with it. */
  | { readonly kind: 'suspending' }
  /** There is none any more, or never was a whole one: it is used, or given up. */
  | { readonly kind: 'state-gone' }
  /** The VM that acted here ended, by itself or at somebody's wish, and all of its output has left, or is in its state. */
  | { readonly kind: 'vm-ended'; readonly keepsState: boolean }
  /** Somebody wants the VM started on this host, also when it had ended. */
  | { readonly kind: 'start-wanted' };

export type LeaseEffect =
  /** Read the record as it is now: linearizable. Answered by `read` or `read-failed`. */
  | { readonly kind: 'read' }
  /** Answered by `swap-answered`, within a deadline. A record of mode `alone` begins a new hold. */
  | {
      readonly kind: 'swap';
      readonly expectedRevision: number;
      readonly record: LeaseRecord;
      readonly onlyIfUnheld: boolean;
    }
  | { readonly kind: 'renew'; readonly token: number; readonly sentAtMs: number }
  | { readonly kind: 'release-acknowledged' }
  | { readonly kind: 'release-everything' }
  | { readonly kind: 'hold-output' }
  | { readonly kind: 'suspend-vm' }
  | { readonly kind: 'resume-vm' }
  | { readonly kind: 'promote'; readonly token: number; readonly copy: number }
  | { readonly kind: 'start-cold'; readonly token: number }
  | { readonly kind: 'stop-vm' }
  /** The copy here may serve as the base of the next one, and for nothing else. */
  | { readonly kind: 'mark-stale' };

export interface LeaseStep {
  readonly next: LeaseState;
  readonly effects: readonly LeaseEffect[];
}

/** A host that was just started: nothing of the VM runs here, and nothing of it is known. */
export function initialLease(self: string, { mayStartCold }: { mayStartCold: boolean }): LeaseState {
  return {
    self,
    phase: 'idle',
    body: 'none',
    token: 0,
    revision: 0,
    copy: undefined,
    shadowHost: undefined,
    heard: undefined,
    joinEpoch: undefined,
    isPeerLost: false,
    isDismissed: false,
    isStoreAway: false,
    isReading: false,
    mayStartCold,
    isStartWanted: false,
    isEnding: false,
    suspended: undefined,
    savedState: 'as-before',
    provenDeadToken: undefined,
    heldSinceMs: undefined,
    renewalSentMs: 0,
    pending: undefined,
  };
}

/**
 * A keeper that follows one that was killed: the VM stands still and can go on, if it is still this host's on record. What
 * the one before had sent to the store may still be carried out.
 */
export function heirLease(self: string, options: { mayStartCold: boolean }): LeaseState {
  return { ...initialLease(self, options), phase: 'claiming', body: 'paused' };
}

/** Whether a shadow may be brought in sync: not while it is being written that there is none. */
export function mayGetShadow({ phase, body, pending, savedState }: LeaseState): boolean {
  return phase === 'alone' && body === 'runs' && pending === undefined && savedState !== 'kept';
}

/** How old a right may get before its holder stops: shorter than the store waits, however slow the holder's clock. */
export function ageLimitMs({ holdTtlMs, clockRateBound, slackMs }: LeasePolicy): number {
  return holdTtlMs * (1 - clockRateBound) - slackMs;
}

/**
 * For how long a shadow takes nothing over after something was sent that it heard, when it lets this host be silent for
 * `silenceMinMs` at least: shorter than that, however slow the clock here and however fast the one there.
 */
export function heardForMs(
  silenceMinMs: number,
  { clockRateBound }: Pick<LeasePolicy, 'clockRateBound'>,
): number {
  return ((silenceMinMs * (1 - clockRateBound)) / (1 + clockRateBound)) * (1 - SLACK_SHARE);
}

/**
 * Whether the shadow may have taken over without this host's having heard of it: this host stood still, or the shadow cannot
 * be heard. What it acknowledged it has, and lets out itself.
 */
function isInDoubt({ heard, copy }: LeaseState, { nowMs }: { nowMs: number }): boolean {
  return heard !== undefined && heard.copy === copy && nowMs >= heard.untilMs;
}

/** When the right of this host ends unless it is renewed; undefined where it does not end by itself. */
export function rightEndsMs(state: LeaseState, policy: LeasePolicy): number | undefined {
  switch (state.phase) {
    case 'alone':
    case 'closing':
    case 'joining':
      return (state.heldSinceMs ?? 0) + ageLimitMs(policy);
    // "Alone" may be on record already without our knowing, and run out there.
    case 'claiming':
      return state.pending === undefined ? undefined : state.pending.sentAtMs + ageLimitMs(policy);
    default:
      return undefined;
  }
}

/**
 * What the VM here may release at this moment. To be asked for every release: a process that was stopped for a while
 * asks with the new time before it learns anything else. `isConfirmed`: whatever the shadow was heard to say, it is known
 * from the record that it had not taken over just before; if it has since, acknowledged output leaves twice.
 */
export function outputRight(
  state: LeaseState,
  { nowMs, policy, isConfirmed = false }: { nowMs: number; policy: LeasePolicy; isConfirmed?: boolean },
): 'nothing' | 'acknowledged' | 'everything' {
  if (state.body !== 'runs') return 'nothing';
  const endsMs = rightEndsMs(state, policy);
  if (endsMs !== undefined && nowMs >= endsMs) return 'nothing';
  switch (state.phase) {
    case 'alone':
      return 'everything';
    case 'closing':
      return 'acknowledged';
    case 'joining':
    case 'in-sync':
    case 'claiming':
      if (state.isDismissed) return 'everything';
      return isInDoubt(state, { nowMs }) && !isConfirmed ? 'nothing' : 'acknowledged';
    default:
      return 'nothing';
  }
}

/**
 * Whether epochs of this copy may be acknowledged. Not any more from the moment on that the take-over was sent: what is
 * acknowledged after that is released by the primary and missing in what is promoted.
 */
export function mayAcknowledge(state: LeaseState, { copy, token }: { copy: number; token: number }): boolean {
  return state.phase === 'shadow' && state.copy === copy && token >= state.token;
}
