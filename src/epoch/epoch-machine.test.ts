import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type EpochId, epochId, FIRST_EPOCH } from './epoch-id.ts';
import {
  type EpochEvent,
  type EpochPolicy,
  type EpochState,
  initialEpochState,
  stepEpoch,
} from './epoch-machine.ts';

const policy: EpochPolicy = {
  maxIntervalMs: 100,
  dirtyPagesMax: 1000,
  epochsInFlightMax: 2,
  pauseShare: 0.25,
  pauseBurstMs: 10,
};

/** Applies events in order and returns the last state with all effects as a short transcript. */
function play(events: readonly EpochEvent[], state: EpochState = initialEpochState(policy, 0)) {
  const transcript: string[] = [];
  for (const event of events) {
    const step = stepEpoch(state, event, policy);
    state = step.next;
    for (const effect of step.effects) {
      transcript.push('epoch' in effect ? `${effect.kind} ${effect.epoch}` : `${effect.kind} ${effect.atMs}`);
    }
  }
  return { state, transcript };
}

/** A cut that went well; `outputHeld`: more output came before the VM ran again. */
const cut = (epoch: number, nowMs: number, { pausedMs = 2, outputHeld = false } = {}): EpochEvent[] => [
  { kind: 'sealed', epoch: epochId(epoch) },
  ...(outputHeld ? [{ kind: 'output-held', nowMs } as const] : []),
  { kind: 'resumed', pausedMs, nowMs },
];

describe('the epoch machine', () => {
  it('cuts at once when output is held after a quiet time', () => {
    expect(play([{ kind: 'output-held', nowMs: 7 }]).transcript).toEqual(['cut 1']);
  });

  it('cuts a quiet VM when the open epoch reaches the maximum interval', () => {
    const { transcript } = play([
      { kind: 'tick', nowMs: 0 },
      { kind: 'tick', nowMs: 99 },
      { kind: 'tick', nowMs: 100 },
    ]);
    expect(transcript).toEqual(['wake 100', 'wake 100', 'cut 1']);
  });

  it('cuts when too much is dirty', () => {
    expect(play([{ kind: 'dirty', pages: 999, nowMs: 5 }]).transcript).toEqual(['wake 100']);
    expect(play([{ kind: 'dirty', pages: 1000, nowMs: 5 }]).transcript).toEqual(['cut 1']);
  });

  it('makes a steady load wait until the debt of pause is paid', () => {
    const { transcript } = play([
      { kind: 'output-held', nowMs: 0 },
      ...cut(1, 14, { pausedMs: 14, outputHeld: true }),
    ]);
    // 10 ms of credit, 14 spent: 4 ms of debt are paid after 16 ms at a share of a quarter.
    expect(transcript).toEqual(['cut 1', 'wake 30']);
  });

  it('cuts on demand whatever the budget says', () => {
    const { transcript } = play([
      { kind: 'output-held', nowMs: 0 },
      ...cut(1, 50, { pausedMs: 50 }),
      { kind: 'demand', nowMs: 51 },
    ]);
    expect(transcript).toEqual(['cut 1', 'wake 210', 'cut 2']);
  });

  it('lets no more epochs fly than the policy says, and goes on when one is acknowledged', () => {
    const { transcript } = play([
      { kind: 'output-held', nowMs: 0 },
      ...cut(1, 1, { pausedMs: 1, outputHeld: true }),
      ...cut(2, 2, { pausedMs: 1, outputHeld: true }),
      { kind: 'tick', nowMs: 500 },
      { kind: 'acknowledged', epoch: epochId(1), nowMs: 501 },
    ]);
    expect(transcript).toEqual(['cut 1', 'cut 2', 'commit 1', 'cut 3']);
  });

  it('joins a failed epoch to the next one', () => {
    const { transcript } = play([
      { kind: 'output-held', nowMs: 0 },
      ...cut(1, 1, { pausedMs: 1 }),
      { kind: 'failed', epoch: epochId(1), nowMs: 2 },
    ]);
    expect(transcript).toEqual(['cut 1', 'wake 101', 'abort 1', 'cut 2']);
  });

  it('joins what nobody will acknowledge to the epoch that is open, the newest first', () => {
    const { transcript } = play([
      { kind: 'output-held', nowMs: 0 },
      ...cut(1, 1, { pausedMs: 1, outputHeld: true }),
      ...cut(2, 2, { pausedMs: 1 }),
      { kind: 'halt' },
      { kind: 'abandon' },
      { kind: 'abandon' },
    ]);
    expect(transcript).toEqual(['cut 1', 'cut 2', 'abort 2', 'abort 1']);
  });

  it('makes no cut once it is halted', () => {
    expect(play([{ kind: 'halt' }, { kind: 'demand', nowMs: 1000 }]).transcript).toEqual([]);
  });

  it('keeps the share of time paused within its bound for any load', () => {
    const pauses = fc.array(
      fc.record({ pausedMs: fc.integer({ min: 1, max: 8 }), idleMs: fc.integer({ min: 0, max: 5 }) }),
      {
        minLength: 50,
        maxLength: 300,
      },
    );
    fc.assert(
      fc.property(pauses, (load) => {
        let state = initialEpochState(policy, 0);
        let nowMs = 0;
        let pausedMs = 0;
        const run = (event: EpochEvent) => {
          const step = stepEpoch(state, event, policy);
          state = step.next;
          return step.effects;
        };
        for (const { pausedMs: pause, idleMs } of load) {
          nowMs += idleMs;
          let effects = run({ kind: 'output-held', nowMs });
          const wake = effects.find((effect) => effect.kind === 'wake');
          if (wake !== undefined) {
            nowMs = wake.atMs;
            effects = run({ kind: 'tick', nowMs });
          }
          const open: EpochId = state.open;
          expect(effects).toContainEqual({ kind: 'cut', epoch: open });
          nowMs += pause;
          pausedMs += pause;
          for (const event of cut(open, nowMs, { pausedMs: pause })) run(event);
          run({ kind: 'acknowledged', epoch: open, nowMs });
          // The burst and one overdraft come on top of the share.
          expect(pausedMs).toBeLessThanOrEqual(policy.pauseShare * nowMs + policy.pauseBurstMs + 8 + 1e-6);
        }
      }),
    );
  });

  it('commits every epoch once and in the order of the cuts', () => {
    const { state, transcript } = play([
      { kind: 'output-held', nowMs: 0 },
      ...cut(FIRST_EPOCH, 1, { pausedMs: 1, outputHeld: true }),
      { kind: 'acknowledged', epoch: epochId(1), nowMs: 1 },
      ...cut(2, 2, { pausedMs: 1 }),
      { kind: 'acknowledged', epoch: epochId(2), nowMs: 3 },
    ]);
    expect(transcript.filter((line) => line.startsWith('commit'))).toEqual(['commit 1', 'commit 2']);
    expect(() => stepEpoch(state, { kind: 'acknowledged', epoch: epochId(2), nowMs: 4 }, policy)).toThrow(
      'oldest',
    );
  });
});
