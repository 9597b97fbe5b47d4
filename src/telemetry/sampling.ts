import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { MetricName } from './metric.ts';
import type { MetricSource, Reading } from './metric-source.ts';
import { type TimedReading, valuesOf } from './rates.ts';
import type { Sample } from './sample.ts';

/** What is not there after this share of an interval, or so long, is left out of the sample. */
const WAIT_SHARE_MAX = 0.8;
const WAIT_MS_MAX = 2000;
/** A source that says nothing for so long hangs. */
const HANGS_AFTER_MS = 2000;
/** A QEMU that is just being taken over fails once, and that is nothing to tell. */
const FAILURES_TOLD = 2;
const RETRY_MS_MAX = 60_000;
/** What must not be disturbed is not waited for longer. */
const CALM_MS_MAX = 20;

/** A source began to fail or to hang, or says something again. */
export interface SourceTrouble {
  readonly source: string;
  readonly kind: 'failed' | 'hangs' | 'recovered';
  readonly error?: string;
}

export interface SamplingOptions {
  readonly vm: string;
  readonly instanceId: () => string;
  readonly sources: readonly MetricSource[];
  readonly clock: Clock;
  /** CLOCK_MONOTONIC in ms. */
  readonly monotonicMs: () => number;
  readonly intervalMs: number;
  /** Something that reading would draw out: undefined, or resolves when it is over. */
  readonly calm?: () => Promise<unknown> | undefined;
  readonly onSample: (sample: Sample) => void;
  readonly onTrouble: (trouble: SourceTrouble) => void;
}

/** A source as it has done so far. */
interface Sampled {
  readonly source: MetricSource;
  last: TimedReading | undefined;
  /** Of the sample that is being taken. */
  current: TimedReading | undefined;
  askedAtMs: number | undefined;
  failures: number;
  retryAtMs: number;
  told: boolean;
}

/**
 * Takes samples of one VM, one after the other, as long as it is told to. They are due at whole intervals from the start, so
 * that lateness does not add up; what was missed is skipped. A source that fails or hangs is left out, told of once and
 * asked again later, less and less often; it delays nothing but the sample that waits for it, and that within bounds.
 */
export class Sampling implements Disposable {
  readonly #options: SamplingOptions;
  readonly #sources: readonly Sampled[];
  #intervalMs: number;
  #cancel: () => void = () => {};
  /** Grows with each start and stop: what goes on for an earlier one ends. */
  #run = 0;
  #isRunning = false;
  #dueMs = 0;
  #lastAtMs = 0;

