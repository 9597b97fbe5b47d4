import { describe, expect, it } from 'vitest';
import { parseGuestStatistics } from './guest-statistics.ts';

/** As QEMU answers, with what a guest did not say as all ones. */
const answer = (stats: Record<string, unknown>, lastUpdate = 1_700_000_000) => ({
  stats: { 'stat-major-faults': 144, 'stat-swap-in': 0, ...stats },
  'last-update': lastUpdate,
});

describe('what a guest says of its memory', () => {
  it('is in bytes', () => {
    const stats = { 'stat-free-memory': 5, 'stat-available-memory': 9, 'stat-total-memory': 10 };
    expect(parseGuestStatistics(answer(stats))).toMatchObject({ availableBytes: 9, freeBytes: 5 });
  });

  it('is only what it has said', () => {
    // Number(2n ** 64n - 1n), as JSON brings it.
    const stats = { 'stat-free-memory': 18_446_744_073_709_552_000, 'stat-available-memory': 9 };
    expect(parseGuestStatistics(answer(stats))).toMatchObject({ availableBytes: 9, freeBytes: undefined });
    expect(parseGuestStatistics(answer({}))).toMatchObject({
      availableBytes: undefined,
      freeBytes: undefined,
    });
  });

  it.each([undefined, null, 7, {}, { stats: 7, 'last-update': 1 }, answer({ 'stat-free-memory': 5 }, 0)])(
    'is nothing in %j',
    (value) => expect(parseGuestStatistics(value)).toBeUndefined(),
  );
});
