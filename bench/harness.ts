import { assert } from '../src/base/assert.ts';
import type { Clock } from '../src/base/clock.ts';
import { quantile } from '../src/base/sample-window.ts';
import type { MachineFacts, Versions } from './machine-facts.ts';

/** What a figure means, for `--help`, and what is aimed at on a machine with 2 cores and without KVM. */
export interface FigureInfo {
  readonly meaning: string;
  readonly target?: { readonly atMost: number } | { readonly atLeast: number };
}

export interface Benchmark {
  readonly name: string;
  /** One sentence. */
  readonly summary: string;
  /** In the order in which they are shown. After `run` each has a value, or is missing for a reason. */
  readonly figures: Readonly<Record<string, FigureInfo>>;
  run(run: BenchRun): Promise<void>;
}

export interface SampleFigures {
  readonly n: number;
  readonly p50: number;
  readonly p99: number;
  readonly min: number;
  readonly max: number;
}

/** What `--json` prints. A figure that could not be measured is null, and a note says why. */
export interface BenchResult {
  readonly bench: string;
  readonly machine: MachineFacts & Readonly<Record<string, unknown>>;
  readonly versions: Versions & Readonly<Record<string, string>>;
  readonly figures: Readonly<Record<string, number | null>>;
  readonly samples: Readonly<Record<string, SampleFigures>>;
  readonly notes: readonly string[];
}

export interface RunOptions {
  /** Shorter than 60 s; figures keep their meaning and get less sure. */
  readonly quick: boolean;
  /** How often `failover` kills; undefined: as often as it thinks fit. */
  readonly kills: number | undefined;
  /** A folder of traces, for benchmarks that replay them. */
  readonly traces: string | undefined;
  /** Between two steps of traces without timestamps. */
  readonly stepMs: number;
  readonly clock: Clock;
  /** Aborted when the person wants to stop. */
  readonly signal: AbortSignal;
  /** Told each step that takes more than a second. */
  readonly onProgress: (step: string) => void;
}

/** One run of one benchmark: what it may do, and what it has found so far. */
export class BenchRun {
  readonly options: RunOptions;
  readonly #benchmark: Benchmark;
  readonly #figures = new Map<string, number | null>();
  readonly #samples = new Map<string, number[]>();
  readonly #notes: string[] = [];
  #machine: Readonly<Record<string, unknown>> = {};
  #versions: Readonly<Record<string, string>> = {};

  constructor(benchmark: Benchmark, options: RunOptions) {
    this.#benchmark = benchmark;
    this.options = options;
    if (options.quick) this.note('--quick: few samples; read the quantiles, above all p99, with care');
  }

  progress(step: string): void {
    this.options.signal.throwIfAborted();
    this.options.onProgress(step);
  }

  /** Adds to a series of samples, which need not have a figure of its name. */
  sample(series: string, ...values: readonly number[]): void {
    if (values.length === 0) return;
    const known = this.#samples.get(series) ?? [];
    known.push(...values);
    this.#samples.set(series, known);
  }

  p50(series: string): number {
    return this.quantile(series, 0.5);
  }

  quantile(series: string, q: number): number {
    const samples = this.#samples.get(series);
    assert(samples !== undefined && samples.length > 0, `there are samples of ${series}`);
    return quantile(samples.toSorted(ascending), q);
  }

  count(series: string): number {
    return this.#samples.get(series)?.length ?? 0;
  }

  hasSamples(series: string): boolean {
    return this.count(series) > 0;
  }

  figure(name: string, value: number): void {
    assert(name in this.#benchmark.figures, `${this.#benchmark.name} declares its figure ${name}`);
    assert(Number.isFinite(value), `${name} is a number`);
    this.#figures.set(name, value);
  }

  missing(name: string, reason: string): void {
    assert(name in this.#benchmark.figures, `${this.#benchmark.name} declares its figure ${name}`);
    this.#figures.set(name, null);
    this.note(`${name}: ${reason}`);
  }

  note(text: string): void {
    if (!this.#notes.includes(text)) this.#notes.push(text);
  }

  /** Facts about the guest and how it ran, beside those of the machine. */
  describe(facts: { machine?: Record<string, unknown>; versions?: Record<string, string> }): void {
    this.#machine = { ...this.#machine, ...facts.machine };
    this.#versions = { ...this.#versions, ...facts.versions };
  }

  result(machine: MachineFacts, versions: Versions): BenchResult {
    const names = Object.keys(this.#benchmark.figures);
    const unset = names.filter((name) => !this.#figures.has(name));
    assert(unset.length === 0, `${unset.join(', ')} have a value or a reason why not`);
    return {
      bench: this.#benchmark.name,
      machine: { ...machine, ...this.#machine },
      versions: { ...versions, ...this.#versions },
      figures: Object.fromEntries(names.map((name) => [name, rounded(this.#figures.get(name) ?? null)])),
      samples: Object.fromEntries(
        [...this.#samples].map(([series, values]) => [series, sampleFigures(values)]),
      ),
      notes: [...this.#notes],
    };
  }
}

export function sampleFigures(values: readonly number[]): SampleFigures {
  const sorted = values.toSorted(ascending);
  return {
    n: sorted.length,
    p50: rounded(quantile(sorted, 0.5)) ?? 0,
    p99: rounded(quantile(sorted, 0.99)) ?? 0,
    min: rounded(sorted[0] ?? 0) ?? 0,
    max: rounded(sorted.at(-1) ?? 0) ?? 0,
  };
}

/** Whether a figure reaches its target; undefined where there is none, or no figure. */
export function reaches(value: number | null, { target }: FigureInfo): boolean | undefined {
  if (value === null || target === undefined) return undefined;
  return 'atMost' in target ? value <= target.atMost : value >= target.atLeast;
}

/** Four digits are more than any of these measurements can promise. */
function rounded(value: number | null): number | null {
  return value === null ? null : Number(value.toPrecision(4));
}

function ascending(a: number, b: number): number {
  return a - b;
}
