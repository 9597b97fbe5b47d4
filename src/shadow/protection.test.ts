import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DEFAULT_PROTECTION_POLICY,
  INITIAL_PROTECTION,
  type ProtectionEffect,
  type ProtectionEvent,
  type ProtectionState,
  stepProtection,
} from './protection.ts';

const policy = DEFAULT_PROTECTION_POLICY;

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
const lost = (reason: 'exited' | 'panicked' | 'disk-failed', nowMs = 0): ProtectionEvent => ({
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

  it('is moved where a disk of its own fails while it is being ended, and its shadow acts', () => {
    const { state } = play([{ kind: 'stop-requested' }, { kind: 'moved' }], play(started).state);
    expect(state).toMatchObject({ phase: 'stopping', stopReason: 'moved', promotions: 1 });
    expect(play([{ kind: 'stopped' }], state).state).toMatchObject({ phase: 'stopped', stopReason: 'moved' });
  });

  it('is handed over when a disk of its own fails, and stops where nobody takes it: booted anew it would have no other disk', () => {
    const { transcript, state } = play([lost('disk-failed'), { kind: 'fenced' }], play(started).state);
    expect(transcript).toEqual(['primary-lost: fencing fence', 'fenced: promoting promote']);
    expect(play([{ kind: 'moved' }], state).state.stopReason).toBe('moved');
    const { state: failed } = play([{ kind: 'promote-failed' }], state);
    expect(failed).toMatchObject({ phase: 'stopping', stopReason: 'failed', restarts: 0 });
    // The control: with a disk that works it is booted anew.
    const exited = play(
      [lost('exited'), { kind: 'fenced' }, { kind: 'promote-failed' }],
      play(started).state,
    );
    expect(exited.state.phase).toBe('restarting');
  });

  it('goes on alone when the shadow dies and waits longer after every failure', () => {
    const first = stepProtection(play(started).state, { kind: 'shadow-lost' }, policy);
    expect(first.effects).toEqual([
      { kind: 'drop-shadow' },
      { kind: 'pass-output' },
      { kind: 'start-shadow', afterMs: 250 },
    ]);
    const dropped = stepProtection(first.next, { kind: 'shadow-dropped' }, policy);
    const second = stepProtection(dropped.next, { kind: 'shadow-lost' }, policy);
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
      { kind: 'shadow-dropped' },
      { kind: 'protect-requested' },
      { kind: 'unprotect-requested' },
      { kind: 'save-requested' },
      { kind: 'save-failed' },
      { kind: 'saved', next: 'power-off' },
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

  it('gives its shadow up when none is wanted any more, and makes another one when one is wanted again', () => {
    const { transcript, state } = play(
      [{ kind: 'unprotect-requested' }, { kind: 'shadow-dropped' }, { kind: 'protect-requested' }],
      play(started).state,
    );
    expect(transcript).toEqual([
      'unprotect-requested: alone drop-shadow pass-output',
      'shadow-dropped: alone',
      'protect-requested: alone start-shadow',
    ]);
    expect(play([{ kind: 'protect-requested' }], state).transcript).toEqual(['protect-requested: alone']);
  });

  it('finishes a takeover that is under way though no shadow is wanted any more, and makes none then', () => {
    const events: ProtectionEvent[] = [
      lost('exited'),
      { kind: 'unprotect-requested' },
      { kind: 'fenced' },
      { kind: 'promoted' },
    ];
    expect(play(events, play(started).state).transcript).toEqual([
      'primary-lost: fencing fence',
      'unprotect-requested: fencing',
      'fenced: promoting promote',
      'promoted: alone pass-output',
    ]);
  });

  it('takes no notice of a shadow that is being dropped', () => {
    const syncing = play([{ kind: 'started' }, { kind: 'shadow-starting' }]).state;
    const events: ProtectionEvent[] = [
      { kind: 'unprotect-requested' },
      { kind: 'protect-requested' },
      { kind: 'shadow-starting' },
      { kind: 'shadow-in-sync' },
      { kind: 'shadow-lost' },
    ];
    expect(play(events, syncing).transcript.slice(2)).toEqual([
      'shadow-starting: alone',
      'shadow-in-sync: alone',
      'shadow-lost: alone',
    ]);
  });

  it('keeps its shadow while it is saved, and is taken over when it dies meanwhile', () => {
    const saving: ProtectionEvent[] = [...started, { kind: 'save-requested' }];
    expect(play(saving).transcript.at(-1)).toBe('save-requested: saving save');
    expect(play([lost('exited'), { kind: 'fenced' }], play(saving).state).transcript).toEqual([
      'primary-lost: fencing fence',
      'fenced: promoting promote',
    ]);
    expect(
      play([{ kind: 'shadow-lost' }, lost('exited'), { kind: 'fenced' }], play(saving).state).transcript,
    ).toEqual([
      'shadow-lost: saving drop-shadow pass-output',
      'primary-lost: fencing fence',
      'fenced: restarting drop-shadow restart',
    ]);
  });

  it('ends once it is saved, or goes on when it could not be', () => {
    const saving = play([...started, { kind: 'save-requested' }]).state;
    expect(play([{ kind: 'saved', next: 'end' }], saving).transcript).toEqual([
      'saved: stopping pass-output stop',
    ]);
    expect(play([{ kind: 'saved', next: 'power-off' }], saving).transcript).toEqual([
      'saved: alone drop-shadow pass-output',
    ]);
    expect(play([{ kind: 'save-failed' }], saving).transcript).toEqual([
      'save-failed: alone drop-shadow pass-output start-shadow',
    ]);
  });
});

/** The least that a keeper does about effects, one after the other, with a shadow that reports by itself. */
class ModelKeeper {
  state = INITIAL_PROTECTION;
  shadow: 'none' | 'starting' | 'syncing' | 'in-sync' = 'none';
  outputHeld = false;
  saving = false;
  readonly #queue: ProtectionEffect[] = [];

  dispatch(event: ProtectionEvent): void {
    const { next, effects } = stepProtection(this.state, event, policy);
    this.state = next;
    this.#queue.push(...effects);
  }

  get isIdle(): boolean {
    return this.#queue.length === 0;
  }

  carryOutNext(): void {
    const effect = this.#queue.shift();
    switch (effect?.kind) {
      case 'pass-output':
        this.outputHeld = false;
        break;
      case 'start-shadow':
        if (this.shadow === 'none') this.shadow = 'starting';
        break;
      case 'drop-shadow':
        this.shadow = 'none';
        this.dispatch({ kind: 'shadow-dropped' });
        break;
      case 'fence':
        this.saving = false;
        this.dispatch({ kind: 'fenced' });
        break;
      case 'promote':
        this.#promote();
        break;
      case 'restart':
        this.outputHeld = false;
        this.dispatch({ kind: 'started' });
        break;
      case 'save':
        this.saving = true;
        break;
      case 'stop':
        this.shadow = 'none';
        this.saving = false;
        this.dispatch({ kind: 'stopped' });
    }
  }

  #promote(): void {
    expect(this.shadow).toBe('in-sync');
    this.shadow = 'none';
    this.dispatch({ kind: 'promoted' });
  }

  /** The next thing that the shadow would report. */
  advanceShadow(): void {
    if (this.shadow === 'starting') {
      this.shadow = 'syncing';
      this.outputHeld = true;
      this.dispatch({ kind: 'shadow-starting' });
    } else if (this.shadow === 'syncing') {
      this.shadow = 'in-sync';
      this.dispatch({ kind: 'shadow-in-sync' });
    }
  }

  loseShadow(): void {
    if (this.shadow === 'none') return;
    this.dispatch({ kind: 'shadow-lost' });
  }

  endSaving(next: 'end' | 'power-off' | 'failed'): void {
    if (!this.saving) return;
    this.saving = false;
    this.dispatch(next === 'failed' ? { kind: 'save-failed' } : { kind: 'saved', next });
  }
}

describe('whatever is asked for, and whatever happens, in any order', () => {
  const step = fc.oneof(
    { weight: 6, arbitrary: fc.constant('carry-out' as const) },
    { weight: 4, arbitrary: fc.constant('shadow' as const) },
    fc.constantFrom('lose-shadow', 'lose-primary', 'protect', 'unprotect', 'save', 'saved', 'unsaved'),
  );

  function act(keeper: ModelKeeper, what: string): void {
    if (what === 'carry-out') keeper.carryOutNext();
    if (what === 'shadow') keeper.advanceShadow();
    if (what === 'lose-shadow') keeper.loseShadow();
    // Far apart, so that the bound on restarts does not end the VM.
    if (what === 'lose-primary') keeper.dispatch(lost('exited', nowMs++ * policy.restartWindowMs));
    if (what === 'protect') keeper.dispatch({ kind: 'protect-requested' });
    if (what === 'unprotect') keeper.dispatch({ kind: 'unprotect-requested' });
    if (what === 'save') keeper.dispatch({ kind: 'save-requested' });
    if (what === 'saved') keeper.endSaving('power-off');
    if (what === 'unsaved') keeper.endSaving('failed');
  }
  let nowMs = 0;

  function settle(keeper: ModelKeeper): void {
    for (let round = 0; round < 50; round += 1) {
      while (!keeper.isIdle) keeper.carryOutNext();
      keeper.endSaving('failed');
      keeper.advanceShadow();
    }
  }

  it('a shadow that is started between two that are dropped is not taken for the one that is wanted', () => {
    const keeper = new ModelKeeper();
    keeper.dispatch({ kind: 'started' });
    for (const what of ['carry-out', 'carry-out', 'lose-shadow', 'unprotect']) act(keeper, what);
    for (const what of ['carry-out', 'carry-out', 'carry-out', 'shadow']) act(keeper, what);
    settle(keeper);
    expect(keeper.state).toMatchObject({ phase: 'alone', dropping: 0 });
  });

  it('a VM called protected has a shadow in sync, and is protected in the end exactly if that is wanted', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
        const keeper = new ModelKeeper();
        keeper.dispatch({ kind: 'started' });
        for (const what of steps) {
          act(keeper, what);
          if (keeper.state.phase === 'protected') expect(keeper.shadow).toBe('in-sync');
          if (keeper.saving && keeper.state.phase === 'saving') expect(keeper.shadow).not.toBe('starting');
        }
        settle(keeper);
        expect(keeper.state.phase).toBe(keeper.state.wanted ? 'protected' : 'alone');
        expect(keeper.shadow).toBe(keeper.state.wanted ? 'in-sync' : 'none');
        expect(keeper.outputHeld).toBe(keeper.state.wanted);
      }),
      { numRuns: 2000 },
    );
  });
});
