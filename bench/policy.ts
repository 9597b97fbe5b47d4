import { setImmediate } from 'node:timers/promises';
import { quantile } from '../src/base/sample-window.ts';
import { syntheticWorkload, WORKLOAD_KINDS } from '../src/forecast/synthetic-workload.ts';
import {
  type AllocationRule,
  decayingHistogram,
  forecastPeak,
  highest,
  lastHours,
  type RuleInput,
  sameHour,
} from './allocation-rules.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { readTraces, type Trace } from './trace-folder.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** What a series has to have before its first decision, and for how long it is decided then: its last days. */
const HISTORY_DAYS = 8;
const JUDGED_DAYS = 7;
const QUICK_SERIES = 15;
const GENERATED_PER_KIND = 3;
const PERCENT = 100;
/** A change of less than this share is none that anybody would carry out. */
const CHANGE_SHARE = 0.1;

const VIOLATIONS = [
  { share: 0.014, suffix: 'At1p4' },
  { share: 0.02, suffix: 'At2' },
  { share: 0.05, suffix: 'At5' },
] as const;

const BASELINES: Readonly<Record<string, (input: RuleInput) => AllocationRule>> = {
  decayingHistogram,
  lastHour: (input) => lastHours(input, 1),
  last24Hours: (input) => lastHours(input, 24),
  sameHour,
};
const RULES: Readonly<Record<string, (input: RuleInput) => AllocationRule>> = {
  ...BASELINES,
  forecast: forecastPeak,
};

/** One hour of one series. All amounts are shares of what the machine has. */
interface Hour {
  readonly allocated: number;
  readonly needed: number;
}

/** By the name of the rule, then by series. */
type HoursByRule = Readonly<Record<string, Hour[][]>>;

export const policy: Benchmark = {
  name: 'policy',
  summary:
    'How little can be allocated for the next hour, from the past alone, at equal hours of too little.',
  figures: {
    ...Object.fromEntries(
      VIOLATIONS.map(({ share, suffix }): [string, FigureInfo] => [
        `allocatedShare${suffix}`,
        {
          meaning: `ours: share of all machines that is allocated, at ${percentText(share)} % of hours with too little`,
        },
      ]),
    ),
    ...Object.fromEntries(
      VIOLATIONS.map(({ share, suffix }): [string, FigureInfo] => [
        `bestBaseline${suffix}`,
        { meaning: `the least that a baseline needs at ${percentText(share)} %` },
      ]),
    ),
    policyRatioAt1p4: { meaning: 'allocated at 1.4 %: ours / best baseline', target: { atMost: 0.8 } },
    policyRatioAt2: { meaning: 'the same at 2 %' },
    policyRatioAt5: { meaning: 'the same at 5 %' },
    ...Object.fromEntries(
      Object.keys(BASELINES).map((name): [string, FigureInfo] => [
        `${name}At1p4`,
        {
          meaning: `baseline at 1.4 %: ${RULES[name]?.({ values: new Float64Array(0), stepMs: 1 }).meaning}`,
        },
      ]),
    ),
    oracleShare: { meaning: 'allocated by who knows the next hour' },
    resizesPerDay: { meaning: 'changes of 10 % and more, per series and day: ours at 1.4 %' },
    violatedSpread: {
      meaning: 'ours at 1.4 %: hours with too little of the series that has the most of them, as a share',
    },
    seriesCount: { meaning: 'series' },
  },
  run: async (run) => {
    const traces = tracesOf(run);
    const hours: HoursByRule = Object.fromEntries(Object.keys(RULES).map((name) => [name, []]));
    for (const [index, trace] of traces.entries()) {
      run.progress(`${index + 1} of ${traces.length}: ${trace.name}`);
      for (const [name, ruleOf] of Object.entries(RULES)) hours[name]?.push(replay(trace, ruleOf(trace)));
      await setImmediate();
    }
    report(run, hours);
    run.figure('seriesCount', traces.length);
    noteFiles(run, { traces, hours });
  },
};

function tracesOf(run: BenchRun): Trace[] {
  const { traces: folder, stepMs, quick } = run.options;
  const steps = Math.round(((HISTORY_DAYS + 2 * JUDGED_DAYS) * DAY_MS) / stepMs);
  const all =
    folder === undefined
      ? WORKLOAD_KINDS.flatMap((kind) =>
          Array.from({ length: GENERATED_PER_KIND }, (_, seed) => ({
            ...syntheticWorkload({ kind, seed, steps, stepMs }),
            file: 'generated',
          })),
        )
      : readTraces(folder, { stepMs });
  if (folder === undefined) run.note('generated workloads; --traces takes a folder of recorded ones');
  const fit = all.filter(
    ({ values, stepMs }) => values.length * stepMs >= (HISTORY_DAYS + JUDGED_DAYS) * DAY_MS,
  );
  if (fit.length < all.length)
    run.note(
      `${all.length - fit.length} series are shorter than ${HISTORY_DAYS + JUDGED_DAYS} days and left out`,
    );
  if (!quick || fit.length <= QUICK_SERIES) return fit;
  return fit.filter((_, index) => index % Math.ceil(fit.length / QUICK_SERIES) === 0);
}

