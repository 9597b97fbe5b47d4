import { NumberReader, NumberWriter } from './packed-numbers.ts';
import type { Bucket, Resolution } from './series-store.ts';

export const SECOND_MS = 1000;
export const MINUTE_MS = 60_000;
export const HOUR_MS = 3_600_000;

export const STEP_MS: Readonly<Record<Resolution, number>> = {
  '1s': SECOND_MS,
  '1m': MINUTE_MS,
  '1h': HOUR_MS,
};

/** Moments and what was measured then, in the same order. */
export interface Points {
  readonly times: readonly number[];
  readonly values: readonly number[];
}

/** The beginning of the stretch that a moment is in. */
export function alignedDown(timeMs: number, stepMs: number): number {
  return Math.floor(timeMs / stepMs) * stepMs;
}

/** Ascending, each moment once: of several values of one moment the first that is given stays. */
export function inOrder({ times, values }: Points): Points {
  if (times.every((time, index) => index === 0 || time > (times[index - 1] ?? 0))) return { times, values };
  const order = times.map((_, index) => index);
  // The sort is stable, which is why the first one stays.
  order.sort((a, b) => (times[a] ?? 0) - (times[b] ?? 0));
  const kept = order.filter((index, at) => at === 0 || times[index] !== times[order[at - 1] ?? 0]);
  return { times: kept.map((index) => times[index] ?? 0), values: kept.map((index) => values[index] ?? 0) };
}

/** Buckets of points that are {@link inOrder}. */
export function bucketsOf({ times, values }: Points, stepMs: number): Bucket[] {
  const buckets: Bucket[] = [];
  for (let begin = 0; begin < times.length; ) {
    const startMs = alignedDown(times[begin] ?? 0, stepMs);
    let end = begin + 1;
    while (end < times.length && (times[end] ?? 0) < startMs + stepMs) end += 1;
    buckets.push(bucketOf(startMs, values.slice(begin, end)));
    begin = end;
  }
  return buckets;
}

function bucketOf(startMs: number, values: readonly number[]): Bucket {
  const sorted = Float64Array.from(values).sort();
  const count = sorted.length;
  const [min = 0, max = 0] = [sorted[0], sorted[count - 1]];
  let mean = 0;
  // Not by the sum, which may be infinite where every value is finite.
  for (const [index, value] of sorted.entries()) mean += value / (index + 1) - mean / (index + 1);
  const [p50, p90, p99] = [0.5, 0.9, 0.99].map((share) => quantile(sorted, share)) as [
    number,
    number,
    number,
  ];
  return { startMs, count, min, mean: Math.min(max, Math.max(min, mean)), max, p50, p90, p99 };
}

/** Linear between the two nearest ranks (Hyndman and Fan's type 7), as VictoriaMetrics and Prometheus have it. */
function quantile(sorted: Float64Array, share: number): number {
  const rank = share * (sorted.length - 1);
  const lower = sorted[Math.floor(rank)] ?? 0;
  const upper = sorted[Math.ceil(rank)] ?? 0;
  const part = rank - Math.floor(rank);
  const gap = upper - lower;
  // In this form rounding lets no two quantiles cross; in the other one nothing is infinite where no value is.
  return Number.isFinite(gap) ? Math.min(upper, lower + gap * part) : lower * (1 - part) + upper * part;
}

const writer = new NumberWriter();

/** Points within one stretch that begins at `startMs`, ascending. Exact. */
export function packPoints({ times, values }: Points, startMs: number): Uint8Array {
  writer.reset();
  writer.unsigned(times.length);
  let beforeMs = startMs;
  let gapMs = 0;
  for (const time of times) {
    // Samplers are regular: what changes is how far apart two are, and that is mostly nothing.
    writer.signed(time - beforeMs - gapMs);
    gapMs = time - beforeMs;
    beforeMs = time;
  }
  writer.doubles(values);
  return writer.bytes();
}

export function unpackPoints(bytes: Uint8Array, startMs: number): Points {
  const reader = new NumberReader(bytes);
  const count = reader.unsigned();
  const times: number[] = [];
  let beforeMs = startMs;
  let gapMs = 0;
  for (let read = 0; read < count; read += 1) {
    gapMs += reader.signed();
    beforeMs += gapMs;
    times.push(beforeMs);
  }
  return { times, values: reader.doubles(count) };
}

const COLUMNS = ['min', 'mean', 'max', 'p50', 'p90', 'p99'] as const;

/** Buckets of one hour, ascending. Their values are rounded to single precision (6e-8 of the value): half the bytes. */
export function packBuckets(
  buckets: readonly Bucket[],
  { startMs, stepMs }: { startMs: number; stepMs: number },
): Uint8Array {
  writer.reset();
  writer.unsigned(buckets.length);
  let index = 0;
  for (const bucket of buckets) {
    const next = (bucket.startMs - startMs) / stepMs;
    writer.unsigned(next - index);
    index = next;
  }
  for (const { count } of buckets) writer.unsigned(count);
  for (const column of COLUMNS) writer.doubles(buckets.map((bucket) => shortened(bucket[column])));
  return writer.bytes();
}

export function unpackBuckets(
  bytes: Uint8Array,
  { startMs, stepMs }: { startMs: number; stepMs: number },
): Bucket[] {
  const reader = new NumberReader(bytes);
  const length = reader.unsigned();
  const starts: number[] = [];
  let index = 0;
  for (let read = 0; read < length; read += 1) {
    index += reader.unsigned();
    starts.push(startMs + index * stepMs);
  }
  const counts = starts.map(() => reader.unsigned());
  const [min, mean, max, p50, p90, p99] = COLUMNS.map(() => reader.doubles(length));
  return starts.map((start, at) => ({
    startMs: start,
    count: counts[at] ?? 0,
    min: min?.[at] ?? 0,
    mean: mean?.[at] ?? 0,
    max: max?.[at] ?? 0,
    p50: p50?.[at] ?? 0,
    p90: p90?.[at] ?? 0,
    p99: p99?.[at] ?? 0,
  }));
}

/** As it is where single precision has no such number: beyond 3e38, or nearer to zero than it can tell. */
function shortened(value: number): number {
  const short = Math.fround(value);
  return Math.abs(short - value) <= Math.abs(value) * 2 ** -23 ? short : value;
}
