import { unreachable } from '../base/assert.ts';
import {
  coldStart,
  isCountedOn,
  isSameRecord,
  isTakeable,
  type LeaseRecord,
  recordAlone,
  recordEnded,
  type StoredLease,
  type SwapOutcome,
} from './lease-record.ts';
import {
  ageLimitMs,
  type LeaseEffect,
  type LeaseEvent,
  type LeasePolicy,
  type LeaseState,
  type LeaseStep,
  type PendingSwap,
  rightEndsMs,
} from './lease-state.ts';

interface Moment {
  readonly nowMs: number;
  readonly policy: LeasePolicy;
}

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

function stay(next: LeaseState, ...effects: LeaseEffect[]): LeaseStep {
  return { next, effects };
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
    case 'epoch-acknowledged':
      return join(state, event, moment);
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
    case 'vm-ended':
      return endVm(state);
    case 'start-wanted':
      return lookIfIdle({ ...state, mayStartCold: true, isStartWanted: true });
    default:
      return unreachable(event);
  }
}

/** Without a word in the record the shadow would take this for a failure, and start the VM again. */
function endVm(state: LeaseState): LeaseStep {
  const acts = state.body === 'runs' || state.body === 'paused';
  if (!acts || state.phase === 'stopping') return stay(state);
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
  });
}

function tick(state: LeaseState, { nowMs, policy }: Moment): LeaseStep {
  if (state.pending?.isWaiting) return send(state, state.pending, { nowMs });
  const effects: LeaseEffect[] = [];
  let next = state;
  const renews = state.body === 'runs' && (state.phase === 'alone' || state.phase === 'closing');
  if (renews && nowMs - state.renewalSentMs >= policy.renewEveryMs) {
    next = { ...next, renewalSentMs: nowMs };
    effects.push({ kind: 'renew', token: state.token, sentAtMs: nowMs });
  }
  const looks = look(next);
  return { next: looks.next, effects: [...effects, ...looks.effects] };
}