/** Decides for each hour of the last days in turn, as a share of the machine: 100 where it is in percent, else the highest value. */
function replay({ values, stepMs }: Trace, rule: AllocationRule): Hour[] {
  const most = highest(values, { from: 0, to: values.length });
  const capacity = most <= PERCENT ? PERCENT : most;
  const hour = Math.round(HOUR_MS / stepMs);
  const first = values.length - Math.round((JUDGED_DAYS * DAY_MS) / stepMs);
  const hours: Hour[] = [];
  for (let origin = first; origin + hour <= values.length; origin += hour) {
    const allocated = rule.decide(origin) / capacity;
    hours.push({ allocated, needed: highest(values, { from: origin, to: origin + hour }) / capacity });
  }
  return hours;
}

/** The factor on what a rule says, one for all series, with which the share of hours with too little is `violated`. */
function factorFor(hours: readonly Hour[], violated: number): number {
  const factors = hours
    .map(({ allocated, needed }) => (needed === 0 ? 0 : needed / Math.max(allocated, 1e-9)))
    .sort((a, b) => a - b);
  return quantile(factors, 1 - violated);
}

function allocatedBy(hours: readonly Hour[], factor: number): number {
  return hours.reduce((sum, { allocated }) => sum + Math.min(1, allocated * factor), 0) / hours.length;
}

function report(run: BenchRun, hours: HoursByRule): void {
  const all = Object.fromEntries(Object.entries(hours).map(([name, series]) => [name, series.flat()]));
  const shareOf = (name: string, violated: number) => {
    const of = all[name] ?? [];
    return allocatedBy(of, factorFor(of, violated));
  };
  for (const { share, suffix } of VIOLATIONS) {
    const baselines = Object.keys(BASELINES).map((name) => shareOf(name, share));
    const best = Math.min(...baselines);
    run.figure(`allocatedShare${suffix}`, shareOf('forecast', share));
    run.figure(`bestBaseline${suffix}`, best);
    run.figure(`policyRatio${suffix}`, shareOf('forecast', share) / best);
  }
  for (const name of Object.keys(BASELINES)) run.figure(`${name}At1p4`, shareOf(name, 0.014));
  const ours = all.forecast ?? [];
  run.figure('oracleShare', ours.reduce((sum, { needed }) => sum + needed, 0) / ours.length);
  const factor = factorFor(ours, 0.014);
  run.note(
    `ours at 1.4 %: quantile 0.95 × ${factor.toFixed(2)}; each rule has one factor for all series, found afterwards`,
  );
  const perSeries = hours.forecast ?? [];
  run.figure('resizesPerDay', resizes(perSeries) / (perSeries.length * JUDGED_DAYS));
  const worst = perSeries.map(
    (series) => series.filter((hour) => isViolated(hour, factor)).length / series.length,
  );
  run.figure('violatedSpread', Math.max(...worst));
}

/** Files of a folder may be of very different kinds of series. */
function noteFiles(
  run: BenchRun,
  { traces, hours }: { readonly traces: readonly Trace[]; readonly hours: HoursByRule },
): void {
  const files = new Set(traces.map(({ file }) => file));
  if (files.size < 2) return;
  for (const file of files) {
    const shares = Object.entries(hours).map(([name, series]) => {
      const own = series.filter((_, index) => traces[index]?.file === file).flat();
      return { name, share: allocatedBy(own, factorFor(own, VIOLATIONS[0].share)) };
    });
    const ours = shares.find(({ name }) => name === 'forecast')?.share ?? Number.NaN;
    const best = Math.min(...shares.filter(({ name }) => name !== 'forecast').map(({ share }) => share));
    run.note(
      `${file} alone at 1.4 %: ours ${ours.toFixed(4)}, best baseline ${best.toFixed(4)}, ratio ${(ours / best).toFixed(3)}`,
    );
  }
}

function isViolated({ allocated, needed }: Hour, factor: number): boolean {
  return needed > Math.min(1, allocated * factor) * (1 + 1e-9);
}

function resizes(series: readonly (readonly Hour[])[]): number {
  let count = 0;
  for (const hours of series) {
    let has = hours[0]?.allocated ?? 0;
    for (const { allocated } of hours) {
      if (Math.abs(allocated - has) < CHANGE_SHARE * has) continue;
      has = allocated;
      count += 1;
    }
  }
  return count;
}

function percentText(share: number): string {
  return String(Number((share * PERCENT).toFixed(1)));
}
