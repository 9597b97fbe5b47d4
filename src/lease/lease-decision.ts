import { unreachable } from '../base/assert.ts';
import {
  forgetCopy,
  inSync,
  look,
  type Moment,
  pursue,
  send,
  stay,
  write,
  yieldTo,
} from './lease-pursuit.ts';
import { isSameRecord, type SwapOutcome } from './lease-record.ts';
import {
  ageLimitMs,
  type LeaseEffect,
  type LeaseEvent,
  type LeasePolicy,
  type LeaseState,
  type LeaseStep,
  mayGetShadow,
  type PendingSwap,
  rightEndsMs,
} from './lease-state.ts';

/**
 * Who may act for one VM, decided on one of its two hosts. Pure: a driver reports facts and carries the effects out in
 * their order. The argument for its safety is docs/decisions/0022-who-may-act.md; lease-model.test.ts searches all
 * interleavings of two hosts and a store for a counterexample.
 */
export function stepLease(state: LeaseState, event: LeaseEvent, policy: LeasePolicy): LeaseStep {
  const moment: Moment = { nowMs: event.nowMs, policy };
  // Before anything else: who was stopped for a while must not go on with a right that ran out meanwhile.
  const aged = withdraw(state, moment);
  const decided = decide(aged.next, event, moment);
  const settled = withdraw(decided.next, moment);
  return { next: settled.next, effects: [...aged.effects, ...decided.effects, ...settled.effects] };
}

/** The right ran out, or may have: the VM stands still until there is a new one. Its memory is not lost by that. */
function withdraw(state: LeaseState, { nowMs, policy }: Moment): LeaseStep {
  const endsMs = rightEndsMs(state, policy);
  if (state.body !== 'runs' || endsMs === undefined || nowMs < endsMs) return stay(state);
  const paused: LeaseState = { ...state, body: 'paused' };
  const effects: LeaseEffect[] = [{ kind: 'hold-output' }, { kind: 'suspend-vm' }];
  // A write that is under way has to be settled first: it decides what there is to claim.
  if (state.pending !== undefined) return { next: paused, effects };
  const reading = look({ ...paused, phase: 'claiming', joinEpoch: undefined });
  return { next: reading.next, effects: [...effects, ...reading.effects] };
}

function decide(state: LeaseState, event: LeaseEvent, moment: Moment): LeaseStep {
  switch (event.kind) {
    case 'tick':
      return tick(state, moment);
    case 'peer-lost':
      return losePeer(state);
    case 'peer-back':
      return stay({ ...state, isPeerLost: false });
    case 'peer-told':
      return hear(state, event);
    case 'peer-proven-dead':
      return lookIfIdle({ ...state, isPeerLost: true, provenDeadToken: event.token });
    case 'copy-begun':
      return beginCopy(state, event);
    case 'copy-lost':
      return state.phase === 'shadow' ? lookIfIdle(forgetCopy(state)) : stay(state);
    case 'shadow-ready':
      return close(state, event);
    case 'shadow-dismissed':
      return dismiss(state, event);
    case 'epoch-acknowledged':
      return join(state, event, moment);
    case 'shadow-heard':
      return stay(hearShadow(state, event));
    case 'read':
      return pursue({ ...state, isReading: false, isStoreAway: false }, event.stored, moment);
    case 'read-failed':
      return stay({ ...state, isReading: false, isStoreAway: true });
    case 'swap-answered':
      return settle(state, event, moment);
    case 'renewed':
      return renewed(state, event);
    case 'renewal-refused':
      return refuseRenewal(state, event, moment);
    case 'renewal-failed':
      return stay({ ...state, isStoreAway: true });
    case 'vm-stopped':
      return state.phase === 'stopping' ? stay({ ...state, phase: 'idle', body: 'none' }) : stay(state);
    case 'suspending':
      return sayOfState(state, 'kept');
    case 'state-gone':
      return sayOfState(state, 'gone');
    case 'vm-ended':
      return endVm(state, event);
    case 'start-wanted':
      return lookIfIdle({ ...state, mayStartCold: true, isStartWanted: true });
    default:
      return unreachable(event);
  }
}