  constructor(options: SamplingOptions) {
    this.#options = options;
    this.#intervalMs = options.intervalMs;
    this.#sources = options.sources.map((source) => ({
      ...{ source, last: undefined, current: undefined, askedAtMs: undefined },
      ...{ failures: 0, retryAtMs: Number.NEGATIVE_INFINITY, told: false },
    }));
  }

  get intervalMs(): number {
    return this.#intervalMs;
  }

  /** Names of the sources that fail or hang. */
  get failing(): readonly string[] {
    return this.#sources.filter(({ told }) => told).map(({ source }) => source.name);
  }

  /** Counters are read now, so that the first sample, an interval from now, is of this interval. */
  start(): void {
    if (this.#isRunning) return;
    this.#isRunning = true;
    this.#run += 1;
    this.#dueMs = this.#options.clock.nowMs() + this.#intervalMs;
    void this.#begin(this.#run);
  }

  /** From now on; a sample that is being taken comes to its end. */
  changeInterval(intervalMs: number): void {
    this.#intervalMs = intervalMs;
    if (!this.#isRunning) return;
    this.#dueMs = this.#options.clock.nowMs() + intervalMs;
    this.#arm(this.#run);
  }

  stop(): void {
    this.#isRunning = false;
    this.#run += 1;
    this.#cancel();
  }

  [Symbol.dispose](): void {
    this.stop();
    for (const { source } of this.#sources) source[Symbol.dispose]();
  }

  async #begin(run: number): Promise<void> {
    const { monotonicMs } = this.#options;
    this.#lastAtMs = monotonicMs();
    await this.#read();
    if (run !== this.#run) return;
    for (const sampled of this.#sources) sampled.last = sampled.current ?? sampled.last;
    this.#arm(run);
  }

  #arm(run: number): void {
    this.#cancel();
    const { clock } = this.#options;
    this.#cancel = clock.after(Math.max(0, this.#dueMs - clock.nowMs()), () => void this.#take(run));
  }

  async #take(run: number): Promise<void> {
    await this.#untilCalm();
    if (run !== this.#run) return;
    const dueMs = this.#dueMs;
    const { vm, instanceId, clock, monotonicMs, onSample } = this.#options;
    const monotonic = monotonicMs();
    const wallMs = clock.wallMs();
    const readMs = await this.#read();
    if (run !== this.#run) return;
    const startMs = clock.nowMs();
    const values = this.#values();
    values['telemetry.sampleMicroseconds'] = (readMs + clock.nowMs() - startMs) * 1000;
    const intervalMs = monotonic - this.#lastAtMs;
    this.#lastAtMs = monotonic;
    onSample({ vm, instanceId: instanceId(), wallMs, monotonicMs: monotonic, intervalMs, values });
    // The interval was changed meanwhile: the next one is arranged for.
    if (run !== this.#run || dueMs !== this.#dueMs) return;
    const lateMs = Math.max(0, clock.nowMs() - dueMs);
    this.#dueMs = dueMs + this.#intervalMs * (1 + Math.floor(lateMs / this.#intervalMs));
    this.#arm(run);
  }

  async #untilCalm(): Promise<void> {
    const over = this.#options.calm?.();
    if (over === undefined) return;
    const late = Promise.withResolvers<void>();
    const cancel = this.#options.clock.after(CALM_MS_MAX, late.resolve);
    await Promise.race([over, late.promise]).catch(() => {});
    cancel();
  }

  /** Asks all sources; resolves when all have answered, or those are late that have not. Returns what it cost, in ms. */
  async #read(): Promise<number> {
    const { clock } = this.#options;
    const startMs = clock.nowMs();
    const answers: Promise<void>[] = [];
    for (const sampled of this.#sources) {
      sampled.current = undefined;
      if (sampled.askedAtMs !== undefined) this.#noteWaiting(sampled);
      else if (clock.nowMs() >= sampled.retryAtMs) {
        const answer = this.#ask(sampled);
        if (answer !== undefined) answers.push(answer);
      }
    }
    const costMs = clock.nowMs() - startMs;
    if (answers.length === 0) return costMs;
    const late = Promise.withResolvers<void>();
    const waitMs = Math.min(WAIT_MS_MAX, WAIT_SHARE_MAX * this.#intervalMs);
    const cancel = clock.after(waitMs, late.resolve);
    await Promise.race([Promise.all(answers), late.promise]);
    cancel();
    return costMs;
  }

  /** Undefined when it has answered at once, whatever it was. The promise never rejects. */
  #ask(sampled: Sampled): Promise<void> | undefined {
    try {
      const answer = sampled.source.read();
      if (!(answer instanceof Promise)) {
        this.#noteAnswer(sampled, answer);
        return undefined;
      }
      sampled.askedAtMs = this.#options.clock.nowMs();
      return answer.then(
        (reading) => this.#noteAnswer(sampled, reading),
        (thrown: unknown) => this.#noteFailure(sampled, thrown),
      );
    } catch (thrown) {
      this.#noteFailure(sampled, thrown);
      return undefined;
    }
  }

  #noteAnswer(sampled: Sampled, reading: Reading): void {
    // One that comes after its sample was sent is of the next one, if that is not asked for anew.
    sampled.current = { reading, atMs: this.#options.clock.nowMs() };
    sampled.askedAtMs = undefined;
    sampled.failures = 0;
    if (!sampled.told) return;
    sampled.told = false;
    this.#options.onTrouble({ source: sampled.source.name, kind: 'recovered' });
  }

  /** Also for what is a bug of ours: no VM ends because somebody measured it. */
  #noteFailure(sampled: Sampled, thrown: unknown): void {
    const { clock } = this.#options;
    sampled.askedAtMs = undefined;
    sampled.failures += 1;
    const pauses = 2 ** Math.min(sampled.failures - 1, 20);
    // Half an interval less: the sample that is due then shall not just miss it.
    sampled.retryAtMs = clock.nowMs() + Math.min(RETRY_MS_MAX, (pauses - 0.5) * this.#intervalMs);
    if (sampled.failures >= FAILURES_TOLD) this.#tell(sampled, { kind: 'failed', error: messageOf(thrown) });
  }

  #noteWaiting(sampled: Sampled): void {
    const waitedMs = this.#options.clock.nowMs() - (sampled.askedAtMs ?? 0);
    if (waitedMs >= HANGS_AFTER_MS) this.#tell(sampled, { kind: 'hangs' });
  }

  #tell(sampled: Sampled, trouble: Omit<SourceTrouble, 'source'>): void {
    if (sampled.told) return;
    sampled.told = true;
    this.#options.onTrouble({ source: sampled.source.name, ...trouble });
  }

  #values(): Record<MetricName, number> {
    const values: Record<MetricName, number> = {};
    for (const sampled of this.#sources) {
      if (sampled.current === undefined) continue;
      Object.assign(values, valuesOf(sampled.current, sampled.last));
      sampled.last = sampled.current;
    }
    return values;
  }
}
