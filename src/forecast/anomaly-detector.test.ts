import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AnomalyDetector } from './anomaly-detector.ts';
import { ALARM_SCORE, ANOMALY_KINDS, type AnomalyKind, type AnomalyVerdict } from './anomaly-verdict.ts';

const stepMs = 300_000;
const DAY_STEPS = 288;
const MONDAY_MS = Date.UTC(2018, 0, 1);

/** Park and Miller's minimal standard, 0 … 1. */
function lehmer(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 48_271) % 2_147_483_647;
    return state / 2_147_483_647;
  };
}

function normalFrom(random: () => number): () => number {
  return () => Math.sqrt(-2 * Math.log(random())) * Math.cos(2 * Math.PI * random());
}

/** A machine at 40 %, give or take 2; `at` may put something else in the place of a value. */
function steady(steps: number, at: (step: number, value: number) => number = (_, value) => value): number[] {
  const normal = normalFrom(lehmer(11));
  return Array.from({ length: steps }, (_, step) => at(step, 40 + 2 * normal()));
}

function verdictsOf(values: readonly number[], { kinds }: { kinds?: readonly AnomalyKind[] } = {}) {
  const detector = new AnomalyDetector({ stepMs, ...(kinds && { kinds }) });
  return values.map((value, step) => detector.push(value, MONDAY_MS + step * stepMs));
}

function beginnings(verdicts: readonly AnomalyVerdict[]) {
  return verdicts.flatMap(({ change, episode }, step) =>
    change === 'begins' && episode !== undefined ? [{ step, ...episode }] : [],
  );
}

const FAULT = 1500;
const isDuring = (step: number) => step >= FAULT && step < FAULT + 60;

interface Planted {
  readonly values: number[];
  readonly kinds: readonly AnomalyKind[];
  /** Kinds that see it too, later. */
  readonly others?: readonly AnomalyKind[];
  readonly steps: number;
  readonly reason: RegExp;
}

/** What is planted, and of what kinds the first sign of it may be. */
const PLANTED: Readonly<Record<string, Planted>> = {
  'a spike': {
    values: steady(2000, (step, value) => (step === FAULT ? 90 : value)),
    kinds: ['level', 'jump', 'record'],
    steps: 0,
    reason: /^90; .*\d to \d|^from \d+.* to 90 /,
  },
  'a higher level': {
    values: steady(2000, (step, value) => (isDuring(step) ? value + 30 : value)),
    kinds: ['level', 'jump', 'record'],
    steps: 0,
    reason: /\d/,
  },
  'a level that creeps within the known range': {
    values: steady(2000, (step, value) => (isDuring(step) ? 44 + (value - 40) / 4 : value)),
    kinds: ['shift'],
    others: ['spread'],
    steps: 60,
    reason: /^the (median|mean) of the last (12|48) values is 4\d\.?\d*; usual is \d/,
  },
  'values further apart within the known range': {
    values: steady(2000, (step, value) => (isDuring(step) ? 40 + (step % 4 < 2 ? 4.5 : -4.5) : value)),
    kinds: ['spread'],
    steps: 48,
    reason: /^half of the last 48 values lie within \d.*; usual is \d/,
  },
  'a value that does not change': {
    values: steady(2000, (step, value) => (isDuring(step) ? 40.25 : value)),
    kinds: ['stuck'],
    others: ['spread'],
    steps: 40,
    reason: /^40\.3 for \d+ steps; the longest time with one value was [\d.]+ steps$/,
  },
  'no values': {
    values: steady(2000, (step, value) => (isDuring(step) ? Number.NaN : value)),
    kinds: ['missing'],
    steps: 12,
    reason: /^no value for 12 steps; the longest gap before was 0$/,
  },
};

