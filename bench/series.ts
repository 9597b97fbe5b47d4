import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { seededRandom } from '../src/base/seeded-random.ts';
import { GIB } from '../src/base/units.ts';
import { parseHostConfig } from '../src/config/host-config.ts';
import { HOUR_MS, SECOND_MS } from '../src/telemetry/buckets.ts';
import { openSeriesStore } from '../src/telemetry/open-series-store.ts';
import type { Sample } from '../src/telemetry/sample.ts';
import { packBatch } from '../src/telemetry/sample-batch.ts';
import type { SeriesEngine } from '../src/telemetry/series-engine.ts';
import { SqliteSeries } from '../src/telemetry/sqlite-series.ts';
import { VictoriaMetricsSeries } from '../src/telemetry/victoria-metrics-series.ts';
import { VictoriaMetrics } from '../test/kit/victoria-metrics.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';

const METRICS = 25;
const HOUR_SECONDS = 3600;
const BATCH_SECONDS = 10;
const CHECK_EVERY_MS = 1000;
/** Of the hour whose size is measured. */
const VMS = 40;
const QUICK_VMS = 10;
const QUERIES = 300;
/** Of the appends whose latency is measured. */
const MANY_VMS = 1000;
const APPENDS = 120;
const QUICK_APPENDS = 20;
const APPEND_EVERY_MS = 250;
const DAY_MS = 24 * HOUR_MS;
const RETENTION = { '1s': DAY_MS, '1m': 14 * DAY_MS, '1h': 400 * DAY_MS };
const KINDS = ['sqlite', 'victoriaMetrics'] as const;
type Kind = (typeof KINDS)[number];

export const series: Benchmark = {
  name: 'series',
  summary:
    'Series stores: how quick samples of all VMs are kept, how large they are, how quick an hour is read.',
  figures: figureTable(),
  run: async (run) => {
    for (const kind of KINDS) {
      const folder = mkdtempSync(join(tmpdir(), 'us-bench-series-'));
      try {
        await using server = kind === 'sqlite' ? undefined : await VictoriaMetrics.start();
        await measureHour(run, { kind, folder, url: server?.url ?? '' });
        await measureAppends(run, { kind, folder, url: server?.url ?? '' });
      } finally {
        rmSync(folder, { recursive: true });
      }
    }
    run.note(
      `${METRICS} metrics a VM: a third stands still, a third wanders by whole numbers, a third has all its digits`,
    );
    run.note('values per second: until they are in all resolutions, or in VictoriaMetrics and flushed there');
    run.note('VictoriaMetrics is given its minutes and hours by nobody: it makes them when it is asked');
  },
};

function figureTable(): Record<string, FigureInfo> {
  const figures: Record<string, FigureInfo> = {
    packP50Ms: {
      meaning: `what an append of ${MANY_VMS} VMs takes of its caller, p50`,
      target: { atMost: 20 },
    },
  };
  for (const kind of KINDS) {
    figures[`${kind}ValuesPerSecond`] = { meaning: 'values of an hour taken and written per second' };
    figures[`${kind}BytesPerValue`] = { meaning: 'bytes on disk / values, with minutes and hours' };
    figures[`${kind}HourP50Ms`] = { meaning: 'to read one hour of one series in seconds, p50' };
    figures[`${kind}AppendP99Ms`] = {
      meaning: `until an append of ${MANY_VMS} VMs × ${METRICS} metrics is safe, p99`,
    };
  }
  return figures;
}

interface Place {
  readonly kind: Kind;
  readonly folder: string;
  readonly url: string;
}

