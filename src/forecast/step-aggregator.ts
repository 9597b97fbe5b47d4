/** Told of each step when it is over. */
export type StepSink = (step: ClosedStep) => void;

export interface ClosedStep {
  /** NaN where no sample fell into it. */
  readonly mean: number;
  readonly max: number;
  readonly startMs: number;
  readonly learn: boolean;
}

/** What a step that is not over yet holds. */
export interface OpenStep {
  startMs: number;
  sum: number;
  max: number;
  count: number;
  /** 1, or 0 once a sample came that nothing shall be learnt from. */
  learn: number;
}

/** Makes steps of equal length out of samples at whatever times. Steps begin at multiples of their length, later by a phase. */
export class StepAggregator {
  readonly stepMs: number;
  readonly #gapStepsMax: number;
  readonly #offsetMs: number;
  readonly #sink: StepSink;
  readonly open: OpenStep = {
    startMs: Number.NaN,
    sum: 0,
    max: Number.NEGATIVE_INFINITY,
    count: 0,
    learn: 1,
  };

  /** Of a gap that is longer than `gapStepsMax` steps, only so many are told: all else is forgotten by then. */
  constructor(
    { stepMs, gapStepsMax, phase = 0 }: { stepMs: number; gapStepsMax: number; phase?: number },
    sink: StepSink,
  ) {
    this.stepMs = stepMs;
    this.#offsetMs = Math.floor((phase % 1) * stepMs);
    this.#gapStepsMax = gapStepsMax;
    this.#sink = sink;
  }

  /** `atMs` does not go back further than into the step that is open; false where it does, and the sample is dropped. */
  add(value: number, atMs: number, learn: boolean): boolean {
    const { open } = this;
    if (Number.isNaN(open.startMs)) open.startMs = this.#startOf(atMs);
    if (atMs < open.startMs) return false;
    if (atMs >= open.startMs + this.stepMs) this.#closeUntil(atMs);
    open.sum += value;
    open.max = Math.max(open.max, value);
    open.count += 1;
    if (!learn) open.learn = 0;
    return true;
  }

  #closeUntil(atMs: number): void {
    const { open, stepMs } = this;
    this.#close();
    const startMs = this.#startOf(atMs);
    const missing = Math.min(this.#gapStepsMax, Math.round((startMs - open.startMs) / stepMs) - 1);
    for (let ago = missing; ago > 0; ago -= 1) {
      open.startMs = startMs - ago * stepMs;
      this.#close();
    }
    open.startMs = startMs;
  }

  #startOf(atMs: number): number {
    return Math.floor((atMs - this.#offsetMs) / this.stepMs) * this.stepMs + this.#offsetMs;
  }

  #close(): void {
    const { open } = this;
    const isEmpty = open.count === 0;
    this.#sink({
      mean: isEmpty ? Number.NaN : open.sum / open.count,
      max: isEmpty ? Number.NaN : open.max,
      startMs: open.startMs,
      // There is nothing to be learnt from nothing; and a gap of days has many such steps.
      learn: open.learn === 1 && !isEmpty,
    });
    open.sum = 0;
    open.max = Number.NEGATIVE_INFINITY;
    open.count = 0;
    open.learn = 1;
  }
}
