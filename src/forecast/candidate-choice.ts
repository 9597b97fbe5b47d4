import type { StatePart } from './model-state.ts';

/**
 * Leads at which candidates are compared, with the steps between comparisons (prime, so that what happens every hour is met at
 * all its phases), and up to which lead each decides.
 */
const COMPARISONS = [
  { lead: 1, stride: 1, upTo: 3 },
  { lead: 12, stride: 5, upTo: 24 },
  { lead: 48, stride: 11, upTo: Number.POSITIVE_INFINITY },
] as const;
/** After so many steps an error counts half. */
const HALF_LIFE_STEPS = 144;

/** Forecasts one value per lead, in each of several ways. */
export type CandidateForecast = (candidate: number, leads: readonly number[], into: Float64Array) => boolean;

/** Which of several point forecasts was least wrong lately (mean of absolute errors), at short, middle and long leads. */
export class CandidateChoice {
  readonly parts: readonly StatePart[];
  readonly #candidates: number;
  readonly #steps = new Float64Array(1);
  readonly #comparisons: readonly Comparison[];

  constructor(candidates: number) {
    this.#candidates = candidates;
    this.#comparisons = COMPARISONS.map((comparison) => ({
      ...comparison,
      leads: [comparison.lead],
      pendings: Math.ceil(comparison.lead / comparison.stride),
      pending: new Float64Array(candidates * Math.ceil(comparison.lead / comparison.stride)).fill(Number.NaN),
      errors: new Float64Array(candidates),
      keep: 0.5 ** (comparison.stride / HALF_LIFE_STEPS),
    }));
    this.parts = [
      { values: this.#steps },
      ...this.#comparisons.flatMap(({ pending, errors }) => [
        { values: errors },
        { values: pending, compact: true },
      ]),
    ];
  }

  /** A step is over with `actual`, NaN where it is missing; `forecast` is told after it. */
  update(actual: number, forecast: CandidateForecast): void {
    if (this.#candidates < 2) return;
    const step = (this.#steps[0] ?? 0) + 1;
    this.#steps[0] = step;
    const told = TOLD;
    for (const { lead, stride, leads, pendings, pending, errors, keep } of this.#comparisons) {
      const madeAt = step - lead;
      if (madeAt >= 0 && madeAt % stride === 0) {
        const slot = (madeAt / stride) % pendings;
        for (let candidate = 0; candidate < this.#candidates; candidate += 1) {
          const error = Math.abs(actual - (pending[candidate * pendings + slot] ?? Number.NaN));
          if (Number.isFinite(error))
            errors[candidate] = keep * (errors[candidate] ?? 0) + (1 - keep) * error;
        }
      }
      if (step % stride !== 0) continue;
      const slot = (step / stride) % pendings;
      for (let candidate = 0; candidate < this.#candidates; candidate += 1) {
        const isTold = forecast(candidate, leads, told);
        pending[candidate * pendings + slot] = isTold ? (told[0] ?? Number.NaN) : Number.NaN;
      }
    }
  }

  /** Index of the candidate for this lead. The first one while all are equally wrong. */
  at(lead: number): number {
    for (const { upTo, errors } of this.#comparisons) {
      if (lead > upTo) continue;
      let best = 0;
      for (let candidate = 1; candidate < errors.length; candidate += 1) {
        if ((errors[candidate] ?? 0) < (errors[best] ?? 0)) best = candidate;
      }
      return best;
    }
    return 0;
  }
}

interface Comparison {
  readonly lead: number;
  readonly stride: number;
  readonly upTo: number;
  readonly leads: readonly number[];
  /** How many forecasts of one candidate are under way. */
  readonly pendings: number;
  readonly pending: Float64Array;
  readonly errors: Float64Array;
  readonly keep: number;
}

const TOLD = new Float64Array(1);
