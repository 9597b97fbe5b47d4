import { Forecaster, MINUTES_SERIES, MINUTES_STEP_MS } from '../src/forecast/forecaster.ts';
import { SeriesForecaster } from '../src/forecast/series-forecaster.ts';
import { minutesMethods } from '../src/forecast/shipped-methods.ts';
import { BenchError } from './bench-error.ts';
import { ForecastScores } from './forecast-scores.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { forecastWithR, R_METHODS, type RMethod, rVersion } from './r-forecasts.ts';
import { sampleTraces } from './sample-traces.ts';
import { SIMPLE_FORECASTS } from './simple-forecasts.ts';
import { readTraces, type Trace } from './trace-folder.ts';

const HORIZONS = { '5m': 1, '1h': 12, '4h': 48, '24h': 288 } as const;
type Horizon = keyof typeof HORIZONS;
const NAMES = Object.keys(HORIZONS) as Horizon[];
const LEADS = Array.from({ length: 288 }, (_, index) => index + 1);
const DAY = 288;
const ORIGIN_STRIDE = 48;
const TEST_STEPS = 7 * DAY;
/** Of a series shorter than that: the last third. */
const TEST_SHARE = 1 / 3;
const QUICK_SERIES = 8;
const QUICK_HISTORY = 21 * DAY;
const SUBSET_SERIES = 10;
const SUBSET_ORIGIN_STRIDE = 6;
/** All forecasts of R together may take so long; a method that does not come to its end in a third of it is not compared. */
const R_MS_MAX = 2_700_000;
/** Whoever changes by less than this share of its mean from day to day has no scale for MASE. */
const NEAR_CONSTANT = 1e-3;
const OURS = 'understudy';
const SEASONAL = 'seasonal naive';

export const forecast: Benchmark = {
  name: 'forecast',
  summary: 'Quantile forecasts of traces, rolling origin, next to simple methods and those of R.',
  figures: figureTable(),
  run: async (run) => {
    const traces = tracesOf(run);
    const tests = traces.map((trace) => testOf(trace, run.options.quick));
    const results = tests.map((test, index) => {
      run.progress(`${test.trace.name} (${index + 1} of ${tests.length})`);
      return compare(test);
    });
    reportScores(run, results);
    await compareWithR(run, results);
    measureCost(run, traces[0] ?? sampleTraces({ count: 1, days: 15 })[0]);
  },
};

function figureTable(): Record<string, FigureInfo> {
  const figures: Record<string, FigureInfo> = {};
  for (const name of NAMES) {
    const at = `${name} ahead`;
    figures[`wql${name}`] = {
      meaning: `weighted quantile loss at 0.1 … 0.9, all leads up to ${at}`,
    };
    figures[`wqlSeasonalNaive${name}`] = {
      meaning: 'the same of seasonal naive with the errors of its last day',
    };
    figures[`wqlBestSimple${name}`] = {
      meaning:
        'the same of the best of naive, seasonal naive, last 24 h, same time of 7 days, EWMA, Holt-Winters',
    };
    figures[`wqlSeasonalNaiveRatio${name}`] = {
      meaning: `wql${name} / wqlSeasonalNaive${name}`,
      ...(name === '4h' && { target: { atMost: 0.6 } }),
    };
    figures[`wqlBestSimpleRatio${name}`] = {
      meaning: `wql${name} / wqlBestSimple${name}`,
      ...(name === '4h' && { target: { atMost: 0.87 } }),
    };
    figures[`mase${name}`] = {
      meaning: `error of the median / mean change from day to day before the test, ${at}`,
    };
    figures[`pinball95At${name}`] = { meaning: `2 × pinball loss at 0.95 / sum of what happened, ${at}` };
    figures[`pinball99At${name}`] = { meaning: `the same at 0.99, ${at}` };
    figures[`winShare${name}`] = {
      meaning: `share of series whose WQL is below that of seasonal naive, ${at}`,
    };
    figures[`wqlSubset${name}`] = { meaning: `wql${name} on what R is given: 10 series × 7 origins` };
    figures[`wqlBestR${name}`] = { meaning: 'the best of auto.arima, ets and tbats on that' };
  }
  return {
    ...figures,
    coverageError90Points: {
      meaning: 'how far the share at or below the 0.9 quantile is from 90 %, up to 4h ahead',
      target: { atMost: 2 },
    },
    coverageError95Points: { meaning: 'the same at 0.95' },
    coverageError99Points: { meaning: 'the same at 0.99', target: { atMost: 2 } },
    updateP50Us: { meaning: 'taking one sample at 1 Hz, all scales', target: { atMost: 15 } },
    updateMeanUs: { meaning: 'the same on average, with the samples that end a step' },
    predictP50Us: { meaning: 'one whole forecast: 40 horizons × 11 quantiles', target: { atMost: 500 } },
    bytesPerSeries: { meaning: 'saved state of one metric of one VM' },
    seriesCount: { meaning: 'series compared' },
    nearConstantCount: { meaning: 'of these, without a scale for MASE' },
  };
}

