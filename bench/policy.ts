import { BenchError } from './bench-error.ts';
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
import { generatedTraces } from './generated-traces.ts';
import { readTraces, type Trace } from './trace-folder.ts';

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** What a series has to have before its first decision, and for how long it is decided then. */
const HISTORY_DAYS = 8;
const JUDGED_DAYS = 7;
const QUICK_SERIES = 20;
const SHARES = [
  { violated: 0.014, suffix: 'At1p4' },
  { violated: 0.02, suffix: 'At2' },
  { violated: 0.05, suffix: 'At5' },
] as const;
const BASELINES: readonly ((input: RuleInput) => AllocationRule)[] = [
  decayingHistogram,
  (input) => lastHours(input, 1),
  (input) => lastHours(input, 24),
  sameHour,
];
const BASELINE_NAMES = ['decayingHistogram', 'lastHour', 'last24Hours', 'sameHour'] as const;

/** Of all series together, one after the other: what was allocated before its margin, what was needed, what there is. */
interface Decisions {
  readonly allocated: number[];
  readonly needed: number[];
  readonly capacity: number[];
}

export const policy: Benchmark = {
  name: 'policy',
  summary: 'How much has to be allocated for the next hour, from the past alone, for as many hours in which it was too little.',
  figures: figureInfos(),
  run: async (run) => {
    const traces = tracesOf(run);
    const rules = [...BASELINES, (input: RuleInput) => forecastPeak(input)];
    const decisions = rules.map((): Decisions => ({ allocated: [], needed: [], capacity: [] }));
    const changes = { count: 0, days: 0 };
    for (const [index, trace] of traces.entries()) {
      run.progress(`${trace.name}, ${index + 1} of ${traces.length}`);
      for (const [at, rule] of rules.entries()) replay(trace, rule, decisions[at]);
      changes.days += JUDGED_DAYS;
      // The signal is looked at between two series.
      await Promise.resolve();
    }
    report(run, decisions, changes);
  },
};
