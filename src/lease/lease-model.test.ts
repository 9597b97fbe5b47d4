import { describe, expect, it } from 'vitest';
import { soaking } from '../../test/kit/soak.ts';
import { type Budget, NOW_MS, RULES, type Rules } from './lease-model.ts';
import { calmDown } from './lease-model-calm.ts';
import { type Start, worldOf } from './lease-model-start.ts';
import type { LeaseEvent, LeasePolicy, LeaseState, LeaseStep } from './lease-state.ts';
import { type Found, search } from './state-search.ts';

// The short form is to fit into every run of the tests; the long one goes as deep as memory lets it.
const STATES_MAX = soaking ? 600_000 : 15_000;
const CONTROL_STATES_MAX = 300_000;
/** In every n-th world that is found, everything calms down, and somebody has to act in the end. */
const CALM_EVERY = soaking ? 10 : 25;
const MINUTES_MS = 60_000;

type Case = readonly [string, Start, Partial<Budget>];

const CASES: readonly Case[] = [
  [
    'answers are lost and alarms false',
    'A and B are in sync',
    { ticks: 3, alarms: 2, unanswered: 1, cuts: 1 },
  ],
  ['hosts crash and come back', 'A and B are in sync', { ticks: 4, alarms: 2, crashes: 2, cuts: 1 }],
  [
    'hosts are stopped and go on',
    'A and B are in sync',
    { ticks: 4, alarms: 1, pauses: 2, cuts: 1, unanswered: 1 },
  ],
  [
    'the store is away',
    'A and B are in sync',
    { ticks: 3, alarms: 2, unreachable: 3, unanswered: 1, duplicates: 1 },
  ],
  [
    'somebody proves that a host is off',
    'A and B are in sync',
    { ticks: 5, crashes: 2, proofs: 1, alarms: 1 },
  ],
  [
    'a shadow gets in sync, and out of it',
    'A is alone',
    { ticks: 3, alarms: 2, copies: 2, cuts: 2, unanswered: 1 },
  ],
  [
    'hosts crash while a shadow gets in sync',
    'A is alone',
    { ticks: 4, alarms: 1, copies: 1, cuts: 2, crashes: 1 },
  ],
  [
    'the right of a holder that is alone runs out',
    'A is alone',
    { ticks: 7, pauses: 1, crashes: 1, unanswered: 1 },
  ],
  ['the VM ends', 'A and B are in sync', { ticks: 4, alarms: 2, unanswered: 1, ends: 2, crashes: 1 }],
  [
    'the VM ends while a shadow gets in sync',
    'A is alone',
    { ticks: 4, alarms: 1, copies: 1, cuts: 1, unanswered: 1, ends: 2 },
  ],
  [
    'a shadow lets its copy go',
    'A and B are in sync',
    { ticks: 4, alarms: 1, dismissals: 1, cuts: 1, unanswered: 1, unreachable: 1, crashes: 1 },
  ],
  [
    'a shadow lets its copy go while it gets in sync',
    'A is alone',
    { ticks: 3, alarms: 1, dismissals: 1, copies: 2, cuts: 2, unanswered: 1 },
  ],
  [
    'a keeper is followed by another one on its host',
    'A and B are in sync',
    { ticks: 4, alarms: 2, heirs: 2, cuts: 1, unanswered: 1 },
  ],
  [
    'a keeper that is alone is followed by another one on its host',
    'A is alone',
    { ticks: 5, heirs: 1, pauses: 1, copies: 1, cuts: 1, unanswered: 1, ends: 1 },
  ],
  [
    'a VM is suspended, and wanted again on either host',
    'A is alone',
    { ticks: 4, suspensions: 1, ends: 2, crashes: 1, unanswered: 1 },
  ],
  [
    'a VM with a shadow is suspended',
    'A and B are in sync',
    { ticks: 3, alarms: 2, suspensions: 1, ends: 1, cuts: 1, unanswered: 1, crashes: 1 },
  ],
  [
    'a VM is suspended twice, and begun anew where its state is not',
    'A is alone',
    { ticks: 4, suspensions: 2, ends: 3, crashes: 2, proofs: 1 },
  ],
  [
    'a VM that gets a shadow is suspended, and its keeper is followed by another one',
    'A is alone',
    { ticks: 4, suspensions: 1, ends: 1, copies: 1, cuts: 1, heirs: 1, pauses: 1 },
  ],
  [
    'a host is stopped, and acknowledgements are late, but its shadow hears it',
    'A and B are in sync, and B hears A',
    { ticks: 4, alarms: 1, pauses: 1, cuts: 2, heartbeats: 2 },
  ],
  [
    'hosts that hear each other lose each other, and get no answers',
    'A and B are in sync, and B hears A',
    { ticks: 4, alarms: 2, cuts: 1, heartbeats: 1, unanswered: 1, unreachable: 1 },
  ],
  [
    'two hosts start the same VM',
    'nothing is there',
    { ticks: 4, unanswered: 1, crashes: 1, copies: 1, cuts: 1 },
  ],
];

