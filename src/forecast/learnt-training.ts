import { createHash } from 'node:crypto';
import { seededRandom } from '../base/seeded-random.ts';
import { GLOBAL_FEATURES, LEAD_FEATURES, LearntFeatures } from './learnt-features.ts';
import { LearntNetwork, randomWeights, WEIGHTS } from './learnt-network.ts';
import { LEVELS } from './quantile-forecast.ts';
import { SeriesHistory } from './series-history.ts';
import { FIVE_MINUTES_MS, type SyntheticWorkload, syntheticWorkloads } from './synthetic-workload.ts';

export interface TrainingPlan {
  readonly seed: number;
  /** Synthetic workloads, and the length of each. */
  readonly series: number;
  readonly days: number;
  /** Steps between forecasts that are learnt from, on average. */
  readonly originEvery: number;
  readonly epochs: number;
}

/** What the shipped weights were made with. */
export const FULL_PLAN: TrainingPlan = {
  seed: 20_260_101,
  series: 2400,
  days: 16,
  originEvery: 61,
  epochs: 18,
};
/** The same in small, so that a test can repeat it: what changes one changes the other. */
export const REHEARSAL_PLAN: TrainingPlan = { ...FULL_PLAN, series: 24, days: 4, epochs: 1 };

/** Of a series in one state, and of some steps to come. */
interface Examples {
  count: number;
  readonly globals: Float32Array;
  readonly leads: Float32Array;
  readonly targets: Float32Array;
}

const DAY = 288;
const LEADS_PER_ORIGIN = 4;
const ORIGINS_PER_BATCH = 16;
const FIRST_STEPS = 6;
const GAP_SHARE = 0.01;
/** Adam: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015). The rate falls to 0 along half a cosine. */
const ADAM = { rate: 0.004, first: 0.9, second: 0.999, least: 1e-8 } as const;

/** Weights of the network after learning from synthetic workloads. The same plan gives the same weights, bit by bit. */
export function trainedWeights(
  plan: TrainingPlan,
  tell: (epoch: number, loss: number) => void = () => undefined,
): Float64Array {
  const random = seededRandom(plan.seed);
  const examples = examplesOf(plan, random);
  const network = new LearntNetwork(randomWeights(random));
  const gradient = new Float64Array(WEIGHTS);
  const adam = new Adam();
  const order = Uint32Array.from({ length: examples.count }, (_, index) => index);
  const batches = plan.epochs * Math.ceil(examples.count / ORIGINS_PER_BATCH);
  let batch = 0;
  for (let epoch = 0; epoch < plan.epochs; epoch += 1) {
    shuffle(order, random);
    let loss = 0;
    for (let from = 0; from < order.length; from += ORIGINS_PER_BATCH) {
      const origins = order.subarray(from, from + ORIGINS_PER_BATCH);
      gradient.fill(0);
      for (const origin of origins) loss += learnFrom(examples, origin, { network, gradient });
      const rate = (ADAM.rate * (1 + Math.cos((Math.PI * batch) / batches))) / 2;
      adam.step(network.weights, { gradient, rate, count: origins.length * LEADS_PER_ORIGIN });
      batch += 1;
    }
    tell(epoch, loss / (examples.count * LEADS_PER_ORIGIN));
  }
  return network.weights;
}

/** Mean pinball loss over all levels, in units of features, of forecasts of other synthetic workloads. */
export function heldOutLoss(weights: Float64Array, plan: TrainingPlan): number {
  const random = seededRandom(plan.seed);
  const examples = examplesOf(plan, random);
  const network = new LearntNetwork(weights);
  const gradient = new Float64Array(WEIGHTS);
  let loss = 0;
  for (let origin = 0; origin < examples.count; origin += 1)
    loss += learnFrom(examples, origin, { network, gradient });
  return loss / (examples.count * LEADS_PER_ORIGIN);
}

/** Workloads that no plan is trained on. */
export function heldOutPlan(): TrainingPlan {
  return { ...FULL_PLAN, seed: FULL_PLAN.seed + 1_000_000, series: 48 };
}

/** Weights as they are shipped: floats of four bytes, little endian, in base64. */
export function weightsText(weights: Float64Array): string {
  const bytes = Buffer.alloc(4 * weights.length);
  for (const [index, weight] of weights.entries()) bytes.writeFloatLE(weight, 4 * index);
  return bytes.toString('base64');
}

/** SHA-256 of weights as they are shipped. */
export function weightsDigest(weights: Float64Array): string {
  return createHash('sha256').update(weightsText(weights)).digest('hex');
}

function examplesOf({ seed, series, days, originEvery }: TrainingPlan, random: () => number): Examples {
  const capacity = Math.ceil((1.3 * series * days * DAY) / originEvery);
  const examples: Examples = {
    count: 0,
    globals: new Float32Array(capacity * GLOBAL_FEATURES),
    leads: new Float32Array(capacity * LEADS_PER_ORIGIN * LEAD_FEATURES),
    targets: new Float32Array(capacity * LEADS_PER_ORIGIN),
  };
  const workloads = syntheticWorkloads({ count: series, seed, steps: days * DAY, gapShare: GAP_SHARE });
  for (const [index, workload] of workloads.entries()) {
    addExamples(examples, workload, { random, originEvery, isAlone: index % 2 === 0, capacity });
  }
  return examples;
}

