import { describe, expect, it } from 'vitest';
import { passageOf } from './sample-clock.ts';

const HOUR_MS = 3_600_000;
const before = { wallMs: 1_700_000_000_000, monotonicMs: 50 * HOUR_MS };

describe('the time between two samples', () => {
  it.each([
    ['both clocks agree', 1000, 1000, { kind: 'forward', ms: 1000 }],
    [
      'both clocks agree on a gap of hours',
      5 * HOUR_MS,
      5 * HOUR_MS + 1500,
      { kind: 'forward', ms: 5 * HOUR_MS },
    ],
    ['the wall clock was set forth', 1000, 9 * HOUR_MS, { kind: 'forward', ms: 1000 }],
    ['the wall clock was set back', 1000, -9 * HOUR_MS, { kind: 'forward', ms: 1000 }],
    ['the host was booted in between', -49 * HOUR_MS, 60_000, { kind: 'forward', ms: 60_000 }],
    ['another host was up for longer', 900 * HOUR_MS, 1000, { kind: 'forward', ms: 1000 }],
    ['another host has both clocks behind', -49 * HOUR_MS, -5000, { kind: 'forward', ms: 0 }],
    ['it was taken before the last one', -3000, -3000, { kind: 'late', ms: 3000 }],
    ['it is the same one', 0, 0, { kind: 'duplicate' }],
  ])('when %s', (_, steadyMs, wallMs, expected) => {
    const now = { wallMs: before.wallMs + wallMs, monotonicMs: before.monotonicMs + steadyMs };
    expect(passageOf(before, now)).toEqual(expected);
  });
});
