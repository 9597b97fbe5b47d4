import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bestEffort, EffortChoice } from './effort-choice.ts';
import type { Effort } from './page-codec.ts';

const GBIT_BYTES_PER_SECOND = 1e9 / 8;
const COST_US: Record<Effort, number> = { 0: 1, 1: 1.7, 2: 4, 3: 8 };
const BYTES: Record<Effort, number> = { 0: 400, 1: 210, 2: 110, 3: 85 };

/** What was chosen how often, where packing costs what `costUs` says. */
function chosen(linkBytesPerSecond: number, costUs = COST_US): Map<Effort, number> {
  const choice = new EffortChoice();
  const counts = new Map<Effort, number>();
  for (let batch = 0; batch < 640; batch += 1) {
    const effort = choice.choose({ linkBytesPerSecond });
    counts.set(effort, (counts.get(effort) ?? 0) + 1);
    choice.note({ effort, pages: 100, bytes: 100 * BYTES[effort], elapsedMs: costUs[effort] / 10 });
  }
  return counts;
}

function mostChosen(linkBytesPerSecond: number, costUs = COST_US): Effort | undefined {
  return [...chosen(linkBytesPerSecond, costUs)].toSorted(([, a], [, b]) => b - a)[0]?.[0];
}

describe('the effort that pages are packed with', () => {
  it('is the least on a link that nothing limits, the most on a slow one', () => {
    expect(mostChosen(Number.POSITIVE_INFINITY)).toBe(0);
    expect(mostChosen(GBIT_BYTES_PER_SECOND)).toBe(1);
    expect(mostChosen(GBIT_BYTES_PER_SECOND / 10)).toBe(2);
    expect(mostChosen(GBIT_BYTES_PER_SECOND / 100)).toBe(3);
  });

  it('becomes less where the CPU turns out to be slow', () => {
    expect(mostChosen(GBIT_BYTES_PER_SECOND, { 0: 1, 1: 10, 2: 20, 3: 30 })).toBe(0);
    expect(mostChosen(GBIT_BYTES_PER_SECOND / 100, { 0: 1, 1: 10, 2: 200, 3: 300 })).toBe(1);
  });

  it('is another one at times, so that it is noticed when that has become better', () => {
    const counts = chosen(GBIT_BYTES_PER_SECOND);
    // All but a few: what others cost has to be learnt as well.
    expect(counts.get(1)).toBeGreaterThan(560);
    expect(Math.min(counts.get(0) ?? 0, counts.get(2) ?? 0)).toBeGreaterThan(5);
    // Far from what suits the link nothing is tried: it could cost a lot.
    expect(counts.get(3) ?? 0).toBeLessThan(3);
    expect(mostChosen(GBIT_BYTES_PER_SECOND, { 0: 1, 1: 1.7, 2: 0.5, 3: 3 })).toBe(2);
  });

  it('is not judged by batches of a few pages', () => {
    const choice = new EffortChoice();
    for (let batch = 0; batch < 100; batch += 1)
      choice.note({ effort: 0, pages: 2, bytes: 8192, elapsedMs: 5 });
    expect(choice.choose({ linkBytesPerSecond: Number.POSITIVE_INFINITY })).toBe(0);
  });
});

const measured = fc.record({
  packUs: fc.double({ min: 0.5, max: 50, noNaN: true }),
  bytes: fc.integer({ min: 20, max: 4098 }),
});
const experience = fc.record({ 0: measured, 1: measured, 2: measured, 3: measured });
const link = fc.double({ min: 1e5, max: 1e10, noNaN: true });
const present = fc.constantFrom<Effort>(0, 1, 2, 3);

describe('the best effort', () => {
  it('is within a tenth of the soonest, and stays once it is chosen', () => {
    fc.assert(
      fc.property(experience, link, present, (known, linkBytesPerSecond, present) => {
        const costUs = (effort: Effort) =>
          known[effort].packUs + (known[effort].bytes / linkBytesPerSecond) * 1e6;
        const chosen = bestEffort(known, { present, linkBytesPerSecond });
        const least = Math.min(...([0, 1, 2, 3] as const).map(costUs));
        expect(costUs(chosen)).toBeLessThanOrEqual(least / 0.899);
        expect(bestEffort(known, { present: chosen, linkBytesPerSecond })).toBe(chosen);
      }),
    );
  });

  it('does not take turns where a link goes up and down by a little', () => {
    const known = {
      0: { packUs: 1, bytes: 400 },
      1: { packUs: 2, bytes: 200 },
      2: { packUs: 50, bytes: 190 },
      3: { packUs: 60, bytes: 180 },
    };
    // Here 0 and 1 are as good as each other.
    const evenBytesPerSecond = 200e6;
    let present: Effort = 1;
    const seen = new Set<Effort>();
    for (let turn = 0; turn < 100; turn += 1) {
      const linkBytesPerSecond = evenBytesPerSecond * (turn % 2 === 0 ? 1.1 : 0.9);
      present = bestEffort(known, { present, linkBytesPerSecond });
      seen.add(present);
    }
    expect([...seen]).toEqual([1]);
    // What is clearly better is taken (control).
    expect(bestEffort(known, { present, linkBytesPerSecond: evenBytesPerSecond * 2 })).toBe(0);
  });
});