/** Without a word in the record the shadow would take this for a failure, and start the VM again. */
function endVm(state: LeaseState, { keepsState }: { keepsState: boolean }): LeaseStep {
  if (!acts(state)) return stay(state);
  return look({
    ...state,
    phase: 'idle',
    body: 'none',
    copy: undefined,
    shadowHost: undefined,
    joinEpoch: undefined,
    heldSinceMs: undefined,
    isStartWanted: false,
    isEnding: true,
    savedState: keepsState ? 'as-before' : 'gone',
  });
}

function acts({ body, phase }: LeaseState): boolean {
  return (body === 'runs' || body === 'paused') && phase !== 'stopping';
}

/** Who has the state on disk goes on from there, and no shadow does: so it has to be out of sync first. */
function sayOfState(state: LeaseState, savedState: 'kept' | 'gone'): LeaseStep {
  if (!acts(state)) return stay(state);
  const wishing: LeaseState = { ...state, savedState };
  const left = savedState === 'kept' ? losePeer(wishing) : stay(wishing);
  const looks = look(left.next);
  return { next: looks.next, effects: [...left.effects, ...looks.effects] };
}

function tick(state: LeaseState, { nowMs, policy }: Moment): LeaseStep {
  if (state.pending?.isWaiting) return send(state, state.pending, { nowMs });
  const effects: LeaseEffect[] = [];
  let next = state;
  // With a write under way it is not known yet which token there is to renew.
  const renews =
    state.body === 'runs' &&
    (state.phase === 'alone' || state.phase === 'closing') &&
    state.pending === undefined;
  if (renews && nowMs - state.renewalSentMs >= policy.renewEveryMs) {
    next = { ...next, renewalSentMs: nowMs };
    effects.push({ kind: 'renew', token: state.token, sentAtMs: nowMs });
  }
  const looks = look(next);
  return { next: looks.next, effects: [...effects, ...looks.effects] };
}

function lookIfIdle(state: LeaseState): LeaseStep {
  return state.phase === 'idle' ? look(state) : stay(state);
}

/**
 * Neither side does anything that cannot be taken back before it has read the record: while the store is away a false
 * alarm then changes nothing, and a shadow goes on acknowledging.
 */
function losePeer(state: LeaseState): LeaseStep {
  const lost: LeaseState = { ...state, isPeerLost: true };
  // Nothing was sent to the store yet, so that "alone" still stands.
  if (state.phase === 'closing') {
    const alone: LeaseState = { ...lost, phase: 'alone', copy: undefined, joinEpoch: undefined };
    return stay(alone, { kind: 'release-everything' });
  }
  return look(lost);
}

/**
 * The record stays as it is until somebody can be asked: it lets nobody but this shadow take over, which has nothing to
 * take over with. So nothing has to wait meanwhile.
 */
function dismiss(state: LeaseState, { copy }: { copy: number }): LeaseStep {
  const isFollowed = state.phase === 'in-sync' || state.phase === 'joining' || state.phase === 'claiming';
  if (state.copy !== copy || state.body !== 'runs') return stay(state);
  if (state.phase === 'closing') return losePeer(state);
  if (!isFollowed) return stay(state);
  const looks = look({ ...state, isDismissed: true, isPeerLost: true });
  return { next: looks.next, effects: [{ kind: 'release-everything' }, ...looks.effects] };
}

function hear(state: LeaseState, { token, holder }: { token: number; holder: string }): LeaseStep {
  // A higher token of our own is a write of ours whose answer is not here yet.
  if (holder === state.self || token <= state.token) return stay(state);
  if (state.body === 'runs' || state.body === 'paused') return yieldTo(state, token);
  return stay({ ...state, token });
}

