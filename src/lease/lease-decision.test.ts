import { describe, expect, it } from 'vitest';
import { stepLease } from './lease-decision.ts';
import type { LeaseRecord, StoredLease } from './lease-record.ts';
import {
  ageLimitMs,
  initialLease,
  type LeaseEffect,
  type LeaseFact,
  type LeaseState,
  leasePolicy,
  mayAcknowledge,
  outputRight,
} from './lease-state.ts';

const policy = leasePolicy({ holdTtlMs: 10_000 });

const IN_SYNC: LeaseRecord = {
  token: 4,
  holder: 'A',
  mode: 'in-sync',
  shadow: { host: 'B', copy: 9, state: 'fresh' },
};

/** A host to which things happen, and what it does about them. */
class Side {
  state: LeaseState;
  effects: LeaseEffect[] = [];
  nowMs = 100_000;

  constructor(state: LeaseState) {
    this.state = state;
  }

  hears(...facts: LeaseFact[]): this {
    this.effects = [];
    for (const fact of facts) {
      const { next, effects } = stepLease(this.state, { ...fact, nowMs: this.nowMs }, policy);
      this.state = next;
      this.effects.push(...effects);
    }
    return this;
  }

  later(ms: number): this {
    this.nowMs += ms;
    return this;
  }

  get right() {
    return outputRight(this.state, { nowMs: this.nowMs, policy });
  }

  get kinds(): string[] {
    return this.effects.map(({ kind }) => kind);
  }
}

function primary(): Side {
  const idle = initialLease('A', { mayStartCold: true });
  return new Side({
    ...idle,
    phase: 'in-sync',
    body: 'runs',
    token: 4,
    revision: 20,
    copy: 9,
    shadowHost: 'B',
  });
}

function shadow(): Side {
  const side = new Side(initialLease('B', { mayStartCold: true }));
  side.hears({ kind: 'copy-begun', copy: 9, token: 4 });
  return side;
}

function alone(): Side {
  const side = primary().hears({ kind: 'peer-lost' }, read(IN_SYNC, 20));
  return side.hears(swapped(20));
}

function read(record: LeaseRecord, revision: number, isHeld = false): LeaseFact {
  return { kind: 'read', stored: { record, revision, isHeld } };
}

function swapped(expectedRevision: number): LeaseFact {
  const outcome = { kind: 'swapped', revision: expectedRevision + 1 } as const;
  return { kind: 'swap-answered', expectedRevision, outcome };
}

function lost(expectedRevision: number, stored: StoredLease): LeaseFact {
  return { kind: 'swap-answered', expectedRevision, outcome: { kind: 'lost', stored } };
}

function failed(expectedRevision: number, kind: 'unknown' | 'unreachable'): LeaseFact {
  return { kind: 'swap-answered', expectedRevision, outcome: { kind } };
}

