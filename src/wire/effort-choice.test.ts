import { describe, expect, it } from 'vitest';
import { EffortChoice } from './effort-choice.ts';
import type { Effort } from './page-codec.ts';

const GBIT_BYTES_PER_SECOND = 1e9 / 8;

/** What was chosen how often, where packing costs what `costUs` says. */
function chosen(linkBytesPerSecond: number, costUs: Record<Effort, number>): Map<Effort, number> {
  const choice = new EffortChoice();
  const bytes = { 0: 400, 1: 210, 2: 195 };
  const counts = new Map<Effort, number>();
  for (let batch = 0; batch < 640; batch += 1) {
    const effort = choice.choose({ linkBytesPerSecond });
    counts.set(effort, (counts.get(effort) ?? 0) + 1);
    choice.note({ effort, pages: 100, bytes: 100 * bytes[effort], elapsedMs: costUs[effort] / 10 });
  }
  return counts;
}

function mostChosen(linkBytesPerSecond: number, costUs = { 0: 1, 1: 1.7, 2: 2.6 }): Effort | undefined {
  return [...chosen(linkBytesPerSecond, costUs)].toSorted(([, a], [, b]) => b - a)[0]?.[0];
}

describe('the effort that pages are packed with', () => {
  it('is the least on a link that nothing limits, the most on a slow one', () => {
    expect(mostChosen(Number.POSITIVE_INFINITY)).toBe(0);
    expect(mostChosen(GBIT_BYTES_PER_SECOND)).toBe(1);
    expect(mostChosen(GBIT_BYTES_PER_SECOND / 100)).toBe(2);
  });

  it('becomes less where the CPU turns out to be slow', () => {
    expect(mostChosen(GBIT_BYTES_PER_SECOND, { 0: 1, 1: 10, 2: 20 })).toBe(0);
  });

  it('is another one at times, so that it is noticed when that has become better', () => {
    const counts = chosen(GBIT_BYTES_PER_SECOND, { 0: 1, 1: 1.7, 2: 2.6 });
    expect([...counts.keys()].toSorted()).toEqual([0, 1, 2]);
    // All but a few: what others cost has to be learnt as well.
    expect(counts.get(1)).toBeGreaterThan(560);
    expect(Math.min(counts.get(0) ?? 0, counts.get(2) ?? 0)).toBeGreaterThan(5);
    expect(mostChosen(GBIT_BYTES_PER_SECOND, { 0: 1, 1: 1.7, 2: 0.5 })).toBe(2);
  });

  it('is not judged by batches of a few pages', () => {
    const choice = new EffortChoice();
    for (let batch = 0; batch < 100; batch += 1)
      choice.note({ effort: 0, pages: 2, bytes: 8192, elapsedMs: 5 });
    expect(choice.choose({ linkBytesPerSecond: Number.POSITIVE_INFINITY })).toBe(0);
  });
});
