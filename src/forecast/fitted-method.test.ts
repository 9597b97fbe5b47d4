import { describe, expect, it } from 'vitest';
import { type FitScheduler, fittedMethod } from './fitted-method.ts';
import { differenceOf, FedModel, faultsOfForecast } from './model-contract-fixture.ts';
import { type FitRequest, fitSeasonal } from './seasonal-fit.ts';
import { syntheticWorkload } from './synthetic-workload.ts';

const HOUR_MS = 3_600_000;
const DAY = 24;
const dayAt = (step: number) => 50 + 20 * Math.sin((2 * Math.PI * step) / DAY);
const days = (count: number) => Array.from({ length: count * DAY }, (_, step) => dayAt(step));
const atOnce: FitScheduler = (request, done) => done(fitSeasonal(request));

/** Keeps what was asked for until it is let through. */
function heldFits(): {
  readonly schedule: FitScheduler;
  readonly held: (() => void)[];
  readonly requests: FitRequest[];
} {
  const held: (() => void)[] = [];
  const requests: FitRequest[] = [];
  const schedule: FitScheduler = (request, done) => {
    requests.push(request);
    held.push(() => done(fitSeasonal(request)));
  };
  return { schedule, held, requests };
}

describe('a method that is fitted now and then', () => {
  it('foretells days like those before', () => {
    const fed = new FedModel(fittedMethod('mstl', atOnce), { stepMs: HOUR_MS }).feed(days(8));
    for (const [index, lead] of [1, 6, 18, 24].entries()) {
      const row = fed.forecast([1, 6, 18, 24])?.[index] ?? [];
      expect(Math.abs((row[4] ?? 0) - dayAt(8 * DAY - 1 + lead))).toBeLessThan(2);
    }
  });

  it('asks for no more than one fit an hour, and for none while one is under way', () => {
    const { schedule, requests, held } = heldFits();
    const fed = new FedModel(fittedMethod('ets', schedule));
    fed.feed(Array.from({ length: 100 }, Math.random));
    expect(requests).toHaveLength(1);
    expect(fed.forecast()).toBeUndefined();
    held[0]?.();
    fed.feed(Array.from({ length: 6 }, Math.random));
    expect(fed.forecast()).toBeDefined();
    expect(requests).toHaveLength(2);
  });

  it('reads a fit that comes late from where the series is by then', () => {
    const { schedule, held } = heldFits();
    const fed = new FedModel(fittedMethod('mstl', schedule), { stepMs: HOUR_MS })
      .feed(days(2))
      .feed([dayAt(0)]);
    expect(held).toHaveLength(1);
    for (let step = 1; step < 10; step += 1) fed.feed([dayAt(step)]);
    held[0]?.();
    for (let step = 10; step < 20; step += 1) fed.feed([dayAt(step)]);
    expect(Math.abs((fed.forecast([1])?.[0]?.[4] ?? 0) - dayAt(20))).toBeLessThan(3);
  });

  it('says nothing when no fit has come for more than a day', () => {
    let fits = 0;
    const once: FitScheduler = (request, done) => {
      fits += 1;
      done(fits === 1 ? fitSeasonal(request) : undefined);
    };
    const fed = new FedModel(fittedMethod('mstl', once), { stepMs: HOUR_MS }).feed(days(3));
    expect(fed.forecast()).toBeDefined();
    fed.feed(days(1));
    expect(fed.forecast()).toBeUndefined();
  });

  it('goes on after it was saved and restored', () => {
    const fed = new FedModel(fittedMethod('mstl', atOnce), { stepMs: HOUR_MS }).feed(days(5));
    const restored = fed.restored();
    expect(differenceOf(fed.forecast(), restored?.forecast())).toBeLessThan(1e-5);
    expect(differenceOf(fed.feed(days(1)).forecast(), restored?.feed(days(1)).forecast())).toBeLessThan(0.01);
  });

  it.each(['mstl', 'ets'] as const)('states finite quantiles in order, by %s', (kind) => {
    for (const workload of ['sparse', 'batch'] as const) {
      const { values } = syntheticWorkload({ kind: workload, seed: 3, steps: 610, gapShare: 0.1 });
      // Fits of days of five minutes are slow: a few of them are enough here.
      let fits = 0;
      const twice: FitScheduler = (request, done) => {
        fits += 1;
        done(fits < 3 ? fitSeasonal(request) : undefined);
      };
      expect(faultsOfForecast(fittedMethod(kind, twice), [...values])).toEqual([]);
    }
  });
});
