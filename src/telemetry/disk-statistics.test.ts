import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type DiskStatistics,
  diskReading,
  LATENCY_BOUNDARIES_NS,
  latencyQuantileNs,
} from './disk-statistics.ts';

const IDLE: DiskStatistics = {
  ...{ disk: 'disk0', readOps: 0, writeOps: 0, readBytes: 0, writeBytes: 0, busySeconds: 0 },
  latencies: [
    { boundaries: [10, 20], bins: [0, 0, 0] },
    { boundaries: [10, 20], bins: [0, 0, 0] },
  ],
};

const binsOf = (reads: number[], writes: number[]) => [
  { boundaries: [10_000_000, 20_000_000], bins: reads },
  { boundaries: [10_000_000, 20_000_000], bins: writes },
];

describe('disks', () => {
  it('are counted each by its name, and without latencies while nothing was done', () => {
    expect(diskReading('qemu', [{ ...IDLE, writeOps: 3, writeBytes: 4096, busySeconds: 0.5 }], [])).toEqual({
      of: 'qemu',
      counters: {
        'disk.disk0.readOpsPerSecond': 0,
        'disk.disk0.writeOpsPerSecond': 3,
        'disk.disk0.readBytesPerSecond': 0,
        'disk.disk0.writeBytesPerSecond': 4096,
        'disk.disk0.queueDepth': 0.5,
      },
      gauges: {},
    });
  });

  it('have the latencies of what was done since the last time, reads and writes together', () => {
    const before = [{ ...IDLE, latencies: binsOf([1000, 0, 0], [0, 0, 0]) }];
    const now = [{ ...IDLE, latencies: binsOf([1000, 5, 0], [0, 5, 0]) }];
    const { gauges } = diskReading('qemu', now, before);
    expect(gauges['disk.disk0.latencyP50Ms']).toBeCloseTo(15);
    expect(gauges['disk.disk0.latencyP99Ms']).toBeCloseTo(19.9);
    // Control: without what was before, nearly all would be quick.
    expect(diskReading('qemu', now, []).gauges['disk.disk0.latencyP50Ms']).toBeLessThan(10);
  });

  it('begin anew where a count went back', () => {
    const before = [{ ...IDLE, latencies: binsOf([9, 9, 9], [0, 0, 0]) }];
    const now = [{ ...IDLE, latencies: binsOf([0, 2, 0], [0, 0, 0]) }];
    expect(diskReading('qemu', now, before).gauges['disk.disk0.latencyP50Ms']).toBeCloseTo(15);
  });
});

describe('a quantile of latencies', () => {
  it('lies in the bucket of the request that it is of, and grows with its share', () => {
    const bins = fc.array(fc.nat(1000), { minLength: 62, maxLength: 62 });
    fc.assert(
      fc.property(bins, fc.array(fc.double({ min: 0, max: 1, noNaN: true })), (counts, shares) => {
        const histogram = { boundaries: LATENCY_BOUNDARIES_NS, bins: counts };
        const found = shares.toSorted((a, b) => a - b).map((q) => latencyQuantileNs(histogram, q));
        const total = counts.reduce((sum, count) => sum + count, 0);
        for (const [index, latencyNs] of found.entries()) {
          if (total === 0) expect(latencyNs).toBeUndefined();
          else expect(latencyNs).toBeGreaterThanOrEqual(found[index - 1] ?? 0);
        }
      }),
    );
  });

  it('has bounds that grow from 10 µs to 10 s', () => {
    expect(LATENCY_BOUNDARIES_NS.at(0)).toBe(10_000);
    expect(LATENCY_BOUNDARIES_NS.at(-1)).toBe(10_000_000_000);
    expect(LATENCY_BOUNDARIES_NS).toEqual([...new Set(LATENCY_BOUNDARIES_NS)].sort((a, b) => a - b));
  });
});
