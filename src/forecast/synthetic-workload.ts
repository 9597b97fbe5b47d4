import { seededRandom } from '../base/seeded-random.ts';

/** Ways in which machines are used. Each is a shape of demand; {@link syntheticWorkload} adds noise, capacity and unit. */
export const WORKLOAD_KINDS = [
  'daily',
  'weekly',
  'office',
  'batch',
  'bursts',
  'level-shifts',
  'ramps',
  'idle',
  'saturation',
  'deployments',
  'sparse',
  'mixed',
] as const;

export type WorkloadKind = (typeof WORKLOAD_KINDS)[number];

export interface SyntheticOptions {
  readonly kind: WorkloadKind;
  /** The same seed and options give the same series. */
  readonly seed: number;
  readonly steps: number;
  /** Five minutes unless said. */
  readonly stepMs?: number;
  /** Of the first step: Unix time in ms, UTC. A Monday at midnight unless said. */
  readonly startMs?: number;
  /** Share of steps without a value, in runs of about an hour. None unless said. */
  readonly gapShare?: number;
}

export interface SyntheticWorkload {
  readonly name: string;
  readonly kind: WorkloadKind;
  readonly stepMs: number;
  readonly startMs: number;
  /** What the machine uses, not negative, in a unit that differs from series to series; NaN in gaps. */
  readonly values: Float64Array;
  /** Another metric of the same machine, such as requests: it moves a little ahead of `values`, in a unit of its own. */
  readonly companion: Float64Array;
}

/** When a step is. */
interface Moment {
  /** 0 … 24, UTC. */
  readonly hour: number;
  /** 0 is Monday. */
  readonly weekday: number;
  /** Length of a step. */
  readonly hours: number;
}

/** Demand as a share of the machine: 1 is all of it, more is more than it has. */
type Demand = (moment: Moment) => number;
type Random = () => number;

export const FIVE_MINUTES_MS = 300_000;
const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const MONDAY_MS = Date.UTC(2018, 0, 1);
/** By how many steps the other metric is ahead. */
const COMPANION_AHEAD_STEPS = 2;

/** One machine's use over time, as a seed decides. */
export function syntheticWorkload(options: SyntheticOptions): SyntheticWorkload {
  const { kind, seed, steps, stepMs = FIVE_MINUTES_MS, startMs = MONDAY_MS, gapShare = 0 } = options;
  const random = seededRandom(Math.imul(seed, 0x9e3779b1) ^ WORKLOAD_KINDS.indexOf(kind));
  const demandOf = SHAPES[kind](random);
  const demand = new Float64Array(steps + COMPANION_AHEAD_STEPS);
  for (let step = 0; step < demand.length; step += 1) {
    demand[step] = Math.max(0, demandOf(momentAt(startMs + step * stepMs, stepMs)));
  }
  const values = usedBy(demand.subarray(0, steps), random);
  const companion = requestsOf(demand.subarray(COMPANION_AHEAD_STEPS), random);
  leaveGaps(values, { random, gapShare, stepMs });
  return { name: `${kind}-${seed}`, kind, stepMs, startMs, values, companion };
}

/** Machines of all kinds in turn. */
export function syntheticWorkloads({
  count,
  seed,
  ...rest
}: Omit<SyntheticOptions, 'kind'> & { readonly count: number }): SyntheticWorkload[] {
  return Array.from({ length: count }, (_, index) => {
    const kind = WORKLOAD_KINDS[index % WORKLOAD_KINDS.length] ?? 'mixed';
    return syntheticWorkload({ kind, seed: seed + index, ...rest });
  });
}

function momentAt(timeMs: number, stepMs: number): Moment {
  const dayMs = ((timeMs % DAY_MS) + DAY_MS) % DAY_MS;
  const weekday = (((Math.floor((timeMs - MONDAY_MS) / DAY_MS) % 7) + 7) % 7) | 0;
  return { hour: dayMs / HOUR_MS, weekday, hours: stepMs / HOUR_MS };
}

