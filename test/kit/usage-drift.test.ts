import { describe, expect, it } from 'vitest';
import type { HostUsage } from './host-usage.ts';
import { driftOf } from './usage-drift.ts';

const STEADY: HostUsage = {
  processes: { keeper: 1, qemu: 1, site: 1 },
  descriptors: { keeper: 50, site: 22 },
  anonymousBytes: { keeper: 95e6, site: 57e6 },
  sharedMemoryBytes: 130 * 2 ** 20,
  files: ['vm/keeper.json', 'vm/epoch-#', 'vm/epoch-#'],
  devices: ['lo', 'us-redis'],
};
const OPTIONS = { memoryBytes: 128 * 2 ** 20 };
const ROUNDS = 12;

/** What is different on one of the two hosts, which have turns, from a round on; until another one. */
function rounds(change: Partial<HostUsage>, { from = ROUNDS / 2, to = ROUNDS } = {}): HostUsage[] {
  return Array.from({ length: ROUNDS }, (_, round) =>
    round % 2 === 1 && round >= from && round < to ? { ...STEADY, ...change } : STEADY,
  );
}

const CHANGES: [string, Partial<HostUsage>][] = [
  ['a process', { processes: { keeper: 1, qemu: 2, site: 1 } }],
  ['a kind of process', { processes: { keeper: 1, qemu: 1, site: 1, tail: 1 } }],
  ['a file', { files: [...STEADY.files, 'vm/left'] }],
  ['a file of a kind', { files: [...STEADY.files, 'vm/epoch-#'] }],
  ['a device', { devices: ['lo', 'us-redis', 'us-redis#'] }],
  ['descriptors', { descriptors: { keeper: 60, site: 22 } }],
  ['memory of a keeper', { anonymousBytes: { keeper: 200e6, site: 57e6 } }],
  ['memory of the process that answers for it', { anonymousBytes: { keeper: 95e6, site: 160e6 } }],
  ['shared memory', { sharedMemoryBytes: 150 * 2 ** 20 }],
];

describe('what a host uses', () => {
  it('is no drift as long as it is what it was', () => {
    expect(driftOf(rounds({}), OPTIONS)).toEqual([]);
  });

  it.each(CHANGES)('has drifted by %s that stays', (_what, change) => {
    expect(driftOf(rounds(change), OPTIONS)).toHaveLength(1);
  });

  it.each(CHANGES)('has not drifted by %s that is gone again', (_what, change) => {
    expect(driftOf(rounds(change, { from: 9, to: 10 }), OPTIONS)).toEqual([]);
  });
});