function beginCopy(state: LeaseState, { copy, token }: { copy: number; token: number }): LeaseStep {
  // A host that has an end to write down yet does that first.
  const isFree = (state.phase === 'idle' && !state.isEnding) || state.phase === 'shadow';
  if (!isFree || token < state.token) return stay(state);
  return stay({ ...state, phase: 'shadow', body: 'copy', copy, token, isPeerLost: false });
}

/** From here on everything waits for the shadow. What left before belongs to epochs up to this one. */
function close(
  state: LeaseState,
  { host, copy, epoch }: { host: string; copy: number; epoch: number },
): LeaseStep {
  if (!mayGetShadow(state)) return stay(state);
  return stay(
    {
      ...state,
      phase: 'closing',
      shadowHost: host,
      copy,
      joinEpoch: epoch,
      isPeerLost: false,
      isDismissed: false,
    },
    { kind: 'release-acknowledged' },
  );
}

/** Words overtake each other. What the keeper of one copy says is no word of another one's. */
function hearShadow(state: LeaseState, { copy, untilMs }: { copy: number; untilMs: number }): LeaseState {
  const { heard } = state;
  if (heard?.copy === copy && heard.untilMs >= untilMs) return state;
  return { ...state, heard: { copy, untilMs } };
}

function join(
  state: LeaseState,
  { copy, epoch }: { copy: number; epoch: number },
  { nowMs }: Moment,
): LeaseStep {
  const { phase, joinEpoch, shadowHost } = state;
  if (phase !== 'closing' || joinEpoch === undefined || shadowHost === undefined) return stay(state);
  if (copy !== state.copy || epoch < joinEpoch) return stay(state);
  const record = inSync(state, { host: shadowHost, copy });
  return write(
    { ...state, phase: 'joining', joinEpoch: undefined },
    { goal: 'join', record, expectedRevision: state.revision, onlyIfUnheld: false, nowMs },
  );
}

function settle(
  state: LeaseState,
  { expectedRevision, outcome }: { expectedRevision: number; outcome: SwapOutcome },
  moment: Moment,
): LeaseStep {
  const { pending } = state;
  if (pending === undefined || pending.expectedRevision !== expectedRevision) return stay(state);
  switch (outcome.kind) {
    case 'swapped':
      return succeed({ ...state, isStoreAway: false }, { pending, revision: outcome.revision }, moment);
    case 'lost': {
      const known: LeaseState = { ...state, isStoreAway: false };
      const { stored } = outcome;
      // An earlier try of ours was carried out, and its answer was lost.
      if (isSameRecord(stored.record, pending.record) && stored.revision > expectedRevision)
        return succeed(known, { pending, revision: stored.revision }, moment);
      return pursue({ ...known, pending: undefined }, stored, moment);
    }
    // It may be carried out at any time from now on, so it cannot be dropped: only an answer settles it.
    case 'unknown':
      return stay({
        ...state,
        isStoreAway: true,
        pending: { ...pending, isUncertain: true, isWaiting: true },
      });
    case 'unreachable':
      return unsent({ ...state, isStoreAway: true }, pending);
    default:
      return unreachable(outcome);
  }
}

/** This try never left. When no other one did, it is as if there had been none. */
function unsent(state: LeaseState, pending: PendingSwap): LeaseStep {
  if (pending.isUncertain) return stay({ ...state, pending: { ...pending, isWaiting: true } });
  if (state.body === 'copy') return stay({ ...state, phase: 'shadow', pending: undefined });
  // Only from "in sync" does a VM that runs claim.
  if (pending.goal === 'claim' && state.body === 'runs')
    return stay({ ...state, phase: 'in-sync', pending: undefined });
  if (pending.goal === 'claim' && state.body === 'none')
    return stay({ ...state, phase: 'idle', pending: undefined });
  if (pending.goal === 'join' || pending.goal === 'note')
    return stay({ ...state, pending: { ...pending, isWaiting: true } });
  return stay({ ...state, pending: undefined });
}

