import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DEFAULT_PROTECTION_POLICY,
  INITIAL_PROTECTION,
  type ProtectionEvent,
  type ProtectionPolicy,
  type ProtectionState,
  stepProtection,
} from './protection.ts';

const policy: ProtectionPolicy = { ...DEFAULT_PROTECTION_POLICY, enabled: true };

function play(events: readonly ProtectionEvent[], from: ProtectionState = INITIAL_PROTECTION) {
  let state = from;
  const transcript: string[] = [];
  for (const event of events) {
    const step = stepProtection(state, event, policy);
    state = step.next;
    transcript.push(
      `${event.kind}: ${[state.phase, ...step.effects.map((effect) => effect.kind)].join(' ')}`,
    );
  }
  return { state, transcript };
}

const started: ProtectionEvent[] = [
  { kind: 'started' },
  { kind: 'shadow-starting' },
  { kind: 'shadow-in-sync' },
];
const lost = (reason: 'exited' | 'panicked', nowMs = 0): ProtectionEvent => ({
  kind: 'primary-lost',
  reason,
  nowMs,
});

describe('the protection of a VM', () => {
  it('starts alone, brings a shadow in sync and is protected', () => {
    expect(play(started).transcript).toEqual([
      'started: alone pass-output start-shadow',
      'shadow-starting: syncing',
      'shadow-in-sync: protected',
    ]);
  });

  it('fences the primary before the shadow is promoted, and is protected again by a new shadow', () => {
    const { transcript } = play(
      [lost('exited'), { kind: 'fenced' }, { kind: 'promoted' }],
      play(started).state,
    );
    expect(transcript).toEqual([
      'primary-lost: fencing fence',
      'fenced: promoting promote',
      'promoted: alone pass-output start-shadow',
    ]);
  });

  it('goes on alone when the shadow dies and waits longer after every failure', () => {
    const first = stepProtection(play(started).state, { kind: 'shadow-lost' }, policy);
    expect(first.effects).toEqual([
      { kind: 'drop-shadow' },
      { kind: 'pass-output' },
      { kind: 'start-shadow', afterMs: 250 },
    ]);
    const second = stepProtection(first.next, { kind: 'shadow-lost' }, policy);
    expect(second.effects.at(-1)).toEqual({ kind: 'start-shadow', afterMs: 500 });
  });

  it('restarts cold when the primary dies without a shadow in sync', () => {
    const alone = play([{ kind: 'started' }, { kind: 'shadow-starting' }]).state;
    expect(play([lost('exited'), { kind: 'fenced' }, { kind: 'started' }], alone).transcript).toEqual([
      'primary-lost: fencing fence',
      'fenced: restarting drop-shadow restart',
      'started: alone pass-output start-shadow',
    ]);
  });

  it('restarts cold when promotion fails', () => {
    const { transcript } = play(
      [lost('exited'), { kind: 'fenced' }, { kind: 'promote-failed' }],
      play(started).state,
    );
    expect(transcript.at(-1)).toBe('promote-failed: restarting drop-shadow restart');
  });

  it('promotes at most once after a panic, then restarts cold', () => {
    const again: ProtectionEvent[] = [{ kind: 'shadow-starting' }, { kind: 'shadow-in-sync' }];
    const { transcript } = play(
      [
        lost('panicked', 0),
        { kind: 'fenced' },
        { kind: 'promoted' },
        ...again,
        lost('panicked', 5000),
        { kind: 'fenced' },
      ],
      play(started).state,
    );
    expect(transcript[1]).toBe('fenced: promoting promote');
    expect(transcript.at(-1)).toBe('fenced: restarting drop-shadow restart');
  });

  it('stops a VM that dies again and again', () => {
    let state = play([{ kind: 'started' }]).state;
    for (let nth = 0; nth < policy.restartsMax; nth += 1) {
      state = play([lost('exited', nth), { kind: 'fenced' }, { kind: 'started' }], state).state;
    }
    expect(play([lost('exited', 10)], state).transcript).toEqual(['primary-lost: stopping stop']);
  });

  it('restarts cold when the shadow dies while the primary is being fenced', () => {
    const { transcript } = play(
      [lost('exited'), { kind: 'shadow-lost' }, { kind: 'fenced' }],
      play(started).state,
    );
    expect(transcript).toEqual([
      'primary-lost: fencing fence',
      'shadow-lost: fencing drop-shadow',
      'fenced: restarting drop-shadow restart',
    ]);
  });

  it('never promotes or restarts before the old primary was fenced, in any order of events', () => {
    const event = fc.constantFrom<ProtectionEvent>(
      ...started,
      { kind: 'shadow-lost' },
      lost('exited'),
      lost('panicked'),
      { kind: 'fenced' },
      { kind: 'promoted' },
      { kind: 'promote-failed' },
      { kind: 'stop-requested' },
    );
    fc.assert(
      fc.property(fc.array(event, { maxLength: 40 }), (events) => {
        let state = INITIAL_PROTECTION;
        // The first start needs no fence.
        let fenced = true;
        for (const happened of events) {
          const step = stepProtection(state, happened, policy);
          if (happened.kind === 'fenced' && state.phase === 'fencing') fenced = true;
          for (const effect of step.effects) {
            if (effect.kind === 'promote' || effect.kind === 'restart') expect(fenced).toBe(true);
          }
          if (step.next.phase === 'alone' && state.phase !== 'alone') fenced = false;
          state = step.next;
        }
      }),
    );
  });
});
