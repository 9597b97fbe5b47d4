import { copyFileSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { differences, ReferenceSeries } from '../../test/kit/reference-series.ts';
import { sample } from '../../test/kit/series-sample.ts';
import { MIB } from '../base/units.ts';
import { HOUR_MS, MINUTE_MS, SECOND_MS } from './buckets.ts';
import { packBatch } from './sample-batch.ts';
import { RESOLUTIONS, type Resolution } from './series-store.ts';
import { SqliteSeries } from './sqlite-series.ts';

const DAY_MS = 24 * HOUR_MS;
const BEGIN_MS = 20_000 * DAY_MS;
const RETENTION = { '1s': 3 * HOUR_MS, '1m': DAY_MS, '1h': 4 * DAY_MS };
const STEPS_MAX = 100_000;
const BATCH_SECONDS = 20;

let folder: string;
let wallMs: number;
const open: SqliteSeries[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-sqlite-'));
  wallMs = BEGIN_MS;
});
afterEach(() => {
  for (const store of open.splice(0)) store.close();
  rmSync(folder, { recursive: true });
});

function opened({
  path = join(folder, 'series.sqlite'),
  maxBytes = 256 * MIB,
  retention = RETENTION,
} = {}): SqliteSeries {
  const store = new SqliteSeries({ path, maxBytes, retention, wallMs: () => wallMs });
  open.push(store);
  return store;
}

function close(store: SqliteSeries): void {
  open.splice(open.indexOf(store), 1);
  store.close();
}

/** What is on disk now, as a process that is killed now leaves it, under another name. */
function copyAsKilled(name: string): string {
  const path = join(folder, name);
  for (const suffix of ['', '-wal'])
    if (existsSync(join(folder, `series.sqlite${suffix}`)))
      copyFileSync(join(folder, `series.sqlite${suffix}`), path + suffix);
  return path;
}

function allUpkeep(store: SqliteSeries): number {
  for (let steps = 0; steps < STEPS_MAX; steps += 1) if (store.upkeep() > 0) return steps;
  throw new Error('upkeep comes to no end');
}

/** One VM for `seconds`, of which the clock is at the end then; upkeep runs along. */
function run(
  store: SqliteSeries,
  { seconds, metrics = 1 }: { seconds: number; metrics?: number },
): ReferenceSeries {
  const reference = new ReferenceSeries();
  for (let second = 0; second < seconds; second += BATCH_SECONDS) {
    const samples = Array.from({ length: BATCH_SECONDS }, (_, at) =>
      sample('vm', wallMs + at * SECOND_MS, valuesAt(second + at, metrics)),
    );
    store.append(packBatch(samples));
    reference.append(samples);
    wallMs += BATCH_SECONDS * SECOND_MS;
    allUpkeep(store);
  }
  return reference;
}

function valuesAt(second: number, metrics: number): Record<string, number> {
  const value = (index: number) => Math.sin(second * (index + 1)) * 100;
  return Object.fromEntries(Array.from({ length: metrics }, (_, index) => [`m${index}`, value(index)]));
}

const rangeOf = (resolution: Resolution, metric = 'm0') => ({
  ...{ vm: 'vm', metric, fromMs: 0, toMs: Number.MAX_SAFE_INTEGER, resolution },
});

function rowsOf(path: string, table: string): number {
  using sql = new DatabaseSync(path);
  return Number(sql.prepare(`SELECT count(*) AS n FROM ${table}`).get()?.n);
}

