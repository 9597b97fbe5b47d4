import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Reading } from './metric-source.ts';
import { type TimedReading, valuesOf } from './rates.ts';

const QEMU = { pid: 1 };
const read = (
  atMs: number,
  counters: Record<string, number>,
  { of = QEMU, gauges = {} }: Partial<Reading> = {},
): TimedReading => ({ atMs, reading: { of, counters, gauges } });

describe('what was read', () => {
  it('is growth per second since the reading before, and gauges as they are', () => {
    const before = read(1000, { 'cpu.usedCores': 3 });
    const now = read(3500, { 'cpu.usedCores': 4 }, { gauges: { 'memory.residentBytes': 7 } });
    expect(valuesOf(now, before)).toEqual({ 'cpu.usedCores': 0.4, 'memory.residentBytes': 7 });
  });

  it('says nothing of a counter that went back, that is new, or that is of another QEMU', () => {
    const before = read(0, { a: 10, b: 5 });
    expect(valuesOf(read(1000, { a: 4, b: 6, c: 9 }), before)).toEqual({ b: 1 });
    expect(valuesOf(read(1000, { a: 20, b: 6 }, { of: { pid: 2 } }), before)).toEqual({});
    expect(valuesOf(read(1000, { a: 20 }), undefined)).toEqual({});
    // Control: of the same one it would say that.
    expect(valuesOf(read(1000, { a: 20 }), before)).toEqual({ a: 10 });
  });

  it('is no rate where no time went by', () => {
    expect(valuesOf(read(5, { a: 2 }), read(5, { a: 1 }))).toEqual({});
    expect(valuesOf(read(4, { a: 2 }), read(5, { a: 1 }))).toEqual({});
  });

  it('is a share of at most 1, however the clocks behind it disagree', () => {
    expect(valuesOf(read(1000, { 'epoch.pausedShare': 1.02 }), read(0, { 'epoch.pausedShare': 0 }))).toEqual({
      'epoch.pausedShare': 1,
    });
  });

  it('is never negative, never NaN and never infinite, whatever sources and clocks say', () => {
    const numbers = fc.dictionary(fc.constantFrom('a', 'b', 'cpu.throttledShare'), fc.double());
    const reading = fc.record({
      atMs: fc.double(),
      reading: fc.record({ of: fc.constantFrom('one', 'two'), counters: numbers, gauges: numbers }),
    });
    fc.assert(
      fc.property(fc.array(reading, { minLength: 1, maxLength: 6 }), (readings) => {
        for (const [index, now] of readings.entries()) {
          for (const [name, value] of Object.entries(valuesOf(now, readings[index - 1]))) {
            expect(Number.isFinite(value) && value >= 0, `${name} = ${value}`).toBe(true);
            if (name.endsWith('Share')) expect(value).toBeLessThanOrEqual(1);
          }
        }
      }),
    );
  });

  it('adds up to what was counted, over any number of readings without a new beginning', () => {
    const steps = fc.array(fc.tuple(fc.integer({ min: 1, max: 60_000 }), fc.integer({ min: 0, max: 1e9 })), {
      minLength: 1,
      maxLength: 50,
    });
    fc.assert(
      fc.property(steps, (grown) => {
        let before = read(0, { a: 0 });
        let [sum, counted] = [0, 0];
        for (const [ms, growth] of grown) {
          counted += growth;
          const now = read(before.atMs + ms, { a: counted });
          sum += ((valuesOf(now, before).a ?? Number.NaN) * ms) / 1000;
          before = now;
        }
        expect(Math.abs(sum - counted)).toBeLessThanOrEqual(1e-6 * Math.max(1, counted));
      }),
    );
  });
});
