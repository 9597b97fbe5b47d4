import { describe, expect, it } from 'vitest';
import {
  initialLinkLife,
  type LinkLife,
  type LinkLifeEffect,
  type LinkLifeEvent,
  type LinkRole,
  stepLinkLife,
} from './link-life.ts';
import { WireError } from './wire-error.ts';

type Step = typeof stepLinkLife;
type Side = 'dials' | 'waits';

const STATES_MAX = 60_000;
const SILENCE_MS = 100;
const ERROR = new WireError('WIRE_LOST', 'broken');

/** A connection: which of its ends is there, and what is on its way. */
interface Wire {
  readonly open: Readonly<Record<Side, boolean>>;
  /** The end was lost and has not been told yet. */
  readonly untold: Readonly<Record<Side, boolean>>;
  readonly knock: boolean;
  readonly agreed: boolean;
  readonly refused: boolean;
}

interface World {
  readonly nowMs: number;
  readonly lives: Readonly<Record<Side, LinkLife>>;
  /** Trying is due. */
  readonly trying: Readonly<Record<Side, boolean>>;
  readonly wires: readonly Wire[];
  /** It acts upon the end of the link: goes alone, or asks for the right. */
  readonly acts: Readonly<Record<Side, boolean>>;
  readonly cuts: number;
}

const START: World = {
  nowMs: 0,
  lives: { dials: initialLinkLife(0), waits: initialLinkLife(0) },
  trying: { dials: false, waits: false },
  wires: [
    {
      open: { dials: true, waits: true },
      untold: { dials: false, waits: false },
      knock: false,
      agreed: false,
      refused: false,
    },
  ],
  acts: { dials: false, waits: false },
  cuts: 0,
};

const other = (side: Side): Side => (side === 'dials' ? 'waits' : 'dials');

function change(world: World, index: number, wire: Partial<Wire>): World {
  return { ...world, wires: world.wires.map((one, at) => (at === index ? { ...one, ...wire } : one)) };
}

/** This end goes; the other one will be told. */
function shut(world: World, index: number, side: Side): World {
  const wire = world.wires[index];
  if (wire?.open[side] !== true) return world;
  const there = other(side);
  return change(world, index, {
    open: { ...wire.open, [side]: false },
    untold: { ...wire.untold, [side]: false, [there]: wire.open[there] },
  });
}

function take(world: World, side: Side, { event, step }: { event: LinkLifeEvent; step: Step }): World {
  const before = world.lives[side];
  const { next, effects } = step(before, event, side as LinkRole);
  let after: World = { ...world, lives: { ...world.lives, [side]: next } };
  for (const effect of effects) after = carryOut(after, side, { effect, before });
  return after;
}

function carryOut(
  world: World,
  side: Side,
  { effect, before }: { effect: LinkLifeEffect; before: LinkLife },
): World {
  switch (effect.kind) {
    case 'try':
      return { ...world, trying: { ...world.trying, [side]: true } };
    case 'wait':
      return world;
    case 'adopt': {
      if (world.acts[side]) throw new Error(`${side} goes on after it has acted upon the end`);
      const rest = before.kind === 'linked' ? shut(world, before.link, side) : world;
      return side === 'waits' ? change(rest, effect.link, { agreed: true }) : rest;
    }
    case 'refuse':
      return shut(change(world, effect.link, { refused: true }), effect.link, side);
    case 'drop':
      return shut(world, effect.link, side);
    case 'end': {
      let rest = world;
      for (const index of world.wires.keys()) rest = shut(rest, index, side);
      return { ...rest, acts: { ...rest.acts, [side]: true } };
    }
  }
}

/** All that can happen next; `isCalm`: nothing breaks, and time stands still. */
function* moves(world: World, { step, isCalm }: { step: Step; isCalm: boolean }): Generator<[string, World]> {
  const { nowMs } = world;
  for (const [index, wire] of world.wires.entries()) {
    if (!isCalm && world.cuts < 2 && (wire.open.dials || wire.open.waits)) {
      const untold = { dials: wire.open.dials, waits: wire.open.waits };
      // What was on its way is lost, or arrives.
      yield [
        `${index} breaks`,
        { ...change(world, index, { untold, knock: false, agreed: false }), cuts: world.cuts + 1 },
      ];
      yield [`${index} breaks late`, { ...change(world, index, { untold }), cuts: world.cuts + 1 }];
    }
    if (wire.knock && wire.open.waits)
      yield [
        `${index} knocks`,
        take(change(world, index, { knock: false }), 'waits', {
          event: { kind: 'knocked', link: index, verdict: 'welcome' },
          step,
        }),
      ];
    if (wire.agreed && wire.open.dials)
      yield [
        `${index} is agreed on`,
        take(change(world, index, { agreed: false }), 'dials', {
          event: { kind: 'agreed', link: index, verdict: 'welcome' },
          step,
        }),
      ];
    if (wire.refused && wire.open.dials)
      yield [
        `${index} is refused`,
        take(change(world, index, { refused: false }), 'dials', {
          event: { kind: 'refused', link: index, reason: 'ended' },
          step,
        }),
      ];
    for (const side of ['dials', 'waits'] as const) {
      if (!wire.untold[side] || (wire.agreed && side === 'dials') || (wire.knock && side === 'waits'))
        continue;
      const told = change(world, index, {
        open: { ...wire.open, [side]: false },
        untold: { ...wire.untold, [side]: false },
      });
      const life = world.lives[side];
      const isPresent = life.kind === 'linked' && life.link === index;
      const event: LinkLifeEvent = isPresent
        ? { kind: 'lost', link: index, nowMs, silentAtMs: nowMs + SILENCE_MS, error: ERROR }
        : { kind: 'failed', link: index, nowMs };
      yield [`${side} hears of the end of ${index}`, take(told, side, { event, step })];
    }
  }
  yield* tries(world, { step, isCalm });
  if (isCalm) return;
  for (const side of ['dials', 'waits'] as const) {
    for (const kind of ['forgone', 'closed'] as const)
      yield [`${side}: ${kind}`, take(world, side, { event: { kind }, step })];
    const life = world.lives[side];
    if (life.kind === 'broken') {
      const late = { ...world, nowMs: life.untilMs };
      yield [
        `${side} has waited`,
        take(late, side, { event: { kind: 'waited', nowMs: life.untilMs }, step }),
      ];
    }
  }
}

