/** Leads that are judged as one. */
export interface LeadBucket {
  /** The last of its leads; the first is the one after the bucket before. */
  readonly upTo: number;
  /** Leads whose forecasts are kept until they can be held against what happened. */
  readonly probes: readonly number[];
  /** So many steps lie between two forecasts that are kept. */
  readonly everySteps: number;
  /** After which an outcome counts half. */
  readonly halfLifeSteps: number;
}

const A_DAY_AND_A_HALF = 432;
const THREE_DAYS = 864;
const AN_HOUR = 720;

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

/** Which leads are judged as one, and which forecasts are kept to judge them by. One for all series of a step length. */
export class ProbePlan {
  readonly buckets: readonly LeadBucket[];
  readonly probes: readonly Probe[];
  readonly places: number;
  /** By the count of steps modulo their number. */
  readonly #rounds: readonly ProbeRound[];

  constructor(buckets: readonly LeadBucket[]) {
    let places = 0;
    this.buckets = buckets;
    this.probes = buckets.flatMap(({ probes, everySteps }, bucket) =>
      probes.map((lead) => {
        const wait = Math.floor(lead / everySteps) + 1;
        places += wait;
        return { bucket, lead, everySteps, places: wait, firstPlace: places - wait };
      }),
    );
    this.places = places;
    const cycle = buckets.reduce((all, { everySteps }) => commonMultiple(all, everySteps), 1);
    this.#rounds = Array.from({ length: cycle }, (_, step) => {
      const probes = this.probes.filter(({ everySteps }) => step % everySteps === 0);
      // A plug-in is given these, and must not be able to change them for the others.
      return { probes, leads: Object.freeze(probes.map(({ lead }) => lead)) };
    });
  }

  roundAt(count: number): ProbeRound {
    return this.#rounds[count % this.#rounds.length] ?? { probes: [], leads: [] };
  }

  /** Which bucket judges a lead. */
  bucketOf(lead: number): number {
    let index = 0;
    while (index < this.buckets.length - 1 && (this.buckets[index]?.upTo ?? 0) < lead) index += 1;
    return index;
  }
}

/** For steps of 5 minutes, up to a day and what is beyond. Far ahead there are few outcomes, and they are remembered for longer. */
export const MINUTES_PLAN = new ProbePlan([
  { upTo: 1, probes: [1], everySteps: 3, halfLifeSteps: A_DAY_AND_A_HALF },
  { upTo: 3, probes: [2, 3], everySteps: 3, halfLifeSteps: A_DAY_AND_A_HALF },
  { upTo: 12, probes: [6, 9, 12], everySteps: 6, halfLifeSteps: A_DAY_AND_A_HALF },
  { upTo: 24, probes: [16, 20, 24], everySteps: 12, halfLifeSteps: A_DAY_AND_A_HALF },
  { upTo: 48, probes: [32, 40, 48], everySteps: 12, halfLifeSteps: A_DAY_AND_A_HALF },
  { upTo: 96, probes: [72, 96], everySteps: 24, halfLifeSteps: THREE_DAYS },
  { upTo: 192, probes: [144, 192], everySteps: 48, halfLifeSteps: THREE_DAYS },
  { upTo: 288, probes: [240, 288], everySteps: 48, halfLifeSteps: THREE_DAYS },
]);

/** For steps of 5 seconds, up to a quarter of an hour. */
export const SECONDS_PLAN = new ProbePlan([
  { upTo: 1, probes: [1], everySteps: 3, halfLifeSteps: AN_HOUR },
  { upTo: 3, probes: [2, 3], everySteps: 3, halfLifeSteps: AN_HOUR },
  { upTo: 12, probes: [6, 12], everySteps: 6, halfLifeSteps: AN_HOUR },
  { upTo: 60, probes: [30, 60], everySteps: 30, halfLifeSteps: AN_HOUR },
  { upTo: 180, probes: [120, 180], everySteps: 60, halfLifeSteps: AN_HOUR },
]);

function commonMultiple(a: number, b: number): number {
  let [greater, less] = [a, b];
  while (less > 0) [greater, less] = [less, greater % less];
  return (a / greater) * b;
}
