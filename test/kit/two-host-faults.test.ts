import { describe, expect, it } from 'vitest';
import { seededRandom } from '../../src/base/seeded-random.ts';
import { FAULTS, planRounds } from './two-host-faults.ts';

const ROUNDS = 300;

function rounds(seed: number) {
  return planRounds(ROUNDS, seededRandom(seed));
}

describe('faults of two hosts', () => {
  it('are decided by the seed', () => {
    expect(rounds(7)).toEqual(rounds(7));
    expect(rounds(7)).not.toEqual(rounds(8));
  });

  it('are all of them, by themselves and in pairs', () => {
    const met = new Set(rounds(1).flatMap((round) => round.map(({ name }) => name)));
    expect([...met].toSorted()).toEqual(Object.keys(FAULTS).toSorted());
    expect(new Set(rounds(1).map((round) => round.length))).toEqual(new Set([1, 2]));
  });

  it.each([1, 2, 3])('never cost both copies of the VM at once (seed %i)', (seed) => {
    for (const round of rounds(seed)) {
      const costs = new Set(round.map(({ name }) => FAULTS[name]?.costs));
      const losesShadow = costs.has('shadow') || costs.has('either');
      expect(costs.has('shadow') && costs.has('primary')).toBe(false);
      // What comes late may come when nothing but the other one is left.
      expect(losesShadow && costs.has('late')).toBe(false);
    }
  });
});