function* tries(world: World, { step, isCalm }: { step: Step; isCalm: boolean }): Generator<[string, World]> {
  const { nowMs, trying } = world;
  if (trying.waits) {
    const tried = { ...world, trying: { ...trying, waits: false } };
    if (!isCalm) yield ['a false alarm', take(tried, 'waits', { event: { kind: 'gone', nowMs }, step })];
    yield ['unsure', take(tried, 'waits', { event: { kind: 'unsure', nowMs }, step })];
  }
  if (!trying.dials || world.wires.length > 3) return;
  const tried = { ...world, trying: { ...trying, dials: false } };
  if (!isCalm)
    yield [
      'no connection',
      take(tried, 'dials', { event: { kind: 'failed', link: undefined, nowMs }, step }),
    ];
  const made: Wire = {
    open: { dials: true, waits: true },
    ...{ untold: { dials: false, waits: false }, knock: true, agreed: false, refused: false },
  };
  const link = world.wires.length;
  yield [
    'dialled',
    take({ ...tried, wires: [...world.wires, made] }, 'dials', { event: { kind: 'dialled', link }, step }),
  ];
}

/** Breadth first. Returns how many worlds there are. */
function explore(step: Step, visit: (world: World) => void): number {
  const seen = new Set<string>([keyOf(START)]);
  let ring: World[] = [START];
  while (ring.length > 0 && seen.size < STATES_MAX) {
    const next: World[] = [];
    for (const world of ring) {
      visit(world);
      for (const [, found] of moves(world, { step, isCalm: false })) {
        const key = keyOf(found);
        if (seen.has(key)) continue;
        seen.add(key);
        next.push(found);
      }
    }
    ring = next;
  }
  return seen.size;
}

function keyOf(world: World): string {
  return JSON.stringify(world, (name, value) => (name === 'error' ? undefined : value));
}

/** Nothing breaks any more, and whoever gets nowhere has waited for long enough in the end. */
function calmDown(world: World): World {
  let now = world;
  for (let moved = 0; moved < 200; moved += 1) {
    const [move] = moves(now, { step: stepLinkLife, isCalm: true });
    if (move === undefined) break;
    now = move[1];
  }
  for (const side of ['dials', 'waits'] as const) {
    const event: LinkLifeEvent = { kind: 'waited', nowMs: now.nowMs + SILENCE_MS };
    now = take(now, side, { event, step: stepLinkLife });
  }
  return now;
}

describe('a link that outlasts its connections, in every order of events', () => {
  it('is never taken up again by a side that has acted upon its end, and comes to one connection or an end', () => {
    const count = explore(stepLinkLife, (world) => {
      const { dials, waits } = calmDown(world).lives;
      const together = dials.kind === 'linked' && waits.kind === 'linked' && dials.link === waits.link;
      const over = dials.kind === 'ended' || waits.kind === 'ended';
      if (!together && !over) throw new Error(keyOf(calmDown(world)));
    });
    expect(count).toBeGreaterThan(1000);
  });

  it('would be, if whoever knocks were let in at any time (control)', () => {
    const careless: Step = (life, event, role) => {
      if (event.kind !== 'knocked') return stepLinkLife(life, event, role);
      return { next: initialLinkLife(event.link), effects: [{ kind: 'adopt', link: event.link }] };
    };
    expect(() => explore(careless, () => {})).toThrow('after it has acted');
  });

  it('is not taken up by a stranger, who does not disturb it either', () => {
    const linked = initialLinkLife(1);
    const { next, effects } = stepLinkLife(linked, { kind: 'knocked', link: 2, verdict: 'claim' }, 'waits');
    expect(next).toBe(linked);
    expect(effects).toEqual([{ kind: 'refuse', link: 2, reason: 'claim' }]);
  });

  it('is not waited for longer than the other side may be silent', () => {
    const event = { kind: 'lost', link: 1, nowMs: 500, silentAtMs: 500, error: ERROR } as const;
    expect(stepLinkLife(initialLinkLife(1), event, 'waits').next.kind).toBe('ended');
  });
});