describe('a VM that is alone and about to be suspended', () => {
  const before: LeaseRecord = { token: 5, holder: 'A', mode: 'alone', shadow: undefined };

  it('says so before its state is whole, with a hold that goes on, and lets no shadow in meanwhile', () => {
    const side = alone().hears({ kind: 'suspending' });
    expect(side.kinds).toEqual(['read']);
    side.hears(read(before, 21, true));
    expect(side.effects).toMatchObject([
      { kind: 'swap', expectedRevision: 21, record: { token: 6, mode: 'alone', suspended: 6 } },
    ]);
    expect(side.state.suspended).toBe(undefined);
    side.hears({ kind: 'shadow-ready', host: 'B', copy: 10, epoch: 1 });
    expect(side.state.phase).toBe('alone');
    // One that was on its way was overtaken by this write.
    side.hears({ kind: 'renewal-refused', token: 5 });
    expect(side.right).toBe('everything');
    side.hears(swapped(21));
    expect(side.state).toMatchObject({ phase: 'alone', token: 6, suspended: 6 });
    expect(side.right).toBe('everything');
  });

  it('stands still when that is not answered in time, and asks again before anything else', () => {
    const side = alone().hears({ kind: 'suspending' }, read(before, 21, true), failed(21, 'unknown'));
    side.later(ageLimitMs(policy)).hears({ kind: 'tick' });
    expect(side.kinds).toEqual(['hold-output', 'suspend-vm', 'swap']);
    side.hears(lost(21, { record: { ...before, token: 7 }, revision: 23, isHeld: false }));
    expect(side.effects).toMatchObject([{ kind: 'swap', record: { token: 8, suspended: 8 } }]);
    expect(side.right).toBe('nothing');
    side.hears(swapped(23));
    expect(side.kinds).toEqual(['resume-vm', 'release-everything']);
    expect(side.state).toMatchObject({ suspended: 8, savedState: 'as-before' });
  });

  it('says nothing of a state that is gone and was never on record', () => {
    const side = alone().hears({ kind: 'state-gone' }, read(before, 21, true));
    expect(side.kinds).toEqual(['read']);
    expect(side.state.savedState).toBe('as-before');
  });
});

describe('a shadow in sync that hears no heartbeat', () => {
  it('reads, takes the next token, and promotes only when it knows that it has it', () => {
    const side = shadow().hears({ kind: 'peer-lost' });
    expect(side.kinds).toEqual(['read']);
    side.hears(read(IN_SYNC, 20));
    expect(side.effects).toMatchObject([
      { kind: 'swap', expectedRevision: 20, record: { token: 5, holder: 'B', mode: 'alone' } },
    ]);
    expect(side.right).toBe('nothing');
    side.hears(swapped(20));
    expect(side.effects).toEqual([{ kind: 'promote', token: 5, copy: 9 }, { kind: 'release-everything' }]);
    expect(side.right).toBe('everything');
  });

  it('acknowledges nothing from the moment on that it asks for the token', () => {
    const side = shadow().hears({ kind: 'peer-lost' });
    expect(mayAcknowledge(side.state, { copy: 9, token: 4 })).toBe(true);
    side.hears(read(IN_SYNC, 20));
    expect(mayAcknowledge(side.state, { copy: 9, token: 4 })).toBe(false);
  });

  it('goes on following when the store is away', () => {
    const side = shadow().hears({ kind: 'peer-lost' }, { kind: 'read-failed' });
    expect(side.state).toMatchObject({ phase: 'shadow', isStoreAway: true });
    expect(mayAcknowledge(side.state, { copy: 9, token: 4 })).toBe(true);
  });

  it('repeats its write until an answer settles it, and knows its own record when it sees it', () => {
    const side = shadow().hears({ kind: 'peer-lost' }, read(IN_SYNC, 20), failed(20, 'unknown'));
    expect(side.state.phase).toBe('claiming');
    side.later(50).hears({ kind: 'tick' });
    expect(side.kinds).toEqual(['swap']);
    const written = side.state.pending?.record ?? expect.fail('a write is under way');
    side.hears(lost(20, { record: written, revision: 21, isHeld: true }));
    expect(side.kinds).toEqual(['promote', 'release-everything']);
  });

  it('does not act on a token that took as long as the right to it lasts, but takes another', () => {
    const side = shadow().hears({ kind: 'peer-lost' }, read(IN_SYNC, 20));
    const written = side.state.pending?.record ?? expect.fail('a write is under way');
    side.later(ageLimitMs(policy)).hears(swapped(20));
    expect(side.kinds).toEqual(['read']);
    side.hears(read(written, 21));
    expect(side.effects).toMatchObject([{ kind: 'swap', record: { token: 6, holder: 'B' } }]);
    expect(side.hears(swapped(21)).kinds).toEqual(['promote', 'release-everything']);
  });

  it.each([
    [
      'its copy is stale',
      { ...IN_SYNC, mode: 'alone', token: 5, shadow: { host: 'B', copy: 9, state: 'stale' } },
    ],
    ['another copy is on record', { ...IN_SYNC, shadow: { host: 'B', copy: 8, state: 'fresh' } }],
    ['another host is on record', { ...IN_SYNC, shadow: { host: 'C', copy: 9, state: 'fresh' } }],
    ['it never was in sync', { ...IN_SYNC, mode: 'alone', shadow: undefined }],
  ] as const)('takes nothing when %s', (_, record) => {
    const side = shadow().hears({ kind: 'peer-lost' }, read(record, 21, true));
    expect(side.kinds).not.toContain('swap');
    expect(side.kinds).not.toContain('promote');
  });
});

