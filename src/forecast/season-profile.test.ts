import { expect, it } from 'vitest';
import { SeasonProfile } from './season-profile.ts';

const STEP_MS = 300_000;
const DAY = 288;

it('a profile knows by how much a time of day differs from the level, after a day', () => {
  const profile = new SeasonProfile(STEP_MS);
  const value = (step: number) => (step % DAY < DAY / 2 ? 10 : 30);
  for (let step = 0; step < DAY - 1; step += 1) profile.update(value(step), step * STEP_MS);
  expect(profile.at(0)).toBe(0);
  for (let step = DAY - 1; step < 30 * DAY; step += 1) profile.update(value(step), step * STEP_MS);
  const difference = profile.at((DAY / 4 + DAY / 2) * STEP_MS) - profile.at((DAY / 4) * STEP_MS);
  expect(difference).toBeGreaterThan(15);
});

it('a profile of steps of a second needs no more room than one of five minutes', () => {
  const floats = (profile: SeasonProfile) =>
    profile.parts.reduce((sum, { values }) => sum + values.length, 0);
  expect(floats(new SeasonProfile(1000))).toBe(floats(new SeasonProfile(STEP_MS)));
});

it('steps of a day have no season', () => {
  const profile = new SeasonProfile(DAY * STEP_MS);
  for (let step = 0; step < 10; step += 1) profile.update(step, step * DAY * STEP_MS);
  expect(profile.at(0)).toBe(0);
});
