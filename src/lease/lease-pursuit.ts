import { unreachable } from '../base/assert.ts';
import {
  coldStart,
  isCountedOn,
  isTakeable,
  type LeaseRecord,
  recordAlone,
  recordEnded,
  type StoredLease,
} from './lease-record.ts';
import type { LeaseEffect, LeasePolicy, LeaseState, LeaseStep, PendingSwap } from './lease-state.ts';

export interface Moment {
  readonly nowMs: number;
  readonly policy: LeasePolicy;
}

export function stay(next: LeaseState, ...effects: LeaseEffect[]): LeaseStep {
  return { next, effects };
}

/** Asks the store when the answer could change anything. */
export function look(state: LeaseState): LeaseStep {
  if (state.isReading || state.pending !== undefined) return stay(state);
  const wants =
    state.phase === 'idle' ||
    state.phase === 'claiming' ||
    (state.phase === 'alone' && state.savedState !== 'as-before') ||
    ((state.phase === 'shadow' || state.phase === 'in-sync') && isLonely(state));
  return wants ? stay({ ...state, isReading: true }, { kind: 'read' }) : stay(state);
}

/** Goes on without the other one, or would take over from it. Whoever has the state on disk is to have no shadow. */
function isLonely({ isPeerLost, savedState }: LeaseState): boolean {
  return isPeerLost || savedState === 'kept';
}

/** Another host acts. Nothing of this VM may go on here, and no write under way is of interest any more. */
export function yieldTo(state: LeaseState, token: number): LeaseStep {
  const next: LeaseState = {
    ...state,
    phase: 'stopping',
    token,
    copy: undefined,
    shadowHost: undefined,
    joinEpoch: undefined,
    heldSinceMs: undefined,
    suspended: undefined,
    savedState: 'as-before',
    pending: undefined,
  };
  return stay(next, { kind: 'hold-output' }, { kind: 'stop-vm' });
}

export function forgetCopy(state: LeaseState): LeaseState {
  return { ...state, phase: 'idle', body: 'none', copy: undefined };
}

export function inSync(state: LeaseState, { host, copy }: { host: string; copy: number }): LeaseRecord {
  return { token: state.token, holder: state.self, mode: 'in-sync', shadow: { host, copy, state: 'fresh' } };
}

export function write(
  state: LeaseState,
  swap: Pick<PendingSwap, 'goal' | 'record' | 'expectedRevision' | 'onlyIfUnheld'> & { nowMs: number },
): LeaseStep {
  const { nowMs, ...rest } = swap;
  const pending: PendingSwap = { ...rest, sentAtMs: nowMs, isUncertain: false, isWaiting: false };
  return send(state, pending, { nowMs });
}

export function send(state: LeaseState, pending: PendingSwap, { nowMs }: { nowMs: number }): LeaseStep {
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
      record: recordAlone(stored, state),
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

/** What follows from the record as the store has it. */
export function pursue(state: LeaseState, stored: StoredLease, moment: Moment): LeaseStep {
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
  // "Ended" is written when nothing runs any more: what stands here was left behind by then.
  if (record === undefined || record.holder !== state.self || record.mode === 'ended')
    return yieldTo(state, record?.token ?? state.token);
  const isDisowned = record.mode === 'in-sync' && record.shadow?.state === 'stale';
  switch (state.phase) {
    case 'claiming':
      return claim(state, stored, { nowMs });
    case 'in-sync':
      return isLonely(state) || isDisowned ? claim(state, stored, { nowMs }) : stay(state);
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
    case 'alone':
      return noteState(state, stored, { nowMs });
    default:
      return stay(state);
  }
}

/** Says of the state that is saved here what there is to say. Alone before and after, so that the hold goes on meanwhile. */
function noteState(state: LeaseState, stored: StoredLease, { nowMs }: { nowMs: number }): LeaseStep {
  // Its right ran out while it was being written.
  if (state.body === 'paused') return claim(state, stored, { nowMs });
  const isSaid = state.savedState === 'gone' && stored.record?.suspended === undefined;
  if (isSaid) return stay({ ...state, suspended: undefined, savedState: 'as-before' });
  if (state.savedState === 'as-before') return stay(state);
  return write(state, {
    goal: 'note',
    record: recordAlone(stored, state),
    expectedRevision: stored.revision,
    onlyIfUnheld: false,
    nowMs,
  });
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
  const isOver = record?.mode === 'ended' && record.token > state.token;
  if (isStale || isOver || (state.isPeerLost && coldStart(stored, state) !== 'never')) {
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
      record: recordEnded(record, { keepsState: state.savedState !== 'gone' }),
      expectedRevision: revision,
      onlyIfUnheld: false,
      nowMs,
    });
  // The shadow was faster, or it is done.
  if (state.isEnding) return stay({ ...idle, isEnding: false, savedState: 'as-before' });
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
