import type { Trace } from './trace-folder.ts';

const STEP_MS = 300_000;
const DAY = 288;
const MONDAY_MS = Date.UTC(2018, 0, 1);

/** Machines of five kinds, for who has no traces at hand: quiet, by office hours, with bursts, with jobs, with a drifting level. */
export function sampleTraces({ count, days }: { readonly count: number; readonly days: number }): Trace[] {
  return Array.from({ length: count }, (_, index) => {
    const random = randomFrom(index + 1);
    const shape = SHAPES[index % SHAPES.length] ?? quiet;
    const valueAt = shape(random);
    const values = Float64Array.from({ length: days * DAY }, (_, step) =>
      Math.min(100, Math.max(0, valueAt(step))),
    );
    return { name: `sample/vm${index}`, file: 'sample', stepMs: STEP_MS, startMs: MONDAY_MS, values };
  });
}

type Shape = (random: () => number) => (step: number) => number;

const quiet: Shape = (random) => {
  const level = 1 + 10 * random();
  return () => level * (1 + 0.2 * normal(random));
};

const office: Shape = (random) => {
  const [low, high] = [2 + 5 * random(), 30 + 50 * random()];
  return (step) => {
    const hour = ((step % DAY) * 24) / DAY;
    const works = Math.floor(step / DAY) % 7 < 5 && hour >= 8 && hour < 18;
    return (
      (works ? high * (0.7 + 0.3 * Math.sin((hour / 24) * 2 * Math.PI)) : low) * (1 + 0.15 * normal(random))
    );
  };
};

const bursts: Shape = (random) => {
  const level = 3 + 10 * random();
  let left = 0;
  return () => {
    if (random() < 0.01) left = Math.floor(2 + 20 * random());
    left -= 1;
    return left > 0 ? 60 + 20 * random() : level * (1 + 0.3 * normal(random));
  };
};

const jobs: Shape = (random) => {
  const [start, length] = [Math.floor(DAY * random()), 6 + Math.floor(24 * random())];
  return (step) => {
    const runs = (step + DAY - start) % DAY < length;
    return (runs ? 70 : 5) * (1 + 0.1 * normal(random));
  };
};

const drift: Shape = (random) => {
  let level = 30;
  return () => {
    level += 0.8 * normal(random) + 0.005 * (30 - level);
    return level + 2 * normal(random);
  };
};

const SHAPES: readonly Shape[] = [quiet, office, bursts, jobs, drift];

/** Numerical Recipes' linear congruence: the same machines in each run. */
function randomFrom(seed: number): () => number {
  let state = Math.imul(seed, 2_654_435_761) >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

function normal(random: () => number): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}
