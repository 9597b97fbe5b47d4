import type { MetricName } from './metric.ts';
import { metricOf } from './metric.ts';
import type { Reading } from './metric-source.ts';

/** Latency buckets, in nanoseconds, as QEMU has them: `bins[i]` requests took at least `boundaries[i - 1]` and less than `boundaries[i]`. */
export interface LatencyHistogram {
  readonly boundaries: readonly number[];
  readonly bins: readonly number[];
}

/** What QEMU counts of one disk since it was started: `query-blockstats` of its QMP reference. */
export interface DiskStatistics {
  /** The name that the specification's disks have here: `boot`, `disk0`. */
  readonly disk: string;
  readonly readOps: number;
  readonly writeOps: number;
  readonly readBytes: number;
  readonly writeBytes: number;
  /** Of all requests together: one that takes a second while another one does makes two. */
  readonly busySeconds: number;
  readonly latencies: readonly LatencyHistogram[];
}

/** From 10 µs to 10 s, ten buckets for each tenfold. */
export const LATENCY_BOUNDARIES_NS: readonly number[] = Array.from({ length: 61 }, (_, index) =>
  Math.round(10_000 * 10 ** (index / 10)),
);

/** Counters of all disks, and latencies of what was done since `before`. `of` says whose they are. */
export function diskReading(
  of: unknown,
  now: readonly DiskStatistics[],
  before: readonly DiskStatistics[],
): Reading {
  const counters: Record<MetricName, number> = {};
  const gauges: Record<MetricName, number> = {};
  for (const disk of now) {
    counters[metricOf('disk.readOpsPerSecond', disk.disk)] = disk.readOps;
    counters[metricOf('disk.writeOpsPerSecond', disk.disk)] = disk.writeOps;
    counters[metricOf('disk.readBytesPerSecond', disk.disk)] = disk.readBytes;
    counters[metricOf('disk.writeBytesPerSecond', disk.disk)] = disk.writeBytes;
    // Little's law: time that requests spent here, per time, is how many there were.
    counters[metricOf('disk.queueDepth', disk.disk)] = disk.busySeconds;
    const earlier = before.find((other) => other.disk === disk.disk);
    const recent = growthOf(disk.latencies, earlier?.latencies ?? []);
    for (const [metric, q] of [['disk.latencyP50Ms', 0.5] as const, ['disk.latencyP99Ms', 0.99] as const]) {
      const latencyNs = latencyQuantileNs(recent, q);
      if (latencyNs !== undefined) gauges[metricOf(metric, disk.disk)] = latencyNs / 1e6;
    }
  }
  return { of, counters, gauges };
}

/** All histograms as one, without what was counted before. One that went back began anew. */
function growthOf(now: readonly LatencyHistogram[], before: readonly LatencyHistogram[]): LatencyHistogram {
  const boundaries = now[0]?.boundaries ?? [];
  const bins = Array.from({ length: boundaries.length + 1 }, () => 0);
  for (const [index, histogram] of now.entries()) {
    const earlier = before[index]?.bins;
    const isSame = earlier?.length === histogram.bins.length;
    const wentBack = isSame && histogram.bins.some((count, bin) => count < (earlier[bin] ?? 0));
    for (const [bin, count] of histogram.bins.entries()) {
      const grown = count - (isSame && !wentBack ? (earlier[bin] ?? 0) : 0);
      if (bin < bins.length) bins[bin] = (bins[bin] ?? 0) + grown;
    }
  }
  return { boundaries, bins };
}

/** Between the bounds of its bucket by how far into it the quantile lies. Undefined where there was nothing. */
export function latencyQuantileNs({ boundaries, bins }: LatencyHistogram, q: number): number | undefined {
  const total = bins.reduce((sum, count) => sum + count, 0);
  if (!(total > 0)) return undefined;
  let left = q * total;
  for (const [bin, count] of bins.entries()) {
    if (count > 0 && left <= count) {
      const low = boundaries[bin - 1] ?? 0;
      const high = boundaries[bin] ?? low;
      return low + (high - low) * (left / count);
    }
    left -= count;
  }
  return boundaries.at(-1);
}
