import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Forecaster, HORIZONS_MS } from './forecaster.ts';
import { LEVELS } from './quantile-forecast.ts';

const SECOND_MS = 1000;
const HOUR_MS = 3_600_000;
const START_MS = Date.UTC(2026, 0, 5);

/** Feeds one sample after the other; `valueAt` knows the second since the start. */
function feed(forecaster: Forecaster, { seconds, every = 1, from = 0, valueAt }: FeedOptions): Forecaster {
  for (let second = from; second < from + seconds; second += every)
    forecaster.add(valueAt(second), timeOf(second));
  return forecaster;
}

interface FeedOptions {
  readonly seconds: number;
  readonly every?: number;
  readonly from?: number;
  readonly valueAt: (second: number) => number;
}

function timeOf(second: number): { wallMs: number; monotonicMs: number } {
  return { wallMs: START_MS + second * SECOND_MS, monotonicMs: 12_345 + second * SECOND_MS };
}

function valuesOf(forecaster: Forecaster): number[] {
  return [...(forecaster.forecast()?.values ?? [])];
}

/** Deterministic, and not alike from second to second. */
function noise(second: number): number {
  return (Math.abs(Math.imul(Math.floor(second) + 1, 2_654_435_761)) % 1000) / 1000;
}

function expectForecast(values: readonly number[]): void {
  expect(values.length).toBe(HORIZONS_MS.length * LEVELS.length);
  for (const [at, value] of values.entries()) {
    expect(Number.isFinite(value)).toBe(true);
    if (at % LEVELS.length > 0) expect(value).toBeGreaterThanOrEqual(values[at - 1] ?? 0);
  }
}