describe('what is planted', () => {
  it.each(Object.entries(PLANTED))('is found soon, once, and with a reason: %s', (_, planted) => {
    const verdicts = verdictsOf(planted.values, { kinds: planted.kinds });
    const [episode, ...others] = beginnings(verdicts).filter(({ step }) => step >= FAULT);
    expect(others.filter(({ step }) => isDuring(step))).toEqual([]);
    expect(episode?.step).toBeGreaterThanOrEqual(FAULT);
    expect(episode?.step).toBeLessThanOrEqual(FAULT + planted.steps);
    expect(episode?.sinceMs).toBe(MONDAY_MS + (episode?.step ?? 0) * stepMs);
    expect(episode?.reason).toMatch(planted.reason);
    expect(planted.kinds).toContain(episode?.kind);
  });

  it.each(Object.entries(PLANTED))('is missed without the signs that show it: %s', (_, planted) => {
    const { kinds: shown, others = [] } = planted;
    const kinds = ANOMALY_KINDS.filter((kind) => !shown.includes(kind) && !others.includes(kind));
    const without = beginnings(verdictsOf(planted.values, { kinds }));
    const first = without.find(({ step }) => step >= FAULT && step <= FAULT + planted.steps);
    expect(first).toBeUndefined();
  });

  it.each(Object.entries(PLANTED))('is found with all signs together: %s', (_, planted) => {
    const episodes = beginnings(verdictsOf(planted.values));
    expect(episodes.some(({ step }) => step >= FAULT && step <= FAULT + planted.steps)).toBe(true);
  });
});

describe('what is not wrong', () => {
  const random = lehmer(5);
  const normal = normalFrom(random);
  it.each<[string, (step: number) => number]>([
    ['noise', () => 40 + 2 * normal()],
    ['a day that comes again', (step) => 50 + 30 * Math.sin((2 * Math.PI * step) / DAY_STEPS) + 2 * normal()],
    ['an idle machine with a job each day', (step) => (step % DAY_STEPS < 4 ? 8 : 0.2) + 0.05 * random()],
    ['a constant', () => 7],
    ['whole numbers', () => Math.round(20 + 2 * normal())],
    ['zeros', () => 0],
  ])('begins next to no episodes once two days are known: %s', (_, valueAt) => {
    const values = Array.from({ length: 5000 }, (__, step) => valueAt(step));
    const after = beginnings(verdictsOf(values)).filter(({ step }) => step >= 4 * DAY_STEPS);
    expect(after.length).toBeLessThanOrEqual(2);
  });

  it('begins no episode before it has seen 288 values', () => {
    const verdicts = verdictsOf(steady(400, (step, value) => (step === 200 ? 1000 : value)));
    expect(verdicts.slice(0, 287).every(({ isLearning, score }) => isLearning && score === 0)).toBe(true);
    expect(verdicts[288]?.isLearning).toBe(false);
  });

  it('learns the hour of a job: from the third day on it is no news, and at another hour it is', () => {
    const job = (hour: number) => (step: number, value: number) =>
      Math.floor((step % DAY_STEPS) / 12) === hour && step % 12 < 3 ? value + 40 : value;
    const known = steady(8 * DAY_STEPS, job(6));
    expect(beginnings(verdictsOf(known)).filter(({ step }) => step > 4 * DAY_STEPS)).toEqual([]);
    const elsewhere = 7 * DAY_STEPS + 15 * 12;
    const moved = known.map((value, step) =>
      step >= elsewhere && step < elsewhere + 3 ? value + 40 : value,
    );
    const scores = (values: number[]) =>
      Math.max(
        ...verdictsOf(values)
          .slice(elsewhere, elsewhere + 6)
          .map(({ score }) => score),
      );
    expect(scores(moved)).toBeGreaterThan(2 * scores(known));
  });
});