/** An hour of samples in one go: rate, size, queries. */
async function measureHour(run: BenchRun, { kind, folder, url }: Place): Promise<void> {
  const { clock } = run.options;
  const vms = run.options.quick ? QUICK_VMS : VMS;
  run.progress(`${kind}: an hour of ${vms} VMs`);
  const beginMs = Math.floor(clock.wallMs() / HOUR_MS) * HOUR_MS - 2 * HOUR_MS;
  const maxBytes = 16 * GIB;
  // The clock of the file goes with its samples.
  let nowMs = beginMs;
  const engine: SeriesEngine =
    kind === 'sqlite'
      ? new SqliteSeries({ path: join(folder, 'hour'), maxBytes, retention: RETENTION, wallMs: () => nowMs })
      : new VictoriaMetricsSeries({
          access: { url, callDeadlineMs: 30_000 },
          ...{
            directory: join(folder, 'hour'),
            maxBytes,
            retention: RETENTION,
            keptMs: 0,
            checkEveryMs: CHECK_EVERY_MS,
            clock,
          },
        });
  const samples = sampler(vms);
  let takenMs = 0;
  for (let second = 0; second < HOUR_SECONDS; second += BATCH_SECONDS) {
    const batch = packBatch(
      Array.from({ length: BATCH_SECONDS }, (_, at) => samples(beginMs + (second + at) * SECOND_MS)).flat(),
    );
    const startMs = clock.nowMs();
    await engine.append(batch);
    nowMs += BATCH_SECONDS * SECOND_MS;
    while ((await engine.upkeep()) === 0);
    takenMs += clock.nowMs() - startMs;
  }
  nowMs += HOUR_MS / 2;
  const startMs = clock.nowMs();
  while ((await engine.upkeep()) === 0);
  const query = {
    vm: 'vm-0',
    metric: 'metric24',
    fromMs: beginMs,
    toMs: beginMs + HOUR_MS,
    resolution: '1s',
  } as const;
  await engine.range(query);
  takenMs += clock.nowMs() - startMs;
  const values = vms * METRICS * HOUR_SECONDS;
  run.figure(`${kind}ValuesPerSecond`, (values / takenMs) * 1000);
  for (let index = 0; index < QUERIES; index += 1) {
    const askedMs = clock.nowMs();
    await engine.range({ ...query, vm: `vm-${index % vms}`, metric: `metric${index % METRICS}` });
    run.sample(`${kind}HourMs`, clock.nowMs() - askedMs);
  }
  run.figure(`${kind}HourP50Ms`, run.p50(`${kind}HourMs`));
  // What waited for VictoriaMetrics is no longer there.
  for (let round = 0; round < 3; round += 1) {
    await clock.sleep(CHECK_EVERY_MS);
    await engine.upkeep();
  }
  run.figure(`${kind}BytesPerValue`, (await engine.usage()).bytes / values);
  await engine.close();
}

/** As a daemon appends: from one thread to another, again and again. */
async function measureAppends(run: BenchRun, { kind, folder, url }: Place): Promise<void> {
  const { clock, quick } = run.options;
  run.progress(`${kind}: appends of ${MANY_VMS} VMs`);
  const text = kind === 'sqlite' ? '' : `telemetry: {store: victoriametrics, url: "${url}"}`;
  const { telemetry } = parseHostConfig(text, { source: 'benchmark' });
  await using store = await openSeriesStore(telemetry, { directory: join(folder, 'appends') });
  const samples = sampler(MANY_VMS);
  // The first one has all names in it, which are then known.
  await store.append(samples(clock.wallMs()));
  for (let index = 0; index < (quick ? QUICK_APPENDS : APPENDS); index += 1) {
    const taken = samples(clock.wallMs());
    await clock.sleep(APPEND_EVERY_MS);
    const startMs = clock.nowMs();
    const appending = store.append(taken);
    run.sample('packMs', clock.nowMs() - startMs);
    await appending;
    run.sample(`${kind}AppendMs`, clock.nowMs() - startMs);
  }
  run.figure('packP50Ms', run.p50('packMs'));
  run.figure(`${kind}AppendP99Ms`, run.quantile(`${kind}AppendMs`, 0.99));
}

function sampler(vms: number): (wallMs: number) => Sample[] {
  const random = seededRandom(1);
  const state = Array.from({ length: vms * METRICS }, () => Math.round(random() * 1e6));
  return (wallMs) =>
    Array.from({ length: vms }, (_, vm) => {
      const values: Record<string, number> = {};
      for (let metric = 0; metric < METRICS; metric += 1) {
        const at = vm * METRICS + metric;
        const before = state[at] ?? 0;
        if (metric % 3 === 1) state[at] = Math.max(0, Math.round(before + (random() - 0.5) * 1e4));
        if (metric % 3 === 2) state[at] = random();
        values[`metric${metric}`] = state[at] ?? 0;
      }
      return { vm: `vm-${vm}`, instanceId: '1', wallMs, monotonicMs: wallMs, intervalMs: SECOND_MS, values };
    });
}