/** What a machine uses of a demand: noise that grows with the demand, no more than there is, in some unit. */
function usedBy(demand: Float64Array, random: Random): Float64Array {
  const unit = 10 ** between(random, -1, 3);
  const floor = between(random, 0, 0.06);
  const roughness = 10 ** between(random, -2, -0.6);
  const memory = between(random, 0, 0.9);
  const spikes = random() < 0.4 ? between(random, 0.002, 0.02) : 0;
  const resolution = random() < 0.3 ? unit / 1000 : 0;
  let drift = 0;
  return demand.map((wanted) => {
    drift = memory * drift + Math.sqrt(1 - memory ** 2) * normal(random);
    const level = wanted * Math.exp(roughness * drift) + floor * (1 + 0.3 * roughness * normal(random));
    const noisy = level + 0.02 * roughness * Math.abs(normal(random));
    const spiked = random() < spikes ? noisy + between(random, 0.02, 0.4) : noisy;
    const used = unit * Math.min(1, Math.max(0, spiked));
    return resolution > 0 ? Math.round(used / resolution) * resolution : used;
  });
}

function requestsOf(demand: Float64Array, random: Random): Float64Array {
  const unit = 10 ** between(random, 0, 4);
  const roughness = between(random, 0.02, 0.2);
  return demand.map((wanted) => unit * wanted * Math.exp(roughness * normal(random)));
}

function leaveGaps(
  values: Float64Array,
  { random, gapShare, stepMs }: { random: Random; gapShare: number; stepMs: number },
): void {
  const length = Math.max(1, Math.round(HOUR_MS / stepMs));
  for (let step = 0; step < values.length; step += 1) {
    if (random() >= gapShare / length) continue;
    values.fill(Number.NaN, step, step + Math.ceil(2 * length * random()));
  }
}

function between(random: Random, from: number, to: number): number {
  return from + (to - from) * random();
}

/** Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958). */
function normal(random: Random): number {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** Whether something that happens so often, on average, happens in a step. */
function happens(random: Random, { perHour, hours }: { perHour: number; hours: number }): boolean {
  return random() < 1 - Math.exp(-perHour * hours);
}

/** How far `hour` is from `centre` around the clock, 0 … 12. */
function hoursApart(hour: number, centre: number): number {
  const apart = Math.abs(hour - centre) % 24;
  return Math.min(apart, 24 - apart);
}

const SHAPES: Readonly<Record<WorkloadKind, (random: Random) => Demand>> = {
  daily,
  weekly: (random) => {
    const day = daily(random);
    const factors = Array.from({ length: 7 }, (_, weekday) =>
      weekday < 5 ? between(random, 0.85, 1.1) : between(random, 0.2, 0.8),
    );
    return (moment) => day(moment) * (factors[moment.weekday] ?? 1);
  },
  office,
  batch,
  bursts,
  'level-shifts': levelShifts,
  ramps,
  idle: (random) => {
    const level = 10 ** between(random, -3, -1.3);
    return () => level;
  },
  saturation: (random) => {
    const day = daily(random);
    const factor = between(random, 1.2, 4);
    return (moment) => day(moment) * factor;
  },
  deployments,
  sparse: (random) => {
    const perHour = 10 ** between(random, -1.5, 0);
    const height = between(random, 0.05, 0.9);
    return ({ hours }) => (happens(random, { perHour, hours }) ? height * between(random, 0.3, 1) : 0);
  },
  mixed: (random) => {
    const names = ['daily', 'office', 'batch', 'bursts', 'level-shifts', 'deployments'] as const;
    const chosen = Array.from({ length: 3 }, () => names[Math.floor(random() * names.length)] ?? 'daily');
    const parts = chosen.map((name) => ({ demand: SHAPES[name](random), share: between(random, 0.2, 0.7) }));
    return (moment) => parts.reduce((sum, { demand, share }) => sum + share * demand(moment), 0);
  },
};

/** People in one or two parts of the world: a smooth day, with a second hump now and then, each day a little different. */
function daily(random: Random): Demand {
  const base = between(random, 0.02, 0.3);
  const height = between(random, 0.05, 0.6);
  const peak = between(random, 0, 24);
  const second = random() < 0.4 ? between(random, 0.2, 0.8) : 0;
  const sharpness = between(random, 0.7, 3);
  const variety = between(random, 0.02, 0.25);
  let today = 1;
  return ({ hour, hours }) => {
    if (hour < hours) today = Math.exp(variety * normal(random));
    const hump = (centre: number) =>
      (0.5 + 0.5 * Math.cos((hoursApart(hour, centre) * Math.PI) / 12)) ** sharpness;
    return base + height * today * (hump(peak) + second * hump(peak + 9));
  };
}

/** From nine to five or so, on five days, with a dip at noon. */
function office(random: Random): Demand {
  const [from, until] = [between(random, 6, 10), between(random, 15, 20)];
  const zone = Math.floor(between(random, 0, 24));
  const base = between(random, 0.01, 0.15);
  const height = between(random, 0.1, 0.7);
  const lunch = between(random, 0, 0.5);
  const edge = between(random, 0.1, 1);
  const rise = (x: number) => 1 / (1 + Math.exp(-x / edge));
  return ({ hour, weekday }) => {
    const local = (hour + zone) % 24;
    const day = hour + zone >= 24 ? (weekday + 1) % 7 : weekday;
    if (day >= 5) return base;
    const noon = 1 - lunch * Math.exp(-((local - 12.5) ** 2) / 0.5);
    return base + height * noon * rise(local - from) * rise(until - local);
  };
}

/** What cron starts: every so many hours or once a day, for about as long each time, with some delay. */
function batch(random: Random): Demand {
  const base = between(random, 0.01, 0.15);
  const jobs = Array.from({ length: 1 + Math.floor(random() * 3) }, () => ({
    everyHours: [0.5, 1, 1, 2, 6, 12, 24, 24][Math.floor(random() * 8)] ?? 24,
    atHour: Math.floor(random() * 96) / 4,
    lengthHours: 10 ** between(random, -1, 0.5),
    height: between(random, 0.1, 0.8),
    leftHours: 0,
    variety: between(random, 0.02, 0.4),
  }));
  return ({ hour, hours }) => {
    let sum = base;
    for (const job of jobs) {
      const since = (hour - job.atHour + 48) % job.everyHours;
      if (since < hours) job.leftHours = job.lengthHours * Math.exp(job.variety * normal(random));
      sum += job.height * Math.min(1, Math.max(0, job.leftHours / hours));
      job.leftHours -= hours;
    }
    return sum;
  };
}

/** Nothing much, then much at once; how long and how high differs by orders of magnitude. */
function bursts(random: Random): Demand {
  const base = between(random, 0.01, 0.2);
  const perHour = 10 ** between(random, -1.5, 0.3);
  const lengthHours = 10 ** between(random, -1.2, 0.3);
  const height = between(random, 0.1, 0.8);
  let burst = 0;
  return ({ hours }) => {
    if (happens(random, { perHour, hours })) burst = Math.max(burst, height * Math.exp(0.5 * normal(random)));
    const now = burst;
    burst *= Math.exp(-hours / lengthHours);
    return base + now;
  };
}

/** Stays where it is for hours or days, then is elsewhere. */
function levelShifts(random: Random): Demand {
  const perHour = 1 / between(random, 3, 60);
  const wander = between(random, 0, 0.03);
  let level = between(random, 0.03, 0.7);
  return ({ hours }) => {
    if (happens(random, { perHour, hours })) level = between(random, 0.03, 0.8);
    level *= Math.exp(wander * Math.sqrt(hours) * normal(random));
    return level;
  };
}

/** Grows for hours or days, as a leak or a queue does, then falls back. */
function ramps(random: Random): Demand {
  const base = between(random, 0.02, 0.2);
  const perHour = between(random, 0.002, 0.05);
  const limit = between(random, 0.3, 0.9);
  const upsetPerHour = 1 / between(random, 12, 120);
  let ramp = limit * random();
  return ({ hours }) => {
    ramp += perHour * hours;
    if (ramp > limit || happens(random, { perHour: upsetPerHour, hours })) ramp = 0;
    return base + ramp;
  };
}

/** A day as people have it, served by software that costs more or less after each deployment, and much while it starts. */
function deployments(random: Random): Demand {
  const day = daily(random);
  const perHour = 1 / between(random, 24, 120);
  let cost = 1;
  let warming = 0;
  return (moment) => {
    const { hour, hours, weekday } = moment;
    if (weekday < 5 && hour > 8 && hour < 18 && happens(random, { perHour: 3 * perHour, hours })) {
      cost = between(random, 0.4, 1.8);
      warming = between(random, 0.1, 0.5);
    }
    const now = warming;
    warming *= Math.exp(-hours / 0.2);
    return cost * day(moment) + now;
  };
}
