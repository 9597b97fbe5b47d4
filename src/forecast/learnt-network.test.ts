import { expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { GLOBAL_FEATURES, LEAD_FEATURES } from './learnt-features.ts';
import { LearntNetwork, randomWeights, WEIGHTS } from './learnt-network.ts';
import { LEVELS } from './quantile-forecast.ts';

const random = seededRandom(11);
const features = (length: number) => Float64Array.from({ length }, () => 4 * random() - 2);
const rowOf = (weights: Float64Array, { globals, lead }: { globals: Float64Array; lead: Float64Array }) => {
  const network = new LearntNetwork(weights);
  const row = new Float64Array(LEVELS.length);
  network.prepare(globals);
  network.row(lead, row);
  return { network, row };
};

it('quantiles ascend whatever the weights and the features are', () => {
  for (let round = 0; round < 50; round += 1) {
    const weights = randomWeights(random).map((weight) => 30 * weight);
    const { row } = rowOf(weights, { globals: features(GLOBAL_FEATURES), lead: features(LEAD_FEATURES) });
    for (let level = 1; level < row.length; level += 1) {
      expect(row[level]).toBeGreaterThanOrEqual(row[level - 1] ?? Number.NaN);
    }
  }
});

it('slopes are those that are found by trying each weight a little larger and smaller', () => {
  const weights = randomWeights(random);
  const input = { globals: features(GLOBAL_FEATURES), lead: features(LEAD_FEATURES) };
  const slopes = features(LEVELS.length);
  const gradient = new Float64Array(WEIGHTS);
  rowOf(weights, input).network.learn(Float64Array.from(slopes), gradient);
  const loss = () =>
    rowOf(weights, input).row.reduce((sum, value, level) => sum + value * (slopes[level] ?? 0), 0);
  for (let index = 0; index < WEIGHTS; index += 1) {
    const weight = weights[index] ?? 0;
    weights[index] = weight + 1e-5;
    const above = loss();
    weights[index] = weight - 1e-5;
    const slope = (above - loss()) / 2e-5;
    weights[index] = weight;
    expect(Math.abs(slope - (gradient[index] ?? Number.NaN))).toBeLessThan(1e-4);
  }
});