function tracesOf(run: BenchRun): Trace[] {
  const { traces: folder, stepMs, quick } = run.options;
  if (folder === undefined) {
    run.note('without --traces: machines of five kinds, generated');
    return sampleTraces({ count: quick ? QUICK_SERIES : 20, days: 22 });
  }
  const all = readTraces(folder, { stepMs }).map(inSteps);
  const usable = all.filter(({ values }) => values.filter((value) => !Number.isNaN(value)).length >= DAY / 2);
  if (usable.length === 0) {
    throw new BenchError('BENCH_USAGE', `no series in ${folder} is half a day long`, {
      hint: 'Give longer traces, or the right --step.',
    });
  }
  if (usable.length < all.length)
    run.note(`${all.length - usable.length} series are shorter than half a day`);
  if (!quick || usable.length <= QUICK_SERIES) return usable;
  run.note(`--quick: ${QUICK_SERIES} of ${usable.length} series`);
  return Array.from(
    { length: QUICK_SERIES },
    (_, index) => usable[Math.floor((index * usable.length) / QUICK_SERIES)] ?? usable[0],
  ).filter((trace) => trace !== undefined);
}

/** In steps of five minutes: means of shorter ones; longer ones are held until the next. */
function inSteps(trace: Trace): Trace {
  const { stepMs, values: given } = trace;
  if (stepMs === MINUTES_STEP_MS) return trace;
  const values = new Float64Array(Math.floor((given.length * stepMs) / MINUTES_STEP_MS));
  for (let step = 0; step < values.length; step += 1) {
    const from = Math.floor((step * MINUTES_STEP_MS) / stepMs);
    const to = Math.max(from + 1, Math.floor(((step + 1) * MINUTES_STEP_MS) / stepMs));
    const part = given.subarray(from, to).filter((value) => !Number.isNaN(value));
    values[step] = part.reduce((sum, value) => sum + value, 0) / part.length;
  }
  return { ...trace, stepMs: MINUTES_STEP_MS, values };
}

interface Test {
  readonly trace: Trace;
  readonly values: Float64Array;
  readonly origins: readonly number[];
}

/** Origins every 48 steps over the last 7 days. */
function testOf(trace: Trace, quick: boolean): Test {
  const values = quick ? trace.values.slice(-QUICK_HISTORY) : trace.values;
  const steps = Math.min(TEST_STEPS, Math.floor(values.length * TEST_SHARE));
  const origins: number[] = [];
  for (let at = values.length - steps; at < values.length; at += ORIGIN_STRIDE) origins.push(at);
  return { trace, values, origins };
}

interface Compared extends Test {
  /** By way, then horizon. */
  readonly scores: ReadonlyMap<string, Readonly<Record<Horizon, ForecastScores>>>;
  /** What we said at each origin, as far as there is something to hold it against. */
  readonly said: readonly Float64Array[];
  /** Mean change from day to day before the test; undefined where there is next to none. */
  readonly scale: number | undefined;
}

