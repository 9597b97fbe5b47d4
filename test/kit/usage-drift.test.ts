import { describe, expect, it } from 'vitest';
import type { HostUsage } from './host-usage.ts';
import { driftOf } from './usage-drift.ts';

const STEADY: HostUsage = {
  processes: { keeper: 1, qemu: 1, site: 1 },
  descriptors: { keeper: 50, site: 22 },
  anonymousBytes: { keeper: 95e6, site: 57e6 },
  sharedMemoryBytes: 130 * 2 ** 20,
  files: ['vm/keeper.json'],
  devices: ['lo', 'us-redis'],
};
const OPTIONS = { memoryBytes: 128 * 2 ** 20 };
const rounds = (last: HostUsage) => [...Array<HostUsage>(6).fill(STEADY), last, last];

describe('what a host uses', () => {
  it('is no drift as long as it is what it was', () => {
    expect(driftOf(rounds(STEADY), OPTIONS)).toEqual([]);
  });

  it.each<[string, Partial<HostUsage>]>([
    ['a process', { processes: { keeper: 1, qemu: 2, site: 1 } }],
    ['a kind of process', { processes: { keeper: 1, qemu: 1, site: 1, tail: 1 } }],
    ['a file', { files: ['vm/keeper.json', 'vm/left'] }],
    ['a device', { devices: ['lo', 'us-redis', 'us-redis#'] }],
    ['descriptors', { descriptors: { keeper: 60, site: 22 } }],
    ['memory of a keeper', { anonymousBytes: { keeper: 200e6, site: 57e6 } }],
    ['memory of the process that answers for it', { anonymousBytes: { keeper: 95e6, site: 160e6 } }],
    ['shared memory', { sharedMemoryBytes: 150 * 2 ** 20 }],
  ])('has drifted by %s', (_what, change) => {
    expect(driftOf(rounds({ ...STEADY, ...change }), OPTIONS)).toHaveLength(1);
  });
});