describe('series in a file', () => {
  it('go from samples to minutes and hours, and are the same at every moment on the way', () => {
    const store = opened();
    const reference = run(store, { seconds: 2 * 3600 + 1800 });
    for (let step = 0; step < 3; step += 1) {
      for (const resolution of RESOLUTIONS)
        expect(differences(store.range(rangeOf(resolution)), reference.range(rangeOf(resolution)))).toEqual(
          [],
        );
      wallMs += HOUR_MS / 2;
      allUpkeep(store);
    }
    close(store);
    // They were written as buckets, and not only made when they were asked for.
    expect(rowsOf(join(folder, 'series.sqlite'), 'minutes')).toBe(3);
    expect(rowsOf(join(folder, 'series.sqlite'), 'hours')).toBe(3);
    expect(rowsOf(join(folder, 'series.sqlite'), 'log')).toBe(0);
  });

  it('have late samples in buckets that were written before, also in those of an hour', () => {
    const store = opened();
    const reference = run(store, { seconds: 3600 });
    wallMs += 30 * MINUTE_MS;
    allUpkeep(store);
    const [before] = store.range(rangeOf('1h'));
    const late = [sample('vm', BEGIN_MS + 500, { m0: 1e6 })];
    store.append(packBatch(late));
    reference.append(late);
    for (let step = 0; step < 2; step += 1) {
      expect(store.range(rangeOf('1h'))).toMatchObject([{ max: 1e6, count: (before?.count ?? 0) + 1 }]);
      for (const resolution of RESOLUTIONS)
        expect(differences(store.range(rangeOf(resolution)), reference.range(rangeOf(resolution)))).toEqual(
          [],
        );
      wallMs += MINUTE_MS;
      allUpkeep(store);
    }
  });

  it('go when their time is over: samples first, then minutes, then hours', () => {
    const store = opened();
    run(store, { seconds: 3600 });
    const counts = () => RESOLUTIONS.map((resolution) => store.range(rangeOf(resolution)).length);
    allUpkeep(store);
    expect(counts()).toEqual([3600, 60, 1]);
    for (const [afterMs, expected] of [
      [3 * HOUR_MS, [3600, 60, 1]],
      [4 * HOUR_MS, [0, 60, 1]],
      [25 * HOUR_MS, [0, 0, 1]],
      [97 * HOUR_MS, [0, 0, 0]],
    ] as const) {
      wallMs = BEGIN_MS + afterMs;
      allUpkeep(store);
      expect(counts()).toEqual(expected);
    }
    expect(store.metrics('vm')).toEqual([]);
    close(store);
    for (const table of ['points', 'minutes', 'hours', 'series', 'stale'])
      expect(rowsOf(join(folder, 'series.sqlite'), table)).toBe(0);
  });

  it('lose nothing when a process is killed at any step', () => {
    const store = opened();
    const reference = run(store, { seconds: 3600 });
    // What has been written by series and is still in the log counts once.
    wallMs += 10 * MINUTE_MS;
    for (let step = 0; ; step += 1) {
      const copy = opened({ path: copyAsKilled(`copy-${step}`) });
      for (const resolution of RESOLUTIONS)
        expect(differences(copy.range(rangeOf(resolution)), reference.range(rangeOf(resolution)))).toEqual(
          [],
        );
      allUpkeep(copy);
      for (const resolution of RESOLUTIONS)
        expect(differences(copy.range(rangeOf(resolution)), reference.range(rangeOf(resolution)))).toEqual(
          [],
        );
      close(copy);
      if (store.upkeep() > 0) break;
    }
    // The check would notice: without its write-ahead log the file has lost what was appended last.
    const path = copyAsKilled('torn');
    rmSync(`${path}-wal`, { force: true });
    const torn = existsSync(path) && statSync(path).size > 0 ? opened({ path }).range(rangeOf('1s')) : [];
    expect(differences(torn, reference.range(rangeOf('1s')))).not.toEqual([]);
  });

  it('stay forgotten when a process is killed after that, with samples from before in its log', () => {
    const store = opened();
    store.append(packBatch([sample('vm', wallMs, { old: 1 }), sample('other', wallMs, { old: 1 })]));
    store.forget('vm');
    store.append(packBatch([sample('vm', wallMs, { young: 1 })]));
    const copy = opened({ path: copyAsKilled('copy') });
    expect(copy.metrics('vm')).toEqual(['young']);
    expect(copy.metrics('other')).toEqual(['old']);
    expect(copy.range(rangeOf('1s', 'young'))).toHaveLength(1);
  });

  it('leave no row behind when they are forgotten', () => {
    const store = opened();
    run(store, { seconds: 7200, metrics: 3 });
    wallMs += 10 * MINUTE_MS;
    allUpkeep(store);
    store.forget('vm');
    allUpkeep(store);
    close(store);
    for (const table of ['points', 'minutes', 'hours', 'series', 'forgotten'])
      expect(rowsOf(join(folder, 'series.sqlite'), table)).toBe(0);
  });

  it('keep within their bound: the oldest samples go first, buckets stay, and the file shrinks', () => {
    const [maxBytes, hours] = [2 * MIB, 4];
    const retention = { '1s': DAY_MS, '1m': DAY_MS, '1h': DAY_MS };
    const store = opened({ maxBytes, retention });
    let largest = 0;
    for (let part = 0; part < hours * 6; part += 1) {
      run(store, { seconds: 600, metrics: 30 });
      largest = Math.max(largest, store.usage().bytes);
    }
    expect(largest).toBeLessThanOrEqual(maxBytes);
    const samples = store.range(rangeOf('1s'));
    expect(samples.length).toBeLessThan(hours * 3600);
    expect(samples.at(-1)?.startMs).toBe(BEGIN_MS + hours * HOUR_MS - SECOND_MS);
    expect(store.range(rangeOf('1h'))).toHaveLength(hours);
    expect(store.usage()).toMatchObject({ dropped: 0, trouble: undefined });
    // The bound is what held it back.
    wallMs = BEGIN_MS;
    const boundless = opened({ path: join(folder, 'boundless'), retention });
    run(boundless, { seconds: 2 * 3600, metrics: 30 });
    expect(boundless.usage().bytes).toBeGreaterThan(maxBytes);
    wallMs = BEGIN_MS + 3 * DAY_MS;
    allUpkeep(store);
    expect(store.usage().bytes).toBeLessThan(MIB);
  });

  it('are dropped and counted where the bound leaves no room for an hour of them', () => {
    const store = opened({ maxBytes: MIB });
    run(store, { seconds: 1200, metrics: 100 });
    const { bytes, dropped, trouble } = store.usage();
    expect(bytes).toBeLessThanOrEqual(MIB);
    expect(dropped).toBeGreaterThan(0);
    expect(trouble).toContain('dropped');
  });

  it('are taken again when a clock that was years ahead is set right', () => {
    const store = opened();
    store.append(packBatch([sample('vm', wallMs, { m0: 1 })]));
    wallMs += 5000 * DAY_MS;
    store.append(packBatch([sample('vm', wallMs, { m0: 2 })]));
    allUpkeep(store);
    wallMs = BEGIN_MS + HOUR_MS;
    allUpkeep(store);
    store.append(packBatch([sample('vm', wallMs, { m0: 3 })]));
    expect(store.range(rangeOf('1m'))).toMatchObject([{ mean: 3 }]);
    expect(store.usage().dropped).toBe(0);
  });

  it('are those of a map of all samples, whatever time does and whenever a process is killed', () => {
    const step = fc.oneof(
      {
        weight: 5,
        arbitrary: fc.record({
          kind: fc.constant('append' as const),
          backMs: fc.array(fc.nat({ max: 2 * HOUR_MS }), { maxLength: 30 }),
        }),
      },
      {
        weight: 3,
        arbitrary: fc.record({ kind: fc.constant('pass' as const), ms: fc.nat({ max: HOUR_MS }) }),
      },
      {
        weight: 3,
        arbitrary: fc.record({ kind: fc.constant('upkeep' as const), steps: fc.nat({ max: 20 }) }),
      },
      { weight: 1, arbitrary: fc.constant({ kind: 'forget' as const }) },
      { weight: 1, arbitrary: fc.constant({ kind: 'kill' as const }) },
    );
    let run = 0;
    fc.assert(
      fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
        run += 1;
        wallMs = BEGIN_MS;
        const reference = new ReferenceSeries();
        const retention = { '1s': 2 * DAY_MS, '1m': 2 * DAY_MS, '1h': 2 * DAY_MS };
        let path = join(folder, `run-${run}`);
        let store = opened({ path, retention });
        for (const [index, taken] of steps.entries()) {
          if (taken.kind === 'append') {
            const samples = taken.backMs.map((backMs) =>
              sample('vm', wallMs - backMs, { m0: Math.cos(wallMs - backMs) }),
            );
            store.append(packBatch(samples));
            reference.append(samples);
          } else if (taken.kind === 'pass') wallMs += taken.ms;
          else if (taken.kind === 'upkeep') for (let each = 0; each < taken.steps; each += 1) store.upkeep();
          else if (taken.kind === 'forget') {
            store.forget('vm');
            reference.forget('vm');
          } else {
            const next = `${path}-${index}`;
            for (const suffix of ['', '-wal']) copyFileSync(path + suffix, next + suffix);
            close(store);
            path = next;
            store = opened({ path, retention });
          }
          for (const resolution of RESOLUTIONS)
            expect(
              differences(store.range(rangeOf(resolution)), reference.range(rangeOf(resolution))),
            ).toEqual([]);
        }
        close(store);
      }),
      { numRuns: 60 },
    );
  });
});

