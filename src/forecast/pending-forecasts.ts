import type { Probe, ProbePlan } from './probe-plan.ts';

/** Forecasts that wait for what they are about: a fixed number of rows, each overwritten when its outcome is past. */
export class PendingForecasts {
  readonly rowWidth: number;
  readonly rows: Float32Array;
  /** The count of steps at which the row was made; -1 where it holds nothing. */
  readonly #origins: Float64Array;

  constructor({ places }: ProbePlan, rowWidth: number) {
    this.rowWidth = rowWidth;
    this.rows = new Float32Array(places * rowWidth);
    this.#origins = new Float64Array(places).fill(-1);
  }

  /** Where the row of a probe made at `origin` begins. */
  open({ everySteps, places, firstPlace }: Probe, origin: number): number {
    const place = firstPlace + (Math.floor(origin / everySteps) % places);
    this.#origins[place] = origin;
    return place * this.rowWidth;
  }

  /** Where the row begins that is about the step `count`; -1 where there is none. */
  due({ lead, everySteps, places, firstPlace }: Probe, count: number): number {
    const origin = count - lead;
    if (origin < 0 || origin % everySteps !== 0) return -1;
    const place = firstPlace + (Math.floor(origin / everySteps) % places);
    return this.#origins[place] === origin ? place * this.rowWidth : -1;
  }
}