/** Local time for one tick of the store: both keep up, or one is as slow as the bound allows, the other fast. */
const RATES: readonly (readonly [number, number])[] = [
  [2, 2],
  [1, 3],
];

function explore([, start, budget]: Case, rules: Rules): Found {
  return search(worldOf(start, budget), {
    rules,
    statesMax: STATES_MAX,
    visit: (world, index) => {
      if (index % CALM_EVERY !== 0) return;
      for (const survivors of ['both', 'A', 'B'] as const) calmDown(world, { survivors, rules });
    },
  });
}

describe('of two hosts and a store, in every order of events that was searched', () => {
  it.each(CASES)(
    'never two act, no output is forgotten, and somebody acts in the end, when %s',
    (...example) => {
      for (const rates of RATES) {
        const found = explore(example, { ...RULES, rates });
        expect(found.trace?.join('\n'), `with clocks that run like ${rates}`).toBeUndefined();
        expect(found.isComplete || found.statesCount > STATES_MAX).toBe(true);
      }
    },
    soaking ? 60 * MINUTES_MS : undefined,
  );
});

type Step = Rules['step'];

/** The rules with events that are not what they were: as if a driver, or a decision, left a rule out. */
function hearing(change: (event: LeaseEvent, state: LeaseState) => LeaseEvent): Step {
  return (state, event, policy) => RULES.step(state, change(event, state), policy);
}

/** A shadow does not wait for the answer to its write. */
function promoteAtOnce(state: LeaseState, event: LeaseEvent, policy: LeasePolicy): LeaseStep {
  const step = RULES.step(state, event, policy);
  const { pending, body } = step.next;
  if (body !== 'copy' || pending?.goal !== 'claim') return step;
  const { expectedRevision } = pending;
  const outcome = { kind: 'swapped', revision: expectedRevision + 1 } as const;
  const swapped = { kind: 'swap-answered', nowMs: event.nowMs, expectedRevision, outcome } as const;
  const then = RULES.step(step.next, swapped, policy);
  return { next: then.next, effects: [...step.effects, ...then.effects] };
}

/** A shadow believes that it is fresh whatever the record says. */
function believeFresh(event: LeaseEvent, { self, copy }: LeaseState): LeaseEvent {
  if (event.kind !== 'read' || copy === undefined || event.stored.record === undefined) return event;
  const { record } = event.stored;
  if (record.holder === self) return event;
  const believed = { ...record, mode: 'in-sync', shadow: { host: self, copy, state: 'fresh' } } as const;
  return { ...event, stored: { ...event.stored, record: believed } };
}

/** A host that is on record as fresh shadow acts on that, though it lost its memory. */
function trustRecord(state: LeaseState, event: LeaseEvent, policy: LeasePolicy): LeaseStep {
  const shadow = event.kind === 'read' ? event.stored.record?.shadow : undefined;
  if (state.phase !== 'idle' || shadow?.host !== state.self || shadow.state !== 'fresh')
    return RULES.step(state, event, policy);
  const believed = { ...state, phase: 'shadow', body: 'copy', copy: shadow.copy, isPeerLost: true } as const;
  return RULES.step(believed, event, policy);
}

/** Renewals go nowhere, and count. */
function believeRenewed(state: LeaseState, event: LeaseEvent, policy: LeasePolicy): LeaseStep {
  const { next, effects } = RULES.step(state, event, policy);
  const renews = effects.some(({ kind }) => kind === 'renew');
  const heldSinceMs = renews ? event.nowMs : next.heldSinceMs;
  return { next: { ...next, heldSinceMs }, effects: effects.filter(({ kind }) => kind !== 'renew') };
}