describe('a host that lost the copy others count on', () => {
  it('says so in the store, and takes nothing', () => {
    const side = shadow().hears({ kind: 'copy-lost' }, read(IN_SYNC, 20));
    expect(side.effects).toMatchObject([
      { kind: 'read' },
      { kind: 'swap', record: { token: 4, holder: 'A', shadow: { state: 'stale' } } },
    ]);
  });
});

describe('a primary in sync that lost its shadow', () => {
  it('holds what nobody acknowledged until "alone" is on record', () => {
    const side = primary().hears({ kind: 'peer-lost' }, read(IN_SYNC, 20));
    expect(side.effects.at(-1)).toMatchObject({ kind: 'swap', record: { token: 5, mode: 'alone' } });
    expect(side.right).toBe('acknowledged');
    expect(side.hears(swapped(20)).kinds).toEqual(['release-everything']);
    expect(side.right).toBe('everything');
  });

  it('runs on in sync, for as long as it takes, while the store is away', () => {
    const side = primary().hears({ kind: 'peer-lost' }, { kind: 'read-failed' });
    for (let hours = 0; hours < 3; hours += 1)
      side.later(3_600_000).hears({ kind: 'tick' }, { kind: 'read-failed' });
    expect(side.state).toMatchObject({ phase: 'in-sync', body: 'runs', isStoreAway: true });
    expect(side.right).toBe('acknowledged');
  });

  it('ends its VM at once when it finds a higher token', () => {
    const taken = { token: 5, holder: 'B', mode: 'alone', shadow: undefined } as const;
    const side = primary().hears({ kind: 'peer-lost' }, read(IN_SYNC, 20));
    side.hears(lost(20, { record: taken, revision: 21, isHeld: true }));
    expect(side.kinds).toEqual(['hold-output', 'stop-vm']);
    expect(primary().hears({ kind: 'peer-told', token: 5, holder: 'B' }).kinds).toEqual([
      'hold-output',
      'stop-vm',
    ]);
  });

  it('stands still when its write may have been carried out, and run out, without its knowing', () => {
    const side = primary().hears({ kind: 'peer-lost' }, read(IN_SYNC, 20), failed(20, 'unknown'));
    side.later(ageLimitMs(policy));
    expect(side.right).toBe('nothing');
    expect(side.hears({ kind: 'tick' }).kinds).toEqual(['hold-output', 'suspend-vm', 'swap']);
  });
});

