import type { LabelledSeries } from './labelled-series.ts';
import type { LabelledWindow } from './nab-score.ts';

const STEPS = 4000;
const STEPS_PER_DAY = 288;
const STEP_MS = 300_000;
const MONDAY_MS = Date.UTC(2018, 0, 1);
/** All windows of a series together are a tenth of it, as in NAB. */
const WINDOW_SHARE = 0.1;
const ANOMALY_STEPS = 40;

type Random = () => number;

/** What a machine does when nothing is wrong, by step. */
const WORKLOADS: Readonly<Record<string, (random: Random) => (step: number) => number>> = {
  steady: (random) => () => 40 + 2 * normal(random),
  daily: (random) => (step) => 50 + 30 * Math.sin((2 * Math.PI * step) / STEPS_PER_DAY) + 3 * normal(random),
  idle: (random) => (step) =>
    step % STEPS_PER_DAY < 3 ? 8 + random() : 0.5 + 0.05 * Math.abs(normal(random)),
  bursts: (random) => {
    let left = 0;
    return () => {
      if (left <= 0 && random() < 0.01) left = 3 + Math.floor(10 * random());
      left -= 1;
      return left > 0 ? 60 + 10 * random() : 2 + random();
    };
  },
  wandering: (random) => {
    let offset = 0;
    return () => {
      offset = 0.95 * offset + normal(random);
      return 50 + offset;
    };
  },
};

/** What goes wrong: the value that is seen instead. */
const FAULTS: Readonly<
  Record<string, (value: number, at: { since: number; scale: number; held: number }) => number>
> = {
  spike: (value, { since, scale }) => (since < 2 ? value + 4 * scale : value),
  level: (value, { scale }) => value + 2 * scale,
  spread: (value, { since, scale }) => value + (since % 2 === 0 ? 1 : -1) * scale,
  stuck: (_, { held }) => held,
};

/** Labelled series of our own, for machines without a folder of traces. The same seed makes the same ones. */
export function labelledWorkloads(seed: number): LabelledSeries[] {
  const random = lehmer(seed);
  return Object.keys(WORKLOADS).flatMap((name) =>
    Object.keys(FAULTS).map((fault) => workload(name, { fault, random })),
  );
}

function workload(
  name: string,
  { fault, random }: { readonly fault: string; readonly random: Random },
): LabelledSeries {
  const valueAt = WORKLOADS[name]?.(random) ?? (() => 0);
  const values = Array.from({ length: STEPS }, (_, step) => valueAt(step));
  const scale = Math.max(...values) - Math.min(...values);
  const begins = [0.4, 0.75].map((share) => Math.floor(STEPS * (share + 0.1 * random())));
  const half = Math.floor((STEPS * WINDOW_SHARE) / begins.length / 2);
  for (const begin of begins) {
    const held = values[begin - 1] ?? 0;
    for (let since = 0; since < ANOMALY_STEPS; since += 1) {
      const value = values[begin + since] ?? 0;
      values[begin + since] = FAULTS[fault]?.(value, { since, scale, held }) ?? value;
    }
  }
  const windows: LabelledWindow[] = begins.map((begin) => ({ first: begin - half, last: begin + half - 1 }));
  const startsMs = values.map((_, step) => MONDAY_MS + step * STEP_MS);
  return { name: `${name}-${fault}`, stepMs: STEP_MS, startsMs, values, windows };
}

function normal(random: Random): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** Park and Miller's minimal standard: plain, and the same everywhere. 0 … 1, without 1. */
function lehmer(seed: number): Random {
  let state = (seed % 2_147_483_646) + 1;
  return () => {
    state = (state * 48_271) % 2_147_483_647;
    return (state - 1) / 2_147_483_646;
  };
}
