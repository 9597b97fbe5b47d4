import { expect, it } from 'vitest';
import { CandidateChoice } from './candidate-choice.ts';

/** Candidate 0 is right at lead 1 only, candidate 1 at longer ones; from `turnsAt` on the other way round. */
function chosen(steps: number, turnsAt = Number.POSITIVE_INFINITY): number[] {
  const choice = new CandidateChoice(2);
  for (let step = 0; step < steps; step += 1) {
    choice.update(0, (candidate, leads, into) => {
      const isRight = (leads[0] === 1) === (candidate === 0);
      into[0] = isRight === step < turnsAt ? 0 : 1;
      return true;
    });
  }
  return [1, 12, 48, 500].map((lead) => choice.at(lead));
}

it('the candidate that was less wrong is chosen, for each lead by itself', () => {
  expect(chosen(400)).toEqual([0, 1, 1, 1]);
});

it('the choice is another one when another candidate has become better', () => {
  expect(chosen(1200, 400)).toEqual([1, 0, 0, 0]);
});

it('the first candidate is chosen while nothing is known', () => {
  expect(new CandidateChoice(3).at(48)).toBe(0);
});