function succeed(
  state: LeaseState,
  { pending, revision }: { pending: PendingSwap; revision: number },
  moment: Moment,
): LeaseStep {
  const { token, suspended } = pending.record;
  const next: LeaseState = {
    ...state,
    pending: undefined,
    revision,
    token,
    ...said(state, pending),
    suspended,
  };
  // The VM ended while this was under way: there is nothing to act with, and the record has to say so.
  if (state.isEnding && pending.goal !== 'end') return look({ ...next, phase: 'idle' });
  switch (pending.goal) {
    case 'claim':
      return act(next, { sinceMs: pending.sentAtMs }, moment);
    // Alone it was before: where its right ran out meanwhile it has to ask again.
    case 'note':
      return act({ ...next, phase: 'claiming' }, { sinceMs: pending.sentAtMs }, moment);
    case 'join': {
      const joined: LeaseState = { ...next, phase: 'in-sync', heldSinceMs: undefined, body: 'runs' };
      const release = state.isDismissed ? 'release-everything' : 'release-acknowledged';
      const effects: LeaseEffect[] =
        state.body === 'paused' ? [{ kind: 'resume-vm' }, { kind: release }] : [];
      const looks = look(joined);
      return { next: looks.next, effects: [...effects, ...looks.effects] };
    }
    case 'disown':
      return lookIfIdle(next);
    case 'end':
      return lookIfIdle({ ...next, isEnding: false });
    default:
      return unreachable(pending.goal);
  }
}

/** What there was to say of a saved state may be another thing by now. */
function said({ savedState }: LeaseState, { record }: PendingSwap): Pick<LeaseState, 'savedState'> {
  const isSaid = savedState === 'kept' ? record.suspended === record.token : record.suspended === undefined;
  return { savedState: isSaid ? 'as-before' : savedState };
}

/** "Alone" is on record. The VM acts, unless the answer took so long that the right may be over again. */
function act(state: LeaseState, { sinceMs }: { sinceMs: number }, { nowMs, policy }: Moment): LeaseStep {
  if (nowMs - sinceMs >= ageLimitMs(policy)) {
    const paused: LeaseState = { ...state, body: state.body === 'runs' ? 'paused' : state.body };
    const looks = look(paused);
    const effects: LeaseEffect[] =
      state.body === 'runs' ? [{ kind: 'hold-output' }, { kind: 'suspend-vm' }] : [];
    return { next: looks.next, effects: [...effects, ...looks.effects] };
  }
  const next: LeaseState = {
    ...state,
    phase: 'alone',
    body: 'runs',
    copy: undefined,
    shadowHost: undefined,
    isDismissed: false,
    heldSinceMs: sinceMs,
    renewalSentMs: sinceMs,
    provenDeadToken: undefined,
    isStartWanted: false,
  };
  return stay(next, ...beginning(state), { kind: 'release-everything' });
}

function beginning({ body, copy, token }: LeaseState): LeaseEffect[] {
  switch (body) {
    case 'copy':
      return [{ kind: 'promote', token, copy: copy ?? 0 }];
    case 'none':
      return [{ kind: 'start-cold', token }];
    case 'paused':
      return [{ kind: 'resume-vm' }];
    case 'runs':
      return [];
    default:
      return unreachable(body);
  }
}

function renewed(state: LeaseState, event: { token: number; sentAtMs: number }): LeaseStep {
  const isHolder = state.phase === 'alone' || state.phase === 'closing';
  if (!isHolder || event.token !== state.token) return stay(state);
  const heldSinceMs = Math.max(state.heldSinceMs ?? event.sentAtMs, event.sentAtMs);
  return stay({ ...state, heldSinceMs, isStoreAway: false });
}

/** The store has let the right go already, so that another may have it by now. */
function refuseRenewal(state: LeaseState, event: { token: number }, { nowMs, policy }: Moment): LeaseStep {
  const isHolder = state.phase === 'alone' || state.phase === 'closing';
  if (!isHolder || event.token !== state.token) return stay(state);
  // What is under way has another token, and may be why. Until it is settled the right ends when it would have.
  if (state.pending !== undefined) return stay(state);
  return stay({ ...state, heldSinceMs: nowMs - ageLimitMs(policy) });
}
