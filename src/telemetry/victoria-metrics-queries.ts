import { SECOND_MS, STEP_MS } from './buckets.ts';
import { SAMPLE_METRIC, selector } from './import-lines.ts';
import type { Bucket, RangeQuery, Resolution } from './series-store.ts';
import type { VictoriaMetricsClient } from './victoria-metrics-client.ts';

/** VictoriaMetrics answers no query of more than 30,000 points of one series unless it is told to. */
const POINTS_MAX = 8_000;
const WINDOW: Readonly<Record<Resolution, string>> = { '1s': '1s', '1m': '1m', '1h': '1h' };

const FIELDS = {
  count_over_time: 'count',
  min_over_time: 'min',
  avg_over_time: 'mean',
  max_over_time: 'max',
  '0.5': 'p50',
  '0.9': 'p90',
  '0.99': 'p99',
} as const;

interface MatrixSeries {
  readonly metric: Readonly<Record<string, string>>;
  readonly values: readonly (readonly [seconds: number, value: string])[];
}

type Building = { -readonly [Key in keyof Bucket]: number };

/** Buckets that begin at or after `fromMs` and before `toMs`, made by VictoriaMetrics of the samples it has. */
export async function queryBuckets(
  client: VictoriaMetricsClient,
  { vm, metric, fromMs, toMs, resolution }: RangeQuery,
): Promise<Bucket[]> {
  const stepMs = STEP_MS[resolution];
  const buckets: Bucket[] = [];
  const lastMs = Math.ceil(toMs / stepMs) * stepMs - stepMs;
  let firstMs = Math.ceil(fromMs / stepMs) * stepMs;
  for (; firstMs <= lastMs; firstMs += POINTS_MAX * stepMs) {
    const endMs = Math.min(lastMs, firstMs + (POINTS_MAX - 1) * stepMs);
    buckets.push(...(await piece(client, { series: selector({ vm, metric }), firstMs, endMs, resolution })));
  }
  return buckets;
}

/** Names of all series of a VM that have had samples since then, sorted. */
export async function queryMetrics(
  client: VictoriaMetricsClient,
  { vm, fromMs, toMs }: { vm: string; fromMs: number; toMs: number },
): Promise<string[]> {
  const series = await querySeries(client, { match: selector({ vm }), fromMs, toMs });
  return [...new Set(series.map(({ metric = '' }) => metric))].sort();
}

export async function countSeries(
  client: VictoriaMetricsClient,
  range: { fromMs: number; toMs: number },
): Promise<number> {
  return (await querySeries(client, { match: SAMPLE_METRIC, ...range })).length;
}

async function querySeries(
  client: VictoriaMetricsClient,
  { match, fromMs, toMs }: { match: string; fromMs: number; toMs: number },
): Promise<readonly Readonly<Record<string, string>>[]> {
  const text = await client.call({
    path: '/api/v1/series',
    form: [
      ['match[]', match],
      ['start', seconds(fromMs)],
      ['end', seconds(toMs)],
    ],
  });
  return (JSON.parse(text) as { data: Readonly<Record<string, string>>[] }).data;
}

async function piece(
  client: VictoriaMetricsClient,
  {
    series,
    firstMs,
    endMs,
    resolution,
  }: { series: string; firstMs: number; endMs: number; resolution: Resolution },
): Promise<Bucket[]> {
  const stepMs = STEP_MS[resolution];
  // A window of MetricsQL ends with a moment and does not have the one at which it begins; ours are the other way round.
  const window = `${series}[${WINDOW[resolution]}] offset 1ms`;
  const rollups = '("count_over_time","min_over_time","avg_over_time","max_over_time")';
  const queries = [
    `aggr_over_time(${rollups}, ${window})`,
    `quantiles_over_time("phi", 0.5, 0.9, 0.99, ${window})`,
  ];
  const found = new Map<number, Building>();
  for (const query of queries) {
    const text = await client.call({
      path: '/api/v1/query_range',
      form: [
        ['query', query],
        ['start', seconds(firstMs + stepMs)],
        ['end', seconds(endMs + stepMs)],
        ['step', `${stepMs / SECOND_MS}s`],
        // Else it moves start and end to where it has an answer already, and leaves out the newest.
        ['nocache', '1'],
      ],
    });
    const { result } = (JSON.parse(text) as { data: { result: MatrixSeries[] } }).data;
    for (const each of result) fill(found, each, stepMs);
  }
  return [...found.values()].sort((a, b) => a.startMs - b.startMs);
}

function fill(found: Map<number, Building>, { metric, values }: MatrixSeries, stepMs: number): void {
  const field = FIELDS[(metric.rollup ?? metric.phi) as keyof typeof FIELDS];
  if (field === undefined) return;
  for (const [endSeconds, value] of values) {
    const startMs = Math.round(endSeconds * SECOND_MS) - stepMs;
    let bucket = found.get(startMs);
    if (bucket === undefined) {
      bucket = { startMs, count: 0, min: 0, mean: 0, max: 0, p50: 0, p90: 0, p99: 0 };
      found.set(startMs, bucket);
    }
    bucket[field] = Number(value);
  }
}

function seconds(ms: number): string {
  return (ms / SECOND_MS).toFixed(3);
}