describe('a primary that is alone', () => {
  it('counts the age of its right from the sending of the renewal', () => {
    const side = alone();
    const startMs = side.nowMs;
    side.later(policy.renewEveryMs).hears({ kind: 'tick' });
    expect(side.effects).toEqual([{ kind: 'renew', token: 5, sentAtMs: startMs + policy.renewEveryMs }]);
    side.later(1_500).hears({ kind: 'renewed', token: 5, sentAtMs: startMs + policy.renewEveryMs });
    side.nowMs = startMs + policy.renewEveryMs + ageLimitMs(policy) - 1;
    expect(side.right).toBe('everything');
    expect(side.later(1).right).toBe('nothing');
  });

  it('stands still when its right has run out, and goes on as the same VM when nobody took it', () => {
    const side = alone();
    side.later(ageLimitMs(policy)).hears({ kind: 'tick' });
    expect(side.kinds).toEqual(['hold-output', 'suspend-vm', 'read']);
    const own = {
      token: 5,
      holder: 'A',
      mode: 'alone',
      shadow: { host: 'B', copy: 9, state: 'stale' },
    } as const;
    side.hears(read(own, 21), swapped(21));
    expect(side.kinds).toEqual(['swap', 'resume-vm', 'release-everything']);
    expect(side.state.token).toBe(6);
  });

  it('is in sync only when the shadow has acknowledged all that had left before', () => {
    const side = alone().hears({ kind: 'shadow-ready', host: 'B', copy: 10, epoch: 70 });
    expect(side.kinds).toEqual(['release-acknowledged']);
    expect(side.hears({ kind: 'epoch-acknowledged', copy: 10, epoch: 69 }).kinds).toEqual([]);
    expect(side.hears({ kind: 'epoch-acknowledged', copy: 10, epoch: 70 }).kinds).toEqual(['swap']);
    side.hears(swapped(21));
    expect(side.state).toMatchObject({ phase: 'in-sync', token: 5 });
    expect(side.later(10 * policy.holdTtlMs).right).toBe('acknowledged');
  });
});

describe('a VM that ends', () => {
  const ended = { token: 5, holder: 'A', mode: 'ended', shadow: undefined } as const;

  it('has that on record, so that its shadow does not take it for a failure', () => {
    const side = primary().hears({ kind: 'vm-ended', keepsState: false }, read(IN_SYNC, 20));
    expect(side.effects.at(-1)).toMatchObject({ kind: 'swap', record: ended });
    const behind = shadow().hears({ kind: 'peer-lost' }, read(ended, 21));
    expect(behind.kinds).toEqual(['read', 'mark-stale']);
    expect(behind.state.pending).toBeUndefined();
  });

  it('is started again by nobody who was not told since', () => {
    const side = new Side(initialLease('B', { mayStartCold: true }));
    expect(side.hears({ kind: 'tick' }, read(ended, 21)).kinds).toEqual(['read']);
    side.hears({ kind: 'start-wanted' }, read(ended, 21), swapped(21));
    expect(side.kinds).toEqual(['read', 'swap', 'start-cold', 'release-everything']);
    expect(side.state.token).toBe(6);
  });
});

describe('a host that was started', () => {
  const held = { token: 7, holder: 'A', mode: 'alone', shadow: undefined } as const;

  it('boots nothing as long as a holder elsewhere may act, and only if that has not changed when it writes', () => {
    const side = new Side(initialLease('B', { mayStartCold: true }));
    expect(side.hears({ kind: 'tick' }, read(held, 30, true)).kinds).toEqual(['read']);
    side.hears({ kind: 'tick' }, read(held, 30, false));
    expect(side.effects.at(-1)).toMatchObject({ kind: 'swap', onlyIfUnheld: true, record: { token: 8 } });
    expect(side.hears(swapped(30)).kinds).toEqual(['start-cold', 'release-everything']);
  });

  it('boots nothing while a fresh shadow could go on, unless the other host is proven dead', () => {
    const side = new Side(initialLease('A', { mayStartCold: true }));
    expect(side.hears({ kind: 'tick' }, read(IN_SYNC, 20)).kinds).toEqual(['read']);
    side.hears({ kind: 'peer-proven-dead', token: 4 }, read(IN_SYNC, 20));
    expect(side.effects.at(-1)).toMatchObject({ kind: 'swap', record: { token: 5, holder: 'A' } });
  });

  it('boots nothing that it was not told to', () => {
    const side = new Side(initialLease('B', { mayStartCold: false }));
    expect(side.hears({ kind: 'tick' }, read(held, 30, false)).kinds).toEqual(['read']);
  });
});