interface SeriesTraining {
  readonly random: () => number;
  readonly originEvery: number;
  /** Without the other metric. */
  readonly isAlone: boolean;
  readonly capacity: number;
}

function addExamples(
  examples: Examples,
  { values, companion, startMs }: SyntheticWorkload,
  { random, originEvery, isAlone, capacity }: SeriesTraining,
): void {
  const history = new SeriesHistory({ stepMs: FIVE_MINUTES_MS, capacity: 15 * DAY });
  const other = new SeriesHistory({ stepMs: FIVE_MINUTES_MS, capacity: 8 });
  const series = { stepMs: FIVE_MINUTES_MS, levels: LEVELS, history };
  const features = new LearntFeatures(isAlone ? series : { ...series, companion: other });
  const globals = new Float64Array(GLOBAL_FEATURES);
  const lead = new Float64Array(LEAD_FEATURES);
  for (let step = 0; step < values.length - DAY; step += 1) {
    const value = values[step] ?? Number.NaN;
    other.push(companion[step] ?? Number.NaN, startMs + step * FIVE_MINUTES_MS);
    history.push(value, startMs + step * FIVE_MINUTES_MS);
    features.update(value);
    const isOrigin = random() < 1 / originEvery;
    if (!isOrigin || step < FIRST_STEPS || features.unit <= 0 || examples.count === capacity) continue;
    features.globals(globals);
    examples.globals.set(globals, examples.count * GLOBAL_FEATURES);
    for (let index = 0; index < LEADS_PER_ORIGIN; index += 1) {
      // Near ones as often as far ones, and the four hours that matter most once more.
      const steps = index === 0 ? 1 + Math.floor(48 * random()) : Math.round(DAY ** random());
      const row = examples.count * LEADS_PER_ORIGIN + index;
      features.lead(steps, lead);
      examples.leads.set(lead, row * LEAD_FEATURES);
      examples.targets[row] = ((values[step + steps] ?? Number.NaN) - features.zero) / features.unit;
    }
    examples.count += 1;
  }
}

/** The loss of an origin's forecasts, whose slopes are added to the gradient. */
function learnFrom(
  { globals, leads, targets }: Examples,
  origin: number,
  { network, gradient }: { readonly network: LearntNetwork; readonly gradient: Float64Array },
): number {
  GLOBALS.set(globals.subarray(origin * GLOBAL_FEATURES, (origin + 1) * GLOBAL_FEATURES));
  network.prepare(GLOBALS);
  let loss = 0;
  for (let index = 0; index < LEADS_PER_ORIGIN; index += 1) {
    const row = origin * LEADS_PER_ORIGIN + index;
    const target = targets[row] ?? Number.NaN;
    if (Number.isNaN(target)) continue;
    LEAD.set(leads.subarray(row * LEAD_FEATURES, (row + 1) * LEAD_FEATURES));
    network.row(LEAD, ROW);
    for (let level = 0; level < LEVELS.length; level += 1) {
      const share = LEVELS[level] ?? 0;
      const difference = target - (ROW[level] ?? 0);
      const slope = difference > 0 ? -share : 1 - share;
      loss -= (difference * slope) / LEVELS.length;
      SLOPES[level] = slope / LEVELS.length;
    }
    network.learn(SLOPES, gradient);
  }
  return loss;
}

const GLOBALS = new Float64Array(GLOBAL_FEATURES);
const LEAD = new Float64Array(LEAD_FEATURES);
const ROW = new Float64Array(LEVELS.length);
const SLOPES = new Float64Array(LEVELS.length);

class Adam {
  readonly #first = new Float64Array(WEIGHTS);
  readonly #second = new Float64Array(WEIGHTS);
  #steps = 0;

  step(
    weights: Float64Array,
    {
      gradient,
      rate,
      count,
    }: { readonly gradient: Float64Array; readonly rate: number; readonly count: number },
  ): void {
    this.#steps += 1;
    const [firstShare, secondShare] = [1 - ADAM.first ** this.#steps, 1 - ADAM.second ** this.#steps];
    for (let index = 0; index < WEIGHTS; index += 1) {
      const slope = (gradient[index] ?? 0) / count;
      const first = ADAM.first * (this.#first[index] ?? 0) + (1 - ADAM.first) * slope;
      const second = ADAM.second * (this.#second[index] ?? 0) + (1 - ADAM.second) * slope * slope;
      this.#first[index] = first;
      this.#second[index] = second;
      const step = (rate * first) / firstShare / (Math.sqrt(second / secondShare) + ADAM.least);
      weights[index] = (weights[index] ?? 0) - step;
    }
  }
}

/** Fisher and Yates. */
function shuffle(order: Uint32Array, random: () => number): void {
  for (let last = order.length - 1; last > 0; last -= 1) {
    const other = Math.floor(random() * (last + 1));
    const kept = order[last] ?? 0;
    order[last] = order[other] ?? 0;
    order[other] = kept;
  }
}
