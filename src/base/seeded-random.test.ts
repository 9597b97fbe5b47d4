import { expect, it } from 'vitest';
import { seededRandom } from './seeded-random.ts';

const numbers = (seed: number) => Array.from({ length: 1000 }, seededRandom(seed));

it('the same seed gives the same numbers, another one others', () => {
  expect(numbers(7)).toEqual(numbers(7));
  expect(numbers(7)).not.toEqual(numbers(8));
});

it('the numbers spread over 0 to 1', () => {
  for (let tenth = 0; tenth < 10; tenth += 1) {
    const inside = numbers(1).filter((value) => Math.floor(value * 10) === tenth);
    expect(inside.length).toBeGreaterThan(60);
  }
});
