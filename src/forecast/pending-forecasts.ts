import type { LeadBucket } from './probe-plan.ts';

/** One lead of a plan, and where its forecasts wait. */
export interface Probe {
  readonly bucket: number;
  readonly lead: number;
  readonly everySteps: number;
  /** Forecasts of this lead that can wait at the same time. */
  readonly places: number;
  readonly firstPlace: number;
}

/** The probes that begin at one step, leads ascending. */
export interface ProbeRound {
  readonly probes: readonly Probe[];
  readonly leads: readonly number[];
}

/** Forecasts that wait for what they are about: a fixed number of rows, each overwritten when its outcome is past. */
export class PendingForecasts {
  readonly probes: readonly Probe[];
  readonly rowWidth: number;
  readonly rows: Float32Array;
  /** By the count of steps modulo their number. */
  readonly #rounds: readonly ProbeRound[];
  /** The count of steps at which the row was made; -1 where it holds nothing. */
  readonly #origins: Float64Array;

  constructor(buckets: readonly LeadBucket[], rowWidth: number) {
    let places = 0;
    this.probes = buckets.flatMap(({ probes, everySteps }, bucket) =>
      probes.map((lead) => {
        const probe = {
          bucket,
          lead,
          everySteps,
          places: Math.floor(lead / everySteps) + 1,
          firstPlace: places,
        };
        places += probe.places;
        return probe;
      }),
    );
    const cycle = buckets.reduce((all, { everySteps }) => commonMultiple(all, everySteps), 1);
    this.#rounds = Array.from({ length: cycle }, (_, step) => {
      const probes = this.probes.filter(({ everySteps }) => step % everySteps === 0);
      return { probes, leads: probes.map(({ lead }) => lead) };
    });
    this.rowWidth = rowWidth;
    this.rows = new Float32Array(places * rowWidth);
    this.#origins = new Float64Array(places).fill(-1);
  }

  roundAt(count: number): ProbeRound {
    return this.#rounds[count % this.#rounds.length] ?? { probes: [], leads: [] };
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

function commonMultiple(a: number, b: number): number {
  let [greater, less] = [a, b];
  while (less > 0) [greater, less] = [less, greater % less];
  return (a / greater) * b;
}
