import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ManualClock } from './api-fixture.ts';
import { FailureTally, type Rest } from './failure-tally.ts';

function tallying(more: { toldMax?: number; keysMax?: number } = {}) {
  const clock = new ManualClock();
  const rests: Rest<number>[] = [];
  const tally = new FailureTally<number>({ ...more, clock, onRest: (rest) => rests.push(rest) });
  return { clock, rests, tally };
}

describe('what fails in a loop', () => {
  it('is told twenty times a minute, then as one number when the minute is over', () => {
    const { clock, rests, tally } = tallying();
    const told = Array.from({ length: 50 }, (_, index) => tally.note('a', index));
    expect(told.filter(Boolean)).toHaveLength(20);
    expect([tally.isFull('a'), tally.isFull('b'), rests]).toEqual([true, false, []]);
    clock.advance(59_999);
    expect([tally.note('b', 0), rests]).toEqual([true, []]);
    clock.advance(1);
    expect(rests).toEqual([{ key: 'a', count: 30, last: 49 }]);
    expect([tally.isFull('a'), tally.note('a', 50)]).toEqual([false, true]);
  });

  it('is counted whole, whoever it is, whatever time goes by, and in bounded memory', () => {
    const step = fc.tuple(fc.constantFrom('a', 'b', 'c', 'd', 'e'), fc.nat({ max: 40_000 }));
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const { clock, rests, tally } = tallying({ toldMax: 3, keysMax: 3 });
        let told = 0;
        for (const [key, ms] of steps) {
          if (tally.note(key, 0)) told += 1;
          clock.advance(ms);
        }
        tally[Symbol.dispose]();
        expect(told + rests.reduce((sum, { count }) => sum + count, 0)).toBe(steps.length);
        // Nothing is left that would fire later.
        const before = rests.length;
        clock.advance(120_000);
        expect(rests).toHaveLength(before);
      }),
    );
  });

  it('by ever others is told early rather than remembered without end', () => {
    const { rests, tally } = tallying({ toldMax: 1, keysMax: 2 });
    for (const key of ['a', 'a', 'b', 'b', 'c', 'c']) tally.note(key, 0);
    expect(rests).toEqual([{ key: 'a', count: 1, last: 0 }]);
  });
});