/** Asks the store when the answer could change anything. */
function look(state: LeaseState): LeaseStep {
  if (state.isReading || state.pending !== undefined) return stay(state);
  const wants =
    state.phase === 'idle' ||
    state.phase === 'claiming' ||
    ((state.phase === 'shadow' || state.phase === 'in-sync') && state.isPeerLost);
  return wants ? stay({ ...state, isReading: true }, { kind: 'read' }) : stay(state);
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

function hear(state: LeaseState, { token, holder }: { token: number; holder: string }): LeaseStep {
  // A higher token of our own is a write of ours whose answer is not here yet.
  if (holder === state.self || token <= state.token) return stay(state);
  if (state.body === 'runs' || state.body === 'paused') return yieldTo(state, token);
  return stay({ ...state, token });
}

/** Another host acts. Nothing of this VM may go on here, and no write under way is of interest any more. */
function yieldTo(state: LeaseState, token: number): LeaseStep {
  const next: LeaseState = {
    ...state,
    phase: 'stopping',
    token,
    copy: undefined,
    shadowHost: undefined,
    joinEpoch: undefined,
    heldSinceMs: undefined,
    pending: undefined,
  };
  return stay(next, { kind: 'hold-output' }, { kind: 'stop-vm' });
}

function beginCopy(state: LeaseState, { copy, token }: { copy: number; token: number }): LeaseStep {
  const isFree = state.phase === 'idle' || state.phase === 'shadow';
  if (!isFree || token < state.token) return stay(state);
  return stay({ ...state, phase: 'shadow', body: 'copy', copy, token, isPeerLost: false });
}

function forgetCopy(state: LeaseState): LeaseState {
  return { ...state, phase: 'idle', body: 'none', copy: undefined };
}

/** From here on everything waits for the shadow. What left before belongs to epochs up to this one. */
function close(
  state: LeaseState,
  { host, copy, epoch }: { host: string; copy: number; epoch: number },
): LeaseStep {
  if (state.phase !== 'alone' || state.body !== 'runs') return stay(state);
  return stay(
    { ...state, phase: 'closing', shadowHost: host, copy, joinEpoch: epoch, isPeerLost: false },
    { kind: 'release-acknowledged' },
  );
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

function inSync(state: LeaseState, { host, copy }: { host: string; copy: number }): LeaseRecord {
  return { token: state.token, holder: state.self, mode: 'in-sync', shadow: { host, copy, state: 'fresh' } };
}

function write(
  state: LeaseState,
  swap: Pick<PendingSwap, 'goal' | 'record' | 'expectedRevision' | 'onlyIfUnheld'> & { nowMs: number },
): LeaseStep {
  const { nowMs, ...rest } = swap;
  const pending: PendingSwap = { ...rest, sentAtMs: nowMs, isUncertain: false, isWaiting: false };
  return send(state, pending, { nowMs });
}

function send(state: LeaseState, pending: PendingSwap, { nowMs }: { nowMs: number }): LeaseStep {
  const sentAtMs = pending.isUncertain ? pending.sentAtMs : nowMs;
  const { expectedRevision, record, onlyIfUnheld } = pending;
  return stay(
    { ...state, pending: { ...pending, sentAtMs, isWaiting: false } },
    { kind: 'swap', expectedRevision, record, onlyIfUnheld },
  );
}

function claim(state: LeaseState, stored: StoredLease, options: ClaimOptions): LeaseStep {
  return write(
    { ...state, phase: 'claiming' },
    {
      goal: 'claim',
      record: recordAlone(stored, state.self),
      expectedRevision: stored.revision,
      onlyIfUnheld: options.onlyIfUnheld ?? false,
      nowMs: options.nowMs,
    },
  );
}

interface ClaimOptions {
  readonly nowMs: number;
  readonly onlyIfUnheld?: boolean;
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
  if (pending.goal === 'join') return stay({ ...state, pending: { ...pending, isWaiting: true } });
  return stay({ ...state, pending: undefined });
}

function succeed(
  state: LeaseState,
  { pending, revision }: { pending: PendingSwap; revision: number },
  moment: Moment,
): LeaseStep {
  const next: LeaseState = { ...state, pending: undefined, revision, token: pending.record.token };
  // The VM ended while this was under way: there is nothing to act with, and the record has to say so.
  if (state.isEnding && pending.goal !== 'end') return look({ ...next, phase: 'idle' });
  switch (pending.goal) {
    case 'claim':
      return act(next, { sinceMs: pending.sentAtMs }, moment);
    case 'join': {
      const joined: LeaseState = { ...next, phase: 'in-sync', heldSinceMs: undefined, body: 'runs' };
      const effects: LeaseEffect[] =
        state.body === 'paused' ? [{ kind: 'resume-vm' }, { kind: 'release-acknowledged' }] : [];
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
  return stay({ ...state, heldSinceMs: nowMs - ageLimitMs(policy) });
}

/** What follows from the record as the store has it. */
function pursue(state: LeaseState, stored: StoredLease, moment: Moment): LeaseStep {
  // The record may be older than what is known here: it was read before a write of ours.
  if (state.pending !== undefined || stored.revision < state.revision) return stay(state);
  const known: LeaseState = { ...state, revision: stored.revision };
  switch (state.body) {
    case 'runs':
    case 'paused':
      return state.phase === 'stopping' ? stay(known) : pursueAsPrimary(known, stored, moment);
    case 'copy':
      return pursueAsShadow(known, stored, moment);
    case 'none':
      return pursueAsIdle(known, stored, moment);
    default:
      return unreachable(state.body);
  }
}

function pursueAsPrimary(state: LeaseState, stored: StoredLease, { nowMs }: Moment): LeaseStep {
  const { record } = stored;
  if (record === undefined || record.holder !== state.self)
    return yieldTo(state, record?.token ?? state.token);
  const isDisowned = record.mode === 'in-sync' && record.shadow?.state === 'stale';
  switch (state.phase) {
    case 'claiming':
      return claim(state, stored, { nowMs });
    case 'in-sync':
      return state.isPeerLost || isDisowned ? claim(state, stored, { nowMs }) : stay(state);
    case 'joining': {
      const { shadowHost: host, copy } = state;
      if (isDisowned || state.body === 'paused' || host === undefined || copy === undefined)
        return claim(state, stored, { nowMs });
      const record = inSync(state, { host, copy });
      return write(state, {
        goal: 'join',
        record,
        expectedRevision: stored.revision,
        onlyIfUnheld: false,
        nowMs,
      });
    }
    default:
      return stay(state);
  }
}

function pursueAsShadow(state: LeaseState, stored: StoredLease, moment: Moment): LeaseStep {
  const { record } = stored;
  const { self, copy } = state;
  // "Alone" was written when this copy was to be promoted, but took too long: nobody has acted since.
  const isOwn = record?.holder === self && record.token === state.token;
  if (isOwn) return claim(state, stored, { nowMs: moment.nowMs });
  const following: LeaseState = { ...state, phase: 'shadow' };
  if (isTakeable(record, { self, copy: copy ?? -1 }))
    return state.isPeerLost ? claim(state, stored, { nowMs: moment.nowMs }) : stay(following);
  const isStale = record?.shadow?.host === self && record.shadow.copy === copy;
  if (isStale || (state.isPeerLost && coldStart(stored, state) !== 'never')) {
    const dropped = pursueAsIdle(forgetCopy(state), stored, moment);
    return { next: dropped.next, effects: [{ kind: 'mark-stale' }, ...dropped.effects] };
  }
  return stay(following);
}

function pursueAsIdle(state: LeaseState, stored: StoredLease, { nowMs }: Moment): LeaseStep {
  const { record, revision } = stored;
  const idle: LeaseState = { ...state, phase: 'idle', token: Math.max(state.token, record?.token ?? 0) };
  if (state.isEnding && record?.holder === state.self && record.mode !== 'ended')
    return write(idle, {
      goal: 'end',
      record: recordEnded(record),
      expectedRevision: revision,
      onlyIfUnheld: false,
      nowMs,
    });
  // The shadow was faster, or it is done.
  if (state.isEnding) return stay({ ...idle, isEnding: false });
  const how = state.mayStartCold ? coldStart(stored, state) : 'never';
  if (how !== 'never') return claim(idle, stored, { nowMs, onlyIfUnheld: how === 'if-unheld' });
  if (!isCountedOn(record, state.self) || record?.shadow === undefined) return stay(idle);
  // Others rely on a copy that is not here any more. Its primary learns it from the record, should it still run.
  const disowned: LeaseRecord = { ...record, shadow: { ...record.shadow, state: 'stale' } };
  return write(idle, {
    goal: 'disown',
    record: disowned,
    expectedRevision: revision,
    onlyIfUnheld: false,
    nowMs,
  });
}
