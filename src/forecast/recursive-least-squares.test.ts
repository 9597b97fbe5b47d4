import { expect, it } from 'vitest';
import { seededRandom } from '../base/seeded-random.ts';
import { RecursiveLeastSquares } from './recursive-least-squares.ts';

const feed = (squares: RecursiveLeastSquares, { steps, unit = 1 }: { steps: number; unit?: number }) => {
  const random = seededRandom(5);
  for (let step = 0; step < steps; step += 1) {
    const inputs = Float64Array.from({ length: 3 }, () => unit * (random() - 0.5));
    const [a = 0, b = 0, c = 0] = inputs;
    squares.update(inputs, 0.7 * a - 0.2 * b + 0.1 * c + 0.01 * unit * (random() - 0.5));
  }
};

it.each([1, 1e-6, 1e12])('coefficients are found whatever the unit is: %f', (unit) => {
  const squares = new RecursiveLeastSquares(3);
  feed(squares, { steps: 2000, unit });
  const [a = 0, b = 0, c = 0] = squares.coefficients;
  expect(a).toBeCloseTo(0.7, 1);
  expect(b).toBeCloseTo(-0.2, 1);
  expect(c).toBeCloseTo(0.1, 1);
});

it('a long time without anything new spoils nothing', () => {
  const squares = new RecursiveLeastSquares(3);
  feed(squares, { steps: 1000 });
  const before = [...squares.coefficients];
  const nothing = new Float64Array(3);
  for (let step = 0; step < 100_000; step += 1) squares.update(nothing, 0);
  expect([...squares.coefficients]).toEqual(before);
  feed(squares, { steps: 2000 });
  expect(squares.coefficients[0]).toBeCloseTo(0.7, 1);
});
