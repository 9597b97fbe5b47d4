import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import likeYesterday from '../../examples/like-yesterday.ts';
import { differenceOf, FedModel, faultsOfForecast } from './model-contract-fixture.ts';
import { fitSeasonal } from './seasonal-fit.ts';
import { fittedMethods, STREAMING_METHODS } from './shipped-methods.ts';
import { syntheticWorkload } from './synthetic-workload.ts';

const DAY = 288;
const DOCUMENT = readFileSync(new URL('../../docs/forecast-models.md', import.meta.url), 'utf8');
const methods = [...STREAMING_METHODS, ...fittedMethods((request, done) => done(fitSeasonal(request)))];

describe('docs/forecast-models.md', () => {
  it('has a row for each method that is shipped', () => {
    const rows = [...DOCUMENT.matchAll(/^\| `([a-z0-9-]+)` \|/gm)].map(([, name]) => name);
    expect(rows).toEqual(methods.map(({ name }) => name));
  });

  it('shows the example as it is', () => {
    const example = readFileSync(new URL('../../examples/like-yesterday.ts', import.meta.url), 'utf8');
    expect(DOCUMENT).toContain(`\`\`\`ts\n${example}\`\`\``);
  });
});

describe('the example of a method', () => {
  it('foretells what was at that time of day', () => {
    const values = Array.from({ length: 4 * DAY }, (_, step) => Math.floor((step % DAY) / 12));
    const [near, far] = new FedModel(likeYesterday).feed(values).forecast([6, DAY + 18]) ?? [];
    expect(near?.[4]).toBe(0);
    expect(far?.[4]).toBe(1);
  });

  it('keeps what is asked of methods, and goes on after it was restored', () => {
    const { values } = syntheticWorkload({ kind: 'batch', seed: 1, steps: 3 * DAY, gapShare: 0.1 });
    expect(faultsOfForecast(likeYesterday, [...values])).toEqual([]);
    const fed = new FedModel(likeYesterday).feed(values);
    expect(differenceOf(fed.forecast(), fed.restored()?.forecast())).toBe(0);
    expect(new FedModel(likeYesterday).forecast()).toBeUndefined();
  });
});