function compare(test: Test): Compared {
  const { values, origins } = test;
  const said = sayAll(test);
  const ways = new Map<string, (origin: number, leads: number) => Float64Array>([
    [OURS, (origin) => said[origins.indexOf(origin)] ?? new Float64Array()],
  ]);
  for (const { name, prepare } of SIMPLE_FORECASTS) ways.set(name, prepare(values, origins[0] ?? 0));
  const scores = new Map([...ways].map(([name, way]) => [name, scoreWay(test, way)]));
  return { ...test, scores, said, scale: scaleOf(values.subarray(0, origins[0])) };
}

function sayAll({ trace, values, origins }: Test): Float64Array[] {
  const forecaster = new SeriesForecaster({ ...MINUTES_SERIES, methods: minutesMethods() });
  let next = 0;
  return origins.map((origin) => {
    for (; next < origin; next += 1)
      forecaster.update(values[next] ?? Number.NaN, trace.startMs + next * trace.stepMs);
    return forecaster.predict(LEADS.slice(0, values.length - origin))?.values ?? new Float64Array();
  });
}

function scoreWay(
  { values, origins }: Test,
  way: (origin: number, leads: number) => Float64Array,
): Record<Horizon, ForecastScores> {
  const scores = emptyScores();
  for (const origin of origins) {
    const leads = Math.min(LEADS.length, values.length - origin);
    addForecast(scores, { rows: way(origin, leads), values, origin });
  }
  return scores;
}

function emptyScores(): Record<Horizon, ForecastScores> {
  return {
    '5m': new ForecastScores(),
    '1h': new ForecastScores(),
    '4h': new ForecastScores(),
    '24h': new ForecastScores(),
  };
}

/** A horizon counts where all of it happened. */
function addForecast(
  scores: Record<Horizon, ForecastScores>,
  { rows, values, origin }: { rows: Float64Array; values: Float64Array; origin: number },
): void {
  const width = 11;
  for (const name of NAMES) {
    if (origin + HORIZONS[name] > values.length || rows.length < HORIZONS[name] * width) continue;
    for (let lead = 0; lead < HORIZONS[name]; lead += 1)
      scores[name].add(values[origin + lead] ?? Number.NaN, rows, lead * width);
  }
}

function scaleOf(before: Float64Array): number | undefined {
  let [sum, size, count] = [0, 0, 0];
  for (let at = DAY; at < before.length; at += 1) {
    const change = Math.abs((before[at] ?? 0) - (before[at - DAY] ?? 0));
    if (Number.isNaN(change)) continue;
    sum += change;
    size += Math.abs(before[at] ?? 0);
    count += 1;
  }
  return count === 0 || sum <= NEAR_CONSTANT * size ? undefined : sum / count;
}

function reportScores(run: BenchRun, results: readonly Compared[]): void {
  for (const name of NAMES) {
    const pooled = new Map(
      [...(results[0]?.scores.keys() ?? [])].map((way) => {
        const all = new ForecastScores();
        for (const { scores } of results) {
          const one = scores.get(way);
          if (one !== undefined) all.merge(one[name]);
        }
        return [way, all] as const;
      }),
    );
    const ours = pooled.get(OURS);
    if (ours === undefined || ours.count === 0) {
      for (const figure of Object.keys(forecast.figures))
        if (figure.endsWith(name) && !/Subset|BestR\d/.test(figure))
          run.missing(figure, `no trace is long enough for ${name} ahead`);
      continue;
    }
    const simple = [...pooled].filter(([way]) => way !== OURS).map(([way, { wql }]) => ({ way, wql }));
    const best = simple.reduce((least, one) => (one.wql < least.wql ? one : least));
    const seasonal = pooled.get(SEASONAL)?.wql ?? Number.NaN;
    run.figure(`wql${name}`, ours.wql);
    run.figure(`wqlSeasonalNaive${name}`, seasonal);
    run.figure(`wqlBestSimple${name}`, best.wql);
    run.figure(`wqlSeasonalNaiveRatio${name}`, ours.wql / seasonal);
    run.figure(`wqlBestSimpleRatio${name}`, ours.wql / best.wql);
    run.figure(`pinball95At${name}`, ours.relativePinball(0.95));
    run.figure(`pinball99At${name}`, ours.relativePinball(0.99));
    run.note(`WQL ${name}: ${simple.map(({ way, wql }) => `${way} ${wql.toFixed(4)}`).join(', ')}`);
    reportSeries(run, name, results);
    if (name !== '4h') continue;
    reportFiles(run, name, results);
    for (const [level, text] of [
      [0.9, '90'],
      [0.95, '95'],
      [0.99, '99'],
    ] as const)
      run.figure(`coverageError${text}Points`, 100 * Math.abs(ours.coverage(level) - level));
    run.note(
      `coverage 4h: ${[0.1, 0.5, 0.9, 0.95, 0.99].map((level) => `${level}: ${ours.coverage(level).toFixed(3)}`).join(', ')}`,
    );
  }
  run.figure('seriesCount', results.length);
  run.figure('nearConstantCount', results.filter(({ scale }) => scale === undefined).length);
}

