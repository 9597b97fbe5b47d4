import { describe, expect, it } from 'vitest';
import { OutputDoubt } from './output-doubt.ts';

describe('output of which it is not known whether the shadow sends it', () => {
  it('is told of when it waits for more than a second, once, and when it has left', () => {
    const doubt = new OutputDoubt();
    expect(doubt.goOn(5000)).toBeUndefined();
    doubt.begin(5000);
    doubt.begin(5500);
    expect([doubt.goOn(5999), doubt.goOn(6000), doubt.goOn(6050)]).toEqual([undefined, 1000, undefined]);
    expect(doubt.waitsMs(6100)).toBe(1100);
    expect(doubt.end(6100, 'right')).toBe(1100);
    expect(doubt.waitsMs(9000)).toBeNull();
  });

  it('for a moment is no news, and what came of it otherwise than by a word says itself', () => {
    const doubt = new OutputDoubt();
    doubt.begin(0);
    expect(doubt.end(99, 'word')).toBeUndefined();
    doubt.begin(200);
    expect(doubt.end(300, 'word')).toBe(100);
    doubt.begin(400);
    expect(doubt.end(900, 'right')).toBeUndefined();
    // Of the one before nothing is left.
    doubt.begin(10_000);
    expect(doubt.end(10_150, 'word')).toBe(150);
  });

  it('each time, as the shadow is far away, is told of once until a word comes in time', () => {
    const doubt = new OutputDoubt();
    doubt.begin(0);
    expect([doubt.mayAsk(0), doubt.mayAsk(1)]).toEqual([false, true]);
    expect([doubt.goOn(1500), doubt.end(2000, 'record')]).toEqual([1500, 2000]);
    expect(doubt.mayAsk(2001)).toBe(false);
    doubt.begin(3000);
    // Whenever that was sent: it is known to be far.
    expect(doubt.mayAsk(2500)).toBe(true);
    expect([doubt.goOn(4500), doubt.end(5000, 'record')]).toEqual([undefined, undefined]);
    expect(doubt.end(6000, 'word')).toBeUndefined();
    doubt.begin(7000);
    expect([doubt.mayAsk(6500), doubt.goOn(8000)]).toEqual([false, 1000]);
  });
});
