import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { dueAtMs, expired, phaseOf } from './snapshot-timing.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const vm = 'vm';

describe('the moments of a schedule', () => {
  it('do not depend on when a keeper looks, and each comes once', () => {
    const times = fc.array(fc.integer({ min: 1, max: 5 * HOUR_MS }), { minLength: 1, maxLength: 50 });
    fc.assert(
      fc.property(times, fc.string(), (waits, name) => {
        let wallMs = 1_700_000_000_000;
        let lastMs = wallMs;
        const taken: number[] = [];
        for (const waitMs of waits) {
          wallMs += waitMs;
          const dueMs = dueAtMs({ everyMs: HOUR_MS, vm: name, lastMs, wallMs });
          expect((dueMs - phaseOf(name, HOUR_MS)) % HOUR_MS).toBe(0);
          expect(dueMs).toBeGreaterThan(wallMs - HOUR_MS);
          expect(dueMs).toBeLessThanOrEqual(wallMs + HOUR_MS);
          if (dueMs > wallMs) continue;
          lastMs = wallMs;
          taken.push(Math.floor((wallMs - phaseOf(name, HOUR_MS)) / HOUR_MS));
        }
        // Of any hour at most one.
        expect(new Set(taken).size).toBe(taken.length);
      }),
    );
  });

  it('are made up for when one was missed, and only once however many were', () => {
    const wallMs = 1_700_000_000_000;
    const late = dueAtMs({ everyMs: HOUR_MS, vm, lastMs: wallMs - 30 * HOUR_MS, wallMs });
    expect(late).toBeLessThanOrEqual(wallMs);
    expect(dueAtMs({ everyMs: HOUR_MS, vm, lastMs: wallMs, wallMs })).toBeGreaterThan(wallMs);
  });

  it('go on when the clock was ahead', () => {
    const wallMs = 1_700_000_000_000;
    const dueMs = dueAtMs({ everyMs: HOUR_MS, vm, lastMs: wallMs + 1000 * DAY_MS, wallMs });
    expect(dueMs).toBeGreaterThan(wallMs);
    expect(dueMs).toBeLessThanOrEqual(wallMs + HOUR_MS);
  });

  it('are others for other VMs', () => {
    const phases = Array.from({ length: 64 }, (_, index) => phaseOf(`vm-${index}`, HOUR_MS));
    const minutes = new Set(phases.map((phase) => Math.floor(phase / 60_000)));
    expect(minutes.size).toBeGreaterThan(20);
  });
});

describe('what is kept', () => {
  /** Every six hours for ten days, the newest first. */
  const all = Array.from({ length: 40 }, (_, index) => ({
    savedAtMs: 100 * DAY_MS - 1 - index * 6 * HOUR_MS,
  }));

  it('is the newest ones, and the newest of each of the last days', () => {
    const gone = expired(all, { keep: 3, daily: 4 });
    const kept = all.filter((each) => !gone.includes(each));
    expect(kept.map((each) => all.indexOf(each))).toEqual([0, 1, 2, 4, 8, 12]);
  });

  it('is at least the newest, whatever is asked', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 50 }), fc.nat(20), fc.nat(40), (keep, daily, count) => {
        const some = all.slice(0, count);
        const gone = expired(some, { keep, daily });
        expect(gone).not.toContain(some[0]);
        expect(some.length - gone.length).toBeLessThanOrEqual(keep + daily);
        expect(some.length - gone.length).toBeGreaterThanOrEqual(Math.min(keep, some.length));
      }),
    );
  });
});