/** Where a folder holds several files, they may be of different things. */
function reportFiles(run: BenchRun, name: Horizon, results: readonly Compared[]): void {
  const files = [...new Set(results.map(({ trace }) => trace.file))];
  if (files.length < 2) return;
  for (const file of files) {
    const [ours, theirs] = [OURS, SEASONAL].map((way) => {
      const all = new ForecastScores();
      for (const { trace, scores } of results) {
        const one = scores.get(way);
        if (trace.file === file && one !== undefined) all.merge(one[name]);
      }
      return all;
    });
    if (ours === undefined || theirs === undefined || ours.count === 0) continue;
    run.note(
      `WQL ${name} of ${file}: ${ours.wql.toFixed(4)}, seasonal naive ${theirs.wql.toFixed(4)}, 0.9 covers ${ours.coverage(0.9).toFixed(3)}`,
    );
  }
}

/** Figures that are means over series. */
function reportSeries(run: BenchRun, name: Horizon, results: readonly Compared[]): void {
  const pairs = results.flatMap(({ scores, scale }) => {
    const [ours, theirs] = [scores.get(OURS)?.[name], scores.get(SEASONAL)?.[name]];
    return ours === undefined || theirs === undefined || ours.count === 0 ? [] : [{ ours, theirs, scale }];
  });
  run.figure(
    `winShare${name}`,
    pairs.filter(({ ours, theirs }) => ours.wql < theirs.wql).length / pairs.length,
  );
  const errors = pairs.flatMap(({ ours, scale }) => (scale === undefined ? [] : ours.meanError / scale));
  if (errors.length === 0) run.missing(`mase${name}`, 'no series has two days before the test that differ');
  else run.figure(`mase${name}`, errors.reduce((sum, error) => sum + error, 0) / errors.length);
}

async function compareWithR(run: BenchRun, results: readonly Compared[]): Promise<void> {
  const count = Math.min(SUBSET_SERIES, results.length);
  const subset = Array.from(
    { length: count },
    (_, index) => results[Math.floor((index * results.length) / count)],
  );
  const cases = subset.flatMap((one) =>
    one === undefined
      ? []
      : one.origins.flatMap((origin, at) =>
          at % SUBSET_ORIGIN_STRIDE === 0
            ? [{ origin, values: one.values, rows: one.said[at] ?? new Float64Array() }]
            : [],
        ),
  );
  const ours = emptyScores();
  for (const one of cases) addForecast(ours, one);
  const version = rVersion();
  const best = await bestOfR(run, { cases, version });
  for (const name of NAMES) {
    if (ours[name].count === 0) run.missing(`wqlSubset${name}`, 'no trace is long enough');
    else run.figure(`wqlSubset${name}`, ours[name].wql);
    const value = best[name];
    if (value === undefined) run.missing(`wqlBestR${name}`, best.reason);
    else run.figure(`wqlBestR${name}`, value);
  }
}