const CONTROLS: readonly (readonly [string, Start, Partial<Budget>, Partial<Rules>])[] = [
  [
    'a shadow promotes before its write is known to have succeeded',
    'A and B are in sync',
    { ticks: 1, alarms: 2, cuts: 1 },
    { step: promoteAtOnce },
  ],
  [
    'a primary releases before "alone" is written',
    'A and B are in sync',
    { ticks: 1, alarms: 2, cuts: 1 },
    {
      outputRight: (state, moment) =>
        state.phase === 'claiming' && state.body === 'runs' ? 'everything' : RULES.outputRight(state, moment),
      // Its gate is open as well.
      step: (state, event, policy) => {
        const { next, effects } = RULES.step(state, event, policy);
        const opens = next.phase === 'claiming' && next.body === 'runs' && state.phase === 'in-sync';
        return { next, effects: opens ? [...effects, { kind: 'release-everything' }] : effects };
      },
    },
  ],
  [
    'a stale shadow may promote',
    'A and B are in sync',
    { ticks: 1, alarms: 2, cuts: 1 },
    { step: hearing(believeFresh) },
  ],
  [
    'a shadow that lost its copy is believed to have it',
    'A and B are in sync',
    { ticks: 1, alarms: 1, crashes: 1 },
    { step: trustRecord },
  ],
  [
    'a VM that has ended is taken for one whose holder is gone',
    'A is alone',
    { ticks: 1, ends: 1 },
    {
      step: hearing((event) => {
        if (event.kind !== 'read' || event.stored.record?.mode !== 'ended') return event;
        const record = { ...event.stored.record, mode: 'alone' } as const;
        return { ...event, stored: { ...event.stored, record } };
      }),
    },
  ],
  [
    'the age of the right is counted from the answer instead of the sending',
    'A is alone',
    { ticks: 7, crashes: 0 },
    {
      step: hearing((event) => (event.kind === 'renewed' ? { ...event, sentAtMs: NOW_MS } : event)),
      rates: [1, 2],
    },
  ],
  [
    'nobody counts the age of the right',
    'A is alone',
    { ticks: 4 },
    {
      step: (state, event, policy) => RULES.step(state, event, { ...policy, clockRateBound: -10 }),
      outputRight: (state, { nowMs, policy }) =>
        RULES.outputRight(state, { nowMs, policy: { ...policy, clockRateBound: -10 } }),
    },
  ],
  [
    'clocks are believed to run alike',
    'A is alone',
    { ticks: 7 },
    {
      step: (state, event, policy) => RULES.step(state, event, { ...policy, clockRateBound: 0 }),
      outputRight: (state, { nowMs, policy }) =>
        RULES.outputRight(state, { nowMs, policy: { ...policy, clockRateBound: 0 } }),
      rates: [1, 2],
    },
  ],
  [
    'a shadow acknowledges while it takes over',
    'A and B are in sync',
    { ticks: 1, alarms: 1, cuts: 1 },
    { mayAcknowledge: (state, { copy }) => state.body === 'copy' && state.copy === copy },
  ],
  [
    'a primary releases whatever was acknowledged, whenever it hears of that',
    'A and B are in sync, and B hears A',
    { ticks: 3, alarms: 1, cuts: 1 },
    {
      outputRight: ({ heard: _, ...state }, moment) =>
        RULES.outputRight({ ...state, heard: undefined }, moment),
    },
  ],
  [
    'a shadow that is about to take over says that it hears its primary',
    'A and B are in sync, and B hears A',
    { ticks: 3, alarms: 1, cuts: 1, heartbeats: 1 },
    { mayVouch: () => true },
  ],
  [
    'clocks are believed to run alike when a shadow vouches for its primary',
    'A and B are in sync, and B hears A',
    { ticks: 3, alarms: 1, cuts: 1 },
    {
      outputRight: (state, { nowMs, policy }) => RULES.outputRight(state, { nowMs: nowMs - 4, policy }),
      rates: [1, 3],
    },
  ],
  [
    'a write without an answer is taken for one that was not carried out',
    'A and B are in sync',
    { ticks: 6, alarms: 2, unanswered: 1 },
    {
      step: hearing((event) =>
        event.kind === 'swap-answered' && event.outcome.kind === 'unknown'
          ? { ...event, outcome: { kind: 'unreachable' } }
          : event,
      ),
    },
  ],
  [
    'a shadow counts as in sync before it has acknowledged what was released',
    'A is alone',
    { ticks: 1, copies: 1, alarms: 1, cuts: 0 },
    {
      step: (state, event, policy) => {
        const step = RULES.step(state, event, policy);
        if (event.kind !== 'shadow-ready' || step.next.phase !== 'closing') return step;
        const { nowMs, copy, epoch } = event;
        const then = RULES.step(step.next, { kind: 'epoch-acknowledged', nowMs, copy, epoch }, policy);
        return { next: then.next, effects: [...step.effects, ...then.effects] };
      },
    },
  ],
  [
    'a shadow that said it lets its copy go takes over with it',
    'A and B are in sync',
    { ticks: 1, alarms: 1, dismissals: 1 },
    {
      step: (state, event, policy) =>
        event.kind === 'copy-lost' ? { next: state, effects: [] } : RULES.step(state, event, policy),
    },
  ],
  [
    'a keeper that follows another one goes on without asking',
    'A and B are in sync',
    { ticks: 1, alarms: 2, heirs: 1 },
    {
      step: (state, event, policy) =>
        state.phase === 'claiming' && state.body === 'paused' && state.token === 0
          ? {
              next: { ...state, phase: 'alone', body: 'runs', heldSinceMs: NOW_MS },
              effects: [{ kind: 'release-everything' }],
            }
          : RULES.step(state, event, policy),
    },
  ],
  [
    'a VM is started where its state is not',
    'A is alone',
    { ticks: 1, suspensions: 1, ends: 1 },
    {
      step: hearing((event, { self }) => {
        if (event.kind !== 'read' || event.stored.record?.holder === self) return event;
        const { record } = event.stored;
        const forgotten = record && { ...record, suspended: undefined };
        return { ...event, stored: { ...event.stored, record: forgotten } };
      }),
    },
  ],
  [
    'a state is gone on from that is not the one on record',
    'A is alone',
    { ticks: 1, suspensions: 1, ends: 3, crashes: 1, proofs: 1 },
    { isNewest: () => true },
  ],
  [
    'a state is complete before it is on record that there is no shadow',
    'A and B are in sync',
    { ticks: 1, alarms: 1, suspensions: 1 },
    {
      step: (state, event, policy) =>
        event.kind === 'suspending'
          ? { next: { ...state, suspended: state.token }, effects: [] }
          : RULES.step(state, event, policy),
    },
  ],
  [
    'the end of a VM does not say that its state is kept',
    'A is alone',
    { ticks: 1, suspensions: 1, ends: 1 },
    { step: hearing((event) => (event.kind === 'vm-ended' ? { ...event, keepsState: false } : event)) },
  ],
  [
    'a renewal is taken for done that the store never gets',
    'A is alone',
    { ticks: 7 },
    { step: believeRenewed },
  ],
  [
    'a primary does not end its VM when another host acts',
    'A and B are in sync',
    { ticks: 2, alarms: 2, cuts: 1 },
    {
      step: (state, event, policy) => {
        const step = RULES.step(state, event, policy);
        return step.next.phase === 'stopping'
          ? {
              next: { ...step.next, phase: 'alone', heldSinceMs: NOW_MS },
              effects: [{ kind: 'release-everything' }],
            }
          : step;
      },
    },
  ],
];

describe('the search finds a counterexample (control) when', () => {
  it.each(CONTROLS)('%s', (name, start, budget, change) => {
    const found = search(worldOf(start, budget), {
      rules: { ...RULES, ...change },
      statesMax: CONTROL_STATES_MAX,
    });
    expect(found.trace?.at(-1)).toMatch(
      /^▸ .*(?:two act|forgets output|stale copy|does not have|had ended|begun to act|knows \d|newest state|the past)/,
    );
    console.info([`${name}:`, ...(found.trace ?? [])].join('\n  '));
  });

  it('a host does not repeat what was not answered: then nobody acts in the end', () => {
    const step: Step = (state, event, policy) =>
      event.kind === 'tick' ? { next: state, effects: [] } : RULES.step(state, event, policy);
    const found = explore(CASES[0] ?? expect.fail('there are cases'), { ...RULES, step });
    expect(found.trace?.at(-1)).toMatch(/^▸ nobody acts in the end/);
  });
});