describe('the file of series', () => {
  it('belongs to one at a time', () => {
    const store = opened();
    store.append(packBatch([sample('vm', wallMs, { m0: 1 })]));
    expect(() => opened()).toThrow(expect.objectContaining({ code: 'TELEMETRY_STORE_BUSY' }));
  });

  it('is not taken for one when it is none, or where none can be', () => {
    const path = join(folder, 'text');
    writeFileSync(path, 'text '.repeat(10_000));
    expect(() => opened({ path })).toThrow(expect.objectContaining({ code: 'TELEMETRY_STORE_CORRUPT' }));
    expect(() => opened({ path: join(path, 'below') })).toThrow(
      expect.objectContaining({ code: 'TELEMETRY_STORE_UNUSABLE' }),
    );
    expect(() => opened({ path: folder })).toThrow(
      expect.objectContaining({ code: 'TELEMETRY_STORE_UNUSABLE' }),
    );
  });

  it('is of use but for a row that is damaged', () => {
    const store = opened();
    run(store, { seconds: 1800, metrics: 2 });
    allUpkeep(store);
    close(store);
    const path = join(folder, 'series.sqlite');
    {
      using sql = new DatabaseSync(path);
      sql.exec("UPDATE points SET data = x'ff' WHERE start = (SELECT min(start) FROM points)");
    }
    const again = opened();
    expect(again.range(rangeOf('1m'))).toHaveLength(29);
    wallMs += 2 * HOUR_MS;
    allUpkeep(again);
    expect(again.range(rangeOf('1h'))).toMatchObject([{ count: 1740 }]);
    expect(again.range(rangeOf('1m', 'm1'))).toHaveLength(29);
  });

  it('is left alone when a newer version has written it', () => {
    const path = join(folder, 'series.sqlite');
    close(opened());
    {
      using sql = new DatabaseSync(path);
      sql.exec('PRAGMA user_version = 99');
    }
    expect(() => opened()).toThrow(expect.objectContaining({ code: 'TELEMETRY_STORE_NEWER' }));
  });

  it('can be read by its owner only', () => {
    close(opened());
    expect(statSync(join(folder, 'series.sqlite')).mode & 0o777).toBe(0o600);
  });
});