describe('an episode', () => {
  it('ends when all is as usual again, some steps later', () => {
    const verdicts = verdictsOf(steady(1700, (step, value) => (step === FAULT ? 90 : value)));
    const end = verdicts.findIndex(({ change }, step) => step > FAULT && change !== undefined);
    expect(verdicts[end]).toMatchObject({ change: 'calm', isAnomalous: false });
    expect(end).toBeLessThan(FAULT + 40);
    const during = verdicts.slice(FAULT, end);
    expect(
      during.every(
        ({ isAnomalous, episode }) => isAnomalous && episode?.sinceMs === MONDAY_MS + FAULT * stepMs,
      ),
    ).toBe(true);
  });

  it('ends within a day of steps after a level changed for good, and the new level is usual then', () => {
    const verdicts = verdictsOf(steady(3000, (step, value) => (step >= FAULT ? value + 30 : value)));
    const ends = verdicts.flatMap(({ change }, step) =>
      change === 'calm' || change === 'adapted' ? [step] : [],
    );
    expect(ends.some((step) => step > FAULT && step <= FAULT + DAY_STEPS)).toBe(true);
    expect(verdicts.slice(FAULT + 2 * DAY_STEPS).some(({ isAnomalous }) => isAnomalous)).toBe(false);
    expect(verdicts.at(-1)?.expected?.low).toBeGreaterThan(55);
    expect(verdicts.at(-1)?.expected?.high).toBeLessThan(85);
  });

  it('of a value that is stuck for good is adapted to; one of missing values goes on', () => {
    const stuck = verdictsOf(steady(3000, (step, value) => (step >= FAULT ? 41 : value)));
    expect(
      stuck.some(({ change }, step) => step > FAULT && change !== undefined && change !== 'begins'),
    ).toBe(true);
    expect(stuck.at(-1)?.isAnomalous).toBe(false);
    expect(beginnings(stuck).filter(({ step, kind }) => step > FAULT && kind === 'stuck')).toHaveLength(1);
    const gone = verdictsOf(steady(3000, (step, value) => (step >= FAULT ? Number.NaN : value)));
    expect(gone.at(-1)).toMatchObject({ isAnomalous: true, episode: { kind: 'missing' } });
  });

  it('of a gap is seen where nobody told of the steps in between', () => {
    const detector = new AnomalyDetector({ stepMs });
    for (const [step, value] of steady(1000).entries()) detector.push(value, MONDAY_MS + step * stepMs);
    expect(detector.push(40, MONDAY_MS + 1100 * stepMs)).toMatchObject({
      change: 'begins',
      episode: { kind: 'missing', reason: 'no value for 100 steps; the longest gap before was 0' },
    });
    expect(detector.isAnomalous).toBe(true);
  });
});

describe('times that are not in order', () => {
  it('a step that is known already, or an earlier one, changes nothing', () => {
    const plain = new AnomalyDetector({ stepMs });
    const disturbed = new AnomalyDetector({ stepMs });
    for (const [step, value] of steady(600).entries()) {
      const startMs = MONDAY_MS + step * stepMs;
      const verdict = plain.push(value, startMs);
      expect(disturbed.push(value, startMs)).toEqual(verdict);
      if (step % 50 !== 49) continue;
      expect(disturbed.push(1e9, startMs)).toMatchObject({ score: 0, change: undefined });
      expect(disturbed.push(1e9, MONDAY_MS)).toMatchObject({ score: 0, change: undefined });
    }
  });

  it('goes on from a clock that was set back', () => {
    const detector = new AnomalyDetector({ stepMs });
    const values = steady(800, (step, value) => (step === 700 ? 500 : value));
    const timeOf = (step: number) => MONDAY_MS + (step < 400 ? step : step - 300) * stepMs;
    const found = values.some(
      (value, step) => detector.push(value, timeOf(step)).change === 'begins' && step === 700,
    );
    expect(found).toBe(true);
  });
});

const anyValue = fc.oneof(
  fc.double({ noDefaultInfinity: true }),
  fc.constantFrom(0, -0, 1e308, -1e308, 5e-324, Number.MAX_VALUE, -Number.MAX_VALUE),
  fc.integer({ min: -3, max: 3 }),
);

