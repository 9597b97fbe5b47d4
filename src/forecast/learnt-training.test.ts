import { describe, expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { weightsOf } from './learnt-model.ts';
import { randomWeights } from './learnt-network.ts';
import {
  FULL_PLAN,
  heldOutLoss,
  heldOutPlan,
  REHEARSAL_PLAN,
  trainedWeights,
  weightsDigest,
} from './learnt-training.ts';
import { LEARNT_WEIGHTS } from './learnt-weights.ts';

describe('the shipped weights', () => {
  it('are those of the generator and the training in these sources: a rehearsal gives what it gave then', () => {
    expect(weightsDigest(trainedWeights(REHEARSAL_PLAN))).toBe(LEARNT_WEIGHTS.rehearsal);
  });

  it('would not be those of another seed, nor of another training', () => {
    for (const change of [{ seed: FULL_PLAN.seed + 1 }, { originEvery: 30 }]) {
      expect(weightsDigest(trainedWeights({ ...REHEARSAL_PLAN, ...change }))).not.toBe(
        LEARNT_WEIGHTS.rehearsal,
      );
    }
  });

  it('are whole', () => {
    expect(weightsDigest(weightsOf(LEARNT_WEIGHTS.base64))).toBe(LEARNT_WEIGHTS.digest);
  });

  it('foretell workloads that they were not trained on as well as it is written there, others do not', () => {
    expect(heldOutLoss(weightsOf(LEARNT_WEIGHTS.base64), heldOutPlan())).toBeCloseTo(
      LEARNT_WEIGHTS.heldOutLoss,
      4,
    );
    const plan = { ...heldOutPlan(), series: 12 };
    const loss = heldOutLoss(weightsOf(LEARNT_WEIGHTS.base64), plan);
    expect(heldOutLoss(trainedWeights(REHEARSAL_PLAN), plan)).toBeGreaterThan(1.05 * loss);
    expect(heldOutLoss(randomWeights(seededRandom(1)), plan)).toBeGreaterThan(1.2 * loss);
  });
});
