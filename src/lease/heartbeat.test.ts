import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DEFAULT_HEARTBEAT_POLICY,
  type HeartbeatEffect,
  type HeartbeatEvent,
  type HeartbeatPolicy,
  type HeartbeatState,
  initialHeartbeat,
  silenceMaxMs,
  stepHeartbeat,
} from './heartbeat.ts';

const policy: HeartbeatPolicy = { ...DEFAULT_HEARTBEAT_POLICY, floorMs: 100, ceilingMs: 500 };

/** A host that listens, and a peer that is heard on paths. */
class Listener {
  state: HeartbeatState;
  nowMs = 1_000;
  readonly heard: HeartbeatEffect[] = [];
  readonly #policy: HeartbeatPolicy;
  #sequence = 0;

  constructor(change: Partial<HeartbeatPolicy> = {}) {
    this.#policy = { ...policy, ...change };
    this.state = initialHeartbeat(this.#policy);
  }

  /** Time passes, and the detector looks at every tick of it. */
  passes(ms: number): this {
    const endMs = this.nowMs + ms;
    for (;;) {
      const nextMs = (this.state.tickedMs ?? this.nowMs) + policy.tickEveryMs;
      if (nextMs > endMs) break;
      this.nowMs = nextMs;
      this.step({ kind: 'tick', nowMs: nextMs });
    }
    this.nowMs = endMs;
    return this;
  }

  beats(path = 'lan', sequence?: number): this {
    this.#sequence += 1;
    return this.step({
      kind: 'heartbeat',
      nowMs: this.nowMs,
      path,
      run: 1,
      sequence: sequence ?? this.#sequence,
    });
  }

  /** A heartbeat after each of these gaps. */
  follows(gapsMs: readonly number[], path?: string): this {
    for (const gapMs of gapsMs) this.passes(gapMs).beats(path);
    return this;
  }

  step(event: HeartbeatEvent): this {
    const { next, effects } = stepHeartbeat(this.state, event, this.#policy);
    this.state = next;
    this.heard.push(...effects);
    return this;
  }

  count(kind: HeartbeatEffect['kind']): number {
    return this.heard.filter((effect) => effect.kind === kind).length;
  }
}

/** Gaps between heartbeats sent every 20 ms, as on a busy machine: mostly regular, some late, a few very late. */
function jitter(options: { maxMs: number; size: number }): fc.Arbitrary<number[]> {
  const gap = fc.oneof(
    { weight: 90, arbitrary: fc.double({ min: 18, max: 24, noNaN: true }) },
    { weight: 8, arbitrary: fc.double({ min: 1, max: 60, noNaN: true }) },
    { weight: 2, arbitrary: fc.double({ min: 60, max: options.maxMs, noNaN: true }) },
  );
  return fc.array(gap, { minLength: 1, maxLength: options.size });
}

const STEADY = Array.from({ length: 50 }, () => 20);

describe('heartbeats', () => {
  it('with no gap above the floor are never taken for lost, whatever their jitter', () => {
    const property = fc.property(jitter({ maxMs: policy.floorMs, size: 400 }), (gapsMs) => {
      expect(new Listener().beats().follows(gapsMs).heard).toEqual([]);
    });
    fc.assert(property);
  });

  it('that stop are found out about within the ceiling and a tick, whatever came before', () => {
    const property = fc.property(jitter({ maxMs: 2_000, size: 200 }), (gapsMs) => {
      const listener = new Listener().beats().follows(gapsMs);
      listener.passes(policy.ceilingMs + 2 * policy.tickEveryMs);
      expect(listener.state.verdict).toBe('lost');
    });
    fc.assert(property);
  });

  it('that are regular are missed soon: within the floor and a tick', () => {
    const listener = new Listener().beats().follows(STEADY);
    listener.passes(policy.floorMs + 2 * policy.tickEveryMs);
    expect(listener.heard).toEqual([
      { kind: 'path-lost', path: 'lan' },
      { kind: 'peer-lost', silentMs: expect.any(Number) },
    ]);
  });

  const longMs = 300;
  /** A long gap comes back at least every hundred heartbeats, with anything below it in between. */
  const recurring = fc
    .array(jitter({ maxMs: longMs, size: 100 }), { minLength: 1, maxLength: 6 })
    .map((blocks) => blocks.flatMap((block) => [longMs, ...block]));

  it('with long gaps that come back are not taken for lost once the first was seen', () => {
    const property = fc.property(recurring, (gapsMs) => {
      const listener = new Listener({ floorMs: 310 }).beats().follows([...STEADY, longMs]);
      expect(listener.heard).toEqual([]);
      const adapted = new Listener();
      adapted.state = listener.state;
      adapted.nowMs = listener.nowMs;
      for (const gapMs of gapsMs) adapted.passes(gapMs).beats('lan', adapted.nowMs);
      expect(adapted.heard).toEqual([]);
    });
    fc.assert(property);
  });

  it('with such gaps are taken for lost when nothing is adapted to them (control)', () => {
    const property = fc.property(recurring, (gapsMs) => {
      const rigid = new Listener({ deviations: 0, peakFactor: 0, learnCount: 0 }).beats().follows(gapsMs);
      expect(rigid.count('peer-lost')).toBeGreaterThan(0);
    });
    fc.assert(property);
  });

  it('leave a path the longest time until its gaps are known', () => {
    const { state } = new Listener().beats().follows(STEADY.slice(0, policy.learnCount - 1));
    const [path] = Object.values(state.paths);
    expect(path && silenceMaxMs(path, policy)).toBe(policy.ceilingMs);
  });

  it('have a limit between floor and ceiling, whatever was learnt', () => {
    const figures = fc.record({
      meanMs: fc.double({ min: 0, max: 1e9, noNaN: true }),
      deviationMs: fc.double({ min: 0, max: 1e9, noNaN: true }),
      peakMs: fc.double({ min: 0, max: 1e9, noNaN: true }),
      gapCount: fc.nat(100),
    });
    const property = fc.property(figures, (learnt) => {
      expect(silenceMaxMs(learnt, policy)).toBeGreaterThanOrEqual(policy.floorMs);
      expect(silenceMaxMs(learnt, policy)).toBeLessThanOrEqual(policy.ceilingMs);
    });
    fc.assert(property);
  });
});

describe('a host that is heard on two paths', () => {
  it('is there as long as one of them is, and lost when both are silent', () => {
    const listener = new Listener().beats('lan').beats('direct');
    listener.follows(STEADY, 'direct');
    expect(listener.heard).toEqual([{ kind: 'path-lost', path: 'lan' }]);
    listener.passes(policy.ceilingMs + policy.tickEveryMs);
    expect(listener.heard.slice(1)).toEqual([
      { kind: 'path-lost', path: 'direct' },
      { kind: 'peer-lost', silentMs: expect.any(Number) },
    ]);
  });

  it('that was never heard of is not lost', () => {
    expect(new Listener().passes(10_000).heard).toEqual([]);
  });
});

describe('a host that comes and goes', () => {
  const flap = (change: Partial<HeartbeatPolicy>) => {
    const listener = new Listener(change).beats().follows(STEADY);
    for (let times = 0; times < 50; times += 1)
      listener.passes(700).follows(Array(policy.backAfterCount).fill(20));
    return listener;
  };

  it('is not taken back on the strength of a few heartbeats', () => {
    expect(flap({}).count('peer-lost')).toBeLessThanOrEqual(2);
  });

  it('would be lost again and again without that (control)', () => {
    expect(flap({ flapWindowMs: 0 }).count('peer-lost')).toBeGreaterThan(40);
  });

  it('is back when it has been heard often enough in a row', () => {
    const listener = flap({});
    listener.follows(Array(policy.backAfterMaxCount).fill(20));
    expect(listener.heard.at(-1)).toEqual({ kind: 'peer-back' });
    expect(listener.state.verdict).toBe('there');
  });
});

describe('a detector', () => {
  it('that was stopped itself gives its peer the time to be heard', () => {
    const listener = new Listener().beats().follows(STEADY);
    listener.nowMs += 60_000;
    listener.step({ kind: 'tick', nowMs: listener.nowMs });
    expect(listener.heard).toEqual([]);
    // What lay in the socket meanwhile is read now, or it is lost all the same.
    listener.passes(policy.ceilingMs + policy.tickEveryMs);
    expect(listener.count('peer-lost')).toBe(1);
  });

  it('is not deceived by heartbeats that are late, repeated, or of an earlier run', () => {
    const listener = new Listener().beats().follows(STEADY);
    for (let ms = 0; ms < 1_000; ms += 20) listener.passes(20).beats('lan', 7);
    listener.step({ kind: 'heartbeat', nowMs: listener.nowMs, path: 'lan', run: 0, sequence: 9_999 });
    expect(listener.state.verdict).toBe('lost');
  });

  it('hears a peer that was started again, and counts from one', () => {
    const listener = new Listener().beats().follows(STEADY).passes(1_000);
    const beat = (sequence: number) =>
      listener.step({ kind: 'heartbeat', nowMs: listener.nowMs, path: 'lan', run: 2, sequence });
    for (let sequence = 1; sequence <= policy.backAfterCount; sequence += 1) {
      listener.passes(20);
      beat(sequence);
    }
    expect(listener.heard.at(-1)).toEqual({ kind: 'peer-back' });
  });
});