describe('forecasts of a metric', () => {
  it('are there for all horizons within the first minute of a VM, and get better with its first hours', () => {
    const forecaster = new Forecaster();
    expect(forecaster.forecast()).toBeUndefined();
    const valueAt = (second: number) => 40 + noise(second);
    feed(forecaster, { seconds: 11, valueAt });
    expectForecast(valuesOf(forecaster));
    const width = () => {
      const row = forecaster.forecast({ horizonsMs: [HOUR_MS] })?.values;
      return (row?.[8] ?? 0) - (row?.[0] ?? 0);
    };
    const early = width();
    feed(forecaster, { from: 11, seconds: 3 * 3600, every: 1, valueAt });
    expectForecast(valuesOf(forecaster));
    expect(width()).toBeLessThan(early / 3);
    expect(width()).toBeLessThan(2);
  });

  it.each([0.1, 1, 10, 60])(
    'are there for all horizons with a sample every %d s, and never surprised by a steady level',
    (every) => {
      const forecaster = feed(new Forecaster(), {
        seconds: 5400,
        every,
        valueAt: (second) => 40 + noise(second),
      });
      const values = valuesOf(forecaster);
      expectForecast(values);
      expect(Math.min(...values)).toBeGreaterThan(38);
      expect(Math.max(...values)).toBeLessThan(43);
    },
  );

  it('learn nothing from samples that they are told not to learn from', () => {
    const valueAt = (second: number) => 40 + noise(second);
    const [plain, odd] = [new Forecaster(), new Forecaster()];
    for (const one of [plain, odd]) feed(one, { seconds: 7200, every: 5, valueAt });
    for (let second = 7200; second < 14_400; second += 5) {
      plain.add(valueAt(second), timeOf(second));
      odd.add(400, timeOf(second), { learn: false });
    }
    // A day later, when the hours of the anomaly are in few windows, nothing is left of it but those.
    for (const one of [plain, odd]) feed(one, { from: 14_400, seconds: 90_000, every: 5, valueAt });
    const horizonsMs = [60_000, HOUR_MS];
    const [calm, after] = [plain, odd].map((one) => one.forecast({ horizonsMs })?.values ?? []);
    for (const column of [0, 5, 8]) expect(after?.[column]).toBeCloseTo(calm?.[column] ?? 0, 0);
  });

  it('speak in seconds about the next minutes, and in minutes about the day', () => {
    const forecaster = feed(new Forecaster(), { seconds: 3600, every: 5, valueAt: () => 1 });
    expect(forecaster.forecast({ horizonsMs: [5000, 900_000, 901_000, 24 * HOUR_MS] })?.stepsMs).toEqual([
      5000, 5000, 300_000, 300_000,
    ]);
  });

  it('of peaks see bursts that means do not', () => {
    const bursts = (second: number) => (second % 150 < 3 ? 100 : 5);
    const forecaster = feed(new Forecaster(), { seconds: 24 * 3600, every: 1, valueAt: bursts });
    const at = { horizonsMs: [2 * HOUR_MS] };
    expect(forecaster.forecast(at)?.values[8]).toBeLessThan(10);
    expect(forecaster.peak?.values[4]).toBeCloseTo(100, 0);
  });

  it('are the same whatever the wall clock did', () => {
    const valueAt = (second: number) => 10 + noise(second);
    const steady = feed(new Forecaster(), { seconds: 7200, valueAt });
    const jumping = new Forecaster();
    for (let second = 0; second < 7200; second += 1) {
      const { wallMs, monotonicMs } = timeOf(second);
      const jumpMs = second > 4000 ? -5 * HOUR_MS : second > 2000 ? 3 * HOUR_MS : 0;
      jumping.add(valueAt(second), { wallMs: wallMs + jumpMs, monotonicMs });
    }
    expect(valuesOf(jumping)).toEqual(valuesOf(steady));
  });

  it('go on after a boot of the host, which begins its monotonic clock anew', () => {
    const valueAt = (second: number) => 10 + noise(second);
    const steady = feed(new Forecaster(), { seconds: 7200, valueAt });
    const booted = feed(new Forecaster(), { seconds: 4000, valueAt });
    for (let second = 4000; second < 7200; second += 1)
      booted.add(valueAt(second), {
        wallMs: timeOf(second).wallMs,
        monotonicMs: (second - 3990) * SECOND_MS,
      });
    expect(valuesOf(booted)).toEqual(valuesOf(steady));
  });

  it('are the same where samples come twice, and one that is late counts where it belongs', () => {
    const valueAt = (second: number) => 10 + noise(second);
    const steady = feed(new Forecaster(), { seconds: 900, valueAt });
    const doubled = new Forecaster();
    for (let second = 0; second < 900; second += 1) {
      doubled.add(valueAt(second), timeOf(second));
      doubled.add(valueAt(second), timeOf(second));
    }
    expect(valuesOf(doubled)).toEqual(valuesOf(steady));
    expect(doubled.dropped).toBe(900);
    const swapped = new Forecaster();
    // Seconds 1 and 2 of each step of 5 s come in the wrong order.
    for (let second = 0; second < 900; second += 1) {
      const late = second % 5 === 1 ? second + 1 : second % 5 === 2 ? second - 1 : second;
      swapped.add(valueAt(late), timeOf(late));
    }
    for (const [at, value] of valuesOf(swapped).entries())
      expect(value).toBeCloseTo(valuesOf(steady)[at] ?? 0, 3);
    expect(swapped.dropped).toBe(0);
  });

  it('go on after hours without samples, and after more than is remembered', () => {
    const valueAt = () => 30;
    const forecaster = feed(new Forecaster(), { seconds: 7200, every: 5, valueAt });
    for (const hours of [5, 24 * 40]) {
      feed(forecaster, { from: hours * 3600, seconds: 600, every: 5, valueAt });
      expectForecast(valuesOf(forecaster));
      expect(forecaster.forecast()?.values[5]).toBeCloseTo(30);
    }
  });

  it('are finite and never cross, whatever samples come at whatever times', () => {
    const sample = fc.tuple(
      fc.double(),
      fc.oneof(fc.integer({ min: -5000, max: 100_000 }), fc.integer({ min: -1e13, max: 1e10 })),
      fc.integer({ min: -1e7, max: 1e7 }),
    );
    fc.assert(
      fc.property(fc.array(sample, { maxLength: 40 }), (samples) => {
        const forecaster = new Forecaster();
        let monotonicMs = 1e6;
        for (const [value, passedMs, jumpMs] of samples) {
          monotonicMs = Math.max(0, monotonicMs + passedMs);
          forecaster.add(value, { monotonicMs, wallMs: START_MS + monotonicMs + (jumpMs > 0 ? 0 : jumpMs) });
        }
        const values = valuesOf(forecaster);
        if (values.length > 0) expectForecast(values);
        expect(forecaster.faults).toEqual([]);
      }),
      { numRuns: 40 },
    );
  });

  it('are the same after they were saved and restored, in the middle of a step', () => {
    const valueAt = (second: number) => 10 + noise(second);
    const forecaster = feed(new Forecaster(), { seconds: 26 * 3600 + 7, every: 7, valueAt });
    const restored = Forecaster.restore(forecaster.save());
    if (restored.kind !== 'restored') throw restored.error;
    // Some models save what they have learnt in single precision.
    for (const [at, value] of valuesOf(restored.forecaster).entries())
      expect(value).toBeCloseTo(valuesOf(forecaster)[at] ?? 0, 6);
    expect(restored.forecaster.peak).toEqual(forecaster.peak);
    for (const one of [forecaster, restored.forecaster])
      feed(one, { from: 26 * 3600 + 14, seconds: 21, valueAt });
    for (const [at, value] of valuesOf(restored.forecaster).entries())
      expect(value).toBeCloseTo(valuesOf(forecaster)[at] ?? 0, 1);
  });

  it('begin anew where what was saved is damaged', () => {
    const bytes = feed(new Forecaster(), { seconds: 600, valueAt: noise }).save();
    fc.assert(
      fc.property(fc.nat(bytes.length - 1), fc.integer({ min: 1, max: 255 }), (at, mask) => {
        const damaged = bytes.slice();
        damaged[at] = (damaged[at] ?? 0) ^ mask;
        expect(Forecaster.restore(damaged).kind).toBe('unreadable');
      }),
    );
    expect(Forecaster.restore(bytes.subarray(0, 100)).kind).toBe('unreadable');
    expect(Forecaster.restore(bytes).kind).toBe('restored');
  });
});