interface RCases {
  readonly cases: readonly { readonly origin: number; readonly values: Float64Array }[];
  readonly version: string | undefined;
}

async function bestOfR(
  run: BenchRun,
  { cases, version }: RCases,
): Promise<Partial<Record<Horizon, number>> & { reason: string }> {
  if (run.options.quick) return { reason: '--quick: R takes minutes' };
  if (version === undefined)
    return { reason: 'no Rscript with the package forecast (Debian: r-cran-forecast)' };
  run.describe({ versions: { rForecast: version } });
  const best: Partial<Record<Horizon, number>> = {};
  for (const method of R_METHODS) {
    run.progress(`R: ${method}`);
    const done = await forecastWithR(method, cases, {
      leads: LEADS.length,
      deadlineMs: R_MS_MAX / R_METHODS.length,
      signal: run.options.signal,
    });
    noteR(run, { method, done, cases, best });
  }
  return { ...best, reason: 'no method of R came to an end in time' };
}

interface RNote {
  readonly method: RMethod;
  readonly done: readonly Float64Array[];
  readonly cases: RCases['cases'];
  readonly best: Partial<Record<Horizon, number>>;
}

function noteR(run: BenchRun, { method, done, cases, best }: RNote): void {
  const scores = emptyScores();
  for (const [index, rows] of done.entries()) {
    const one = cases[index];
    if (one !== undefined) addForecast(scores, { ...one, rows });
  }
  const texts = NAMES.map(
    (name) => `${name} ${scores[name].count === 0 ? '—' : scores[name].wql.toFixed(4)}`,
  );
  run.note(`R ${method}, ${done.length} of ${cases.length} forecasts: ${texts.join(', ')}`);
  // What did not finish is not compared: it has seen other forecasts than we have.
  if (done.length < cases.length) return;
  for (const name of NAMES) {
    if (scores[name].count > 0)
      best[name] = Math.min(best[name] ?? Number.POSITIVE_INFINITY, scores[name].wql);
  }
}

const SECOND_MS = 1000;
const WARM_SAMPLE_MS = 60 * SECOND_MS;
const MEASURED_SAMPLES = 3600;
const FORECASTS = 300;

/** A forecaster that has seen two weeks is given an hour at one sample a second. */
function measureCost(run: BenchRun, trace: Trace | undefined): void {
  if (trace === undefined) return;
  run.progress('cost of updates and forecasts');
  const forecaster = new Forecaster();
  const valueAt = (ms: number) => {
    const value = trace.values[Math.floor(ms / trace.stepMs) % trace.values.length] ?? 0;
    return Number.isNaN(value) ? 0 : value * (1 + 0.1 * Math.sin(ms));
  };
  const warmMs = 15 * DAY * MINUTES_STEP_MS;
  let atMs = 0;
  for (; atMs < warmMs; atMs += WARM_SAMPLE_MS)
    forecaster.add(valueAt(atMs), { wallMs: trace.startMs + atMs, monotonicMs: atMs });
  const updates = new Float64Array(MEASURED_SAMPLES);
  for (let index = 0; index < MEASURED_SAMPLES; index += 1, atMs += SECOND_MS) {
    const value = valueAt(atMs);
    const began = performance.now();
    forecaster.add(value, { wallMs: trace.startMs + atMs, monotonicMs: atMs });
    updates[index] = (performance.now() - began) * 1000;
  }
  run.sample('updateUs', ...updates);
  for (let index = 0; index < FORECASTS; index += 1) {
    const began = performance.now();
    forecaster.forecast();
    run.sample('predictUs', (performance.now() - began) * 1000);
  }
  run.figure('updateP50Us', run.p50('updateUs'));
  run.figure('updateMeanUs', updates.reduce((sum, value) => sum + value, 0) / updates.length);
  run.figure('predictP50Us', run.p50('predictUs'));
  run.figure('bytesPerSeries', forecaster.save().length);
}
