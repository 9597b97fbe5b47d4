import { type Budget, HEARD_UNTIL_MS, type Host, NOW_MS, TTL_TICKS, type World } from './lease-model.ts';
import { initialLease } from './lease-state.ts';

const NOTHING: Budget = {
  ticks: 0,
  alarms: 0,
  unanswered: 0,
  unreachable: 0,
  duplicates: 0,
  crashes: 0,
  pauses: 0,
  cuts: 0,
  copies: 0,
  proofs: 0,
  ends: 0,
  suspensions: 0,
  dismissals: 0,
  heartbeats: 0,
  heirs: 0,
};

const EMPTY: World = {
  hosts: [fresh('A'), fresh('B')],
  record: undefined,
  revision: 0,
  holdTicks: 0,
  wire: [],
  line: 0,
  released: 0,
  staleCopy: 0,
  copies: 0,
  isWanted: false,
  budget: NOTHING,
};

function fresh(name: string): Host {
  return {
    lease: initialLease(name, { mayStartCold: true }),
    condition: 'up',
    run: undefined,
    copy: undefined,
    saved: undefined,
    gate: 'nothing',
    heardMs: undefined,
  };
}

/** Where a search begins. */
export type Start =
  | 'nothing is there'
  | 'A is alone'
  | 'A and B are in sync'
  | 'A and B are in sync, and B hears A';

export function worldOf(start: Start, budget: Partial<Budget>): World {
  const world = { ...EMPTY, budget: { ...NOTHING, ...budget } };
  const [a, b] = world.hosts;
  if (start === 'nothing is there') return world;
  const run = { line: 1, open: 2, acknowledged: 0, known: 0, copy: undefined, cap: undefined, left: 0 };
  if (start === 'A is alone') {
    const held = { heldSinceMs: NOW_MS, renewalSentMs: NOW_MS };
    return {
      ...world,
      hosts: [
        {
          ...a,
          lease: { ...a.lease, phase: 'alone', body: 'runs', token: 1, revision: 1, ...held },
          run,
          gate: 'everything',
        },
        b,
      ],
      record: { token: 1, holder: 'A', mode: 'alone', shadow: undefined },
      revision: 1,
      holdTicks: TTL_TICKS,
      line: 1,
      released: 2,
    };
  }
  const copy = 1;
  const hears = start === 'A and B are in sync, and B hears A';
  const heard = hears ? { copy, untilMs: HEARD_UNTIL_MS } : undefined;
  const primary = { token: 1, revision: 2, copy, shadowHost: 'B', heard } as const;
  return {
    ...world,
    hosts: [
      {
        ...a,
        lease: { ...a.lease, phase: 'in-sync', body: 'runs', ...primary },
        run: { ...run, acknowledged: 1, known: 1, copy },
        gate: 'acknowledged',
      },
      {
        ...b,
        lease: { ...b.lease, phase: 'shadow', body: 'copy', token: 1, copy },
        copy: { id: copy, line: 1, epoch: 1 },
        heardMs: hears ? NOW_MS : undefined,
      },
    ],
    record: { token: 1, holder: 'A', mode: 'in-sync', shadow: { host: 'B', copy, state: 'fresh' } },
    revision: 2,
    line: 1,
    released: 1,
    copies: copy,
  };
}
