import { describe, expect, it } from 'vitest';
import { quantile, SampleWindow } from './sample-window.ts';

describe('a sample window', () => {
  it('gives quantiles of the recent samples and the maximum of all', () => {
    const window = new SampleWindow(100);
    window.add(1000);
    for (let value = 1; value <= 100; value += 1) window.add(value);
    expect(window.summary()).toEqual({ count: 101, p50: 50, p99: 99, max: 1000 });
  });

  it('answers zeros while it is empty', () => {
    expect(new SampleWindow(4).summary()).toEqual({ count: 0, p50: 0, p99: 0, max: 0 });
    expect(quantile([], 0.5)).toBe(0);
  });
});
