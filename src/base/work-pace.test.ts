import { describe, expect, it } from 'vitest';
import { systemClock } from './clock.ts';
import { WorkPace } from './work-pace.ts';

describe('work that is done in pieces', () => {
  it.each([0.5, 0.25, 0.8])('takes a share of %s of the time', async (share) => {
    let nowMs = 0;
    const clock = {
      ...systemClock,
      nowMs: () => nowMs,
      sleep: async (ms: number) => {
        nowMs += ms;
      },
    };
    const pace = new WorkPace(clock, { share });
    const pieces = [3, 0.1, 0.2, 7, 0.5, 30, 1, 1, 1, 8];
    for (const ms of pieces) {
      await pace.work(() => {
        nowMs += ms;
      });
    }
    const workedMs = pieces.reduce((sum, ms) => sum + ms, 0);
    expect(workedMs / nowMs).toBeCloseTo(share, 1);
  });
});