describe('any series', () => {
  it('gets scores from 0 to 1, finite bounds and one beginning for each end', () => {
    fc.assert(
      fc.property(fc.array(anyValue, { minLength: 1, maxLength: 40 }), fc.nat(), (pattern, seed) => {
        const random = lehmer(seed + 1);
        const values = Array.from({ length: 500 }, () => pattern[Math.floor(random() * pattern.length)] ?? 0);
        let isOn = false;
        for (const { score, expected, change, isAnomalous, episode } of verdictsOf(values)) {
          expect(score).toBeGreaterThanOrEqual(0);
          expect(score).toBeLessThanOrEqual(1);
          if (expected !== undefined) {
            expect(Number.isFinite(expected.low) && Number.isFinite(expected.high)).toBe(true);
            expect(expected.low).toBeLessThanOrEqual(expected.high);
          }
          if (change !== undefined) expect(isOn).toBe(change !== 'begins');
          if (change === 'begins') expect(score).toBeGreaterThanOrEqual(ALARM_SCORE);
          isOn = isAnomalous;
          if (episode !== undefined) expect(episode.reason).not.toMatch(/NaN|Infinity|undefined/);
        }
      }),
      { numRuns: 40 },
    );
  });

  it('gets the same verdicts when all values are multiplied', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: -40, max: 40 }),
        fc.integer({ min: 1, max: 1_000_000 }),
        (power, seed) => {
          const normal = normalFrom(lehmer(seed));
          const values = Array.from({ length: 700 }, (_, step) => 40 + normal() * (step % 97 === 0 ? 30 : 2));
          // Powers of two multiply without rounding.
          const scaled = verdictsOf(values.map((value) => value * 2 ** power));
          const plain = verdictsOf(values);
          expect(scaled.map(({ score }) => score)).toEqual(plain.map(({ score }) => score));
          expect(scaled.at(-1)?.expected?.high).toBe((plain.at(-1)?.expected?.high ?? 0) * 2 ** power);
        },
      ),
      { numRuns: 10 },
    );
  });

  it('goes on after a restore as if nothing had been, at any moment', () => {
    const values = steady(1700, (step, value) => {
      if (step % 211 === 7) return Number.NaN;
      return isDuring(step) ? value + 30 : value;
    });
    fc.assert(
      // Also right before a step that has no value.
      fc.property(
        fc.oneof(fc.integer({ min: 0, max: values.length - 2 }), fc.constant(7 * 211 + 7)),
        (moment) => {
          const first = new AnomalyDetector({ stepMs });
          for (const [step, value] of values.slice(0, moment).entries())
            first.push(value, MONDAY_MS + step * stepMs);
          const second = AnomalyDetector.restore({ stepMs }, first.save());
          for (const [offset, value] of values.slice(moment, moment + 200).entries()) {
            const startMs = MONDAY_MS + (moment + offset) * stepMs;
            expect(second?.push(value, startMs)).toEqual(first.push(value, startMs));
          }
          expect(second?.save()).toEqual(first.save());
        },
      ),
      { numRuns: 15 },
    );
  });
});

describe('a saved state', () => {
  const detector = new AnomalyDetector({ stepMs });
  for (const [step, value] of steady(1000).entries()) detector.push(value, MONDAY_MS + step * stepMs);
  const state = detector.save();

  it('is small', () => {
    expect(state.length).toBeLessThan(10_000);
  });

  it('is not restored where it is cut off, of another version, or no state', () => {
    expect(AnomalyDetector.restore({ stepMs }, state)).toBeDefined();
    const other = state.slice();
    other[0] = 99;
    const wild = state.slice();
    wild.fill(0xff, wild.length - 8);
    for (const bytes of [state.slice(0, -3), state.slice(0, 100), new Uint8Array(), other, wild])
      expect(AnomalyDetector.restore({ stepMs }, bytes)).toBeUndefined();
  });

  it('that is damaged anywhere is refused or gives a detector that works', () => {
    fc.assert(
      fc.property(fc.nat({ max: state.length - 1 }), fc.integer({ min: 1, max: 255 }), (at, flip) => {
        const bytes = state.slice();
        bytes[at] = (bytes[at] ?? 0) ^ flip;
        const restored = AnomalyDetector.restore({ stepMs }, bytes);
        for (let step = 1000; step < 1010; step += 1)
          expect(restored?.push(40, MONDAY_MS + step * stepMs).score ?? 0).toBeLessThanOrEqual(1);
      }),
      { numRuns: 100 },
    );
  });
});
