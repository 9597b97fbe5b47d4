import { GLOBAL_FEATURES, LEAD_FEATURES } from './learnt-features.ts';
import { LEVELS } from './quantile-forecast.ts';

export const HIDDEN = 20;
const OUTPUTS = LEVELS.length;
const MIDDLE = LEVELS.indexOf(0.5);
/** How round the corner of {@link positive} is. */
const ROUNDNESS = 0.1;

/** Where what stands in the weights: matrices row after row, that of the output with a row for each hidden unit. */
const OF_GLOBALS = 0;
const OF_LEAD = OF_GLOBALS + HIDDEN * GLOBAL_FEATURES;
const OF_HIDDEN = OF_LEAD + HIDDEN * LEAD_FEATURES;
const OF_OUTPUT = OF_HIDDEN + HIDDEN;
const OF_OUTPUT_ZERO = OF_OUTPUT + OUTPUTS * HIDDEN;
const OF_MIDDLE = OF_OUTPUT_ZERO + OUTPUTS;
export const WEIGHTS = OF_MIDDLE + GLOBAL_FEATURES + LEAD_FEATURES;

/**
 * A small network that states quantiles: one hidden layer, rectified; the middle quantile is a linear function of all features
 * and of the hidden layer, each other one lies a positive distance further out, so that they never cross. Quantile regression by
 * networks: Taylor, Journal of Forecasting 19 (2000). What does not depend on the lead is computed once per forecast.
 */
export class LearntNetwork {
  readonly weights: Float64Array;
  readonly #globals = new Float64Array(GLOBAL_FEATURES);
  readonly #leads = new Float64Array(LEAD_FEATURES);
  readonly #prepared = new Float64Array(HIDDEN);
  readonly #hidden = new Float64Array(HIDDEN);
  readonly #raw = new Float64Array(OUTPUTS);
  readonly #slopes = new Float64Array(OUTPUTS);
  readonly #backwards = new Float64Array(HIDDEN);
  #middle = 0;

  constructor(weights: Float64Array) {
    this.weights = weights;
  }

  /** All rows until the next call are of the series in this state. */
  prepare(globals: Float64Array): void {
    const { weights } = this;
    this.#globals.set(globals);
    let middle = 0;
    for (let index = 0; index < GLOBAL_FEATURES; index += 1) {
      middle += (weights[OF_MIDDLE + index] ?? 0) * (globals[index] ?? 0);
    }
    this.#middle = middle;
    for (let unit = 0; unit < HIDDEN; unit += 1) {
      let sum = weights[OF_HIDDEN + unit] ?? 0;
      const row = OF_GLOBALS + unit * GLOBAL_FEATURES;
      for (let index = 0; index < GLOBAL_FEATURES; index += 1) {
        sum += (weights[row + index] ?? 0) * (globals[index] ?? 0);
      }
      this.#prepared[unit] = sum;
    }
  }

  /** The quantiles {@link LEVELS} of a step to come, ascending, in units of features. */
  row(lead: Float64Array, into: Float64Array): void {
    const { weights } = this;
    const [raw, prepared, hidden] = [this.#raw, this.#prepared, this.#hidden];
    this.#leads.set(lead);
    let middle = this.#middle;
    for (let index = 0; index < LEAD_FEATURES; index += 1) {
      middle += (weights[OF_MIDDLE + GLOBAL_FEATURES + index] ?? 0) * (lead[index] ?? 0);
    }
    for (let output = 0; output < OUTPUTS; output += 1) raw[output] = weights[OF_OUTPUT_ZERO + output] ?? 0;
    for (let unit = 0; unit < HIDDEN; unit += 1) {
      let sum = prepared[unit] ?? 0;
      const row = OF_LEAD + unit * LEAD_FEATURES;
      for (let index = 0; index < LEAD_FEATURES; index += 1)
        sum += (weights[row + index] ?? 0) * (lead[index] ?? 0);
      hidden[unit] = sum > 0 ? sum : 0;
      if (sum <= 0) continue;
      const column = OF_OUTPUT + unit * OUTPUTS;
      for (let output = 0; output < OUTPUTS; output += 1) {
        raw[output] = (raw[output] ?? 0) + (weights[column + output] ?? 0) * sum;
      }
    }
    into[MIDDLE] = middle + (raw[MIDDLE] ?? 0);
    for (let output = MIDDLE + 1; output < OUTPUTS; output += 1) {
      into[output] = (into[output - 1] ?? 0) + positive(raw[output] ?? 0);
    }
    for (let output = MIDDLE - 1; output >= 0; output -= 1) {
      into[output] = (into[output + 1] ?? 0) - positive(raw[output] ?? 0);
    }
  }

  /**
   * Adds to `gradient` how the loss of the last row grows with each weight. `slopes` are those of the loss with each quantile.
   * They are changed.
   */
  learn(slopes: Float64Array, gradient: Float64Array): void {
    this.#toRaw(slopes);
    const [raw, hidden, backwards, { weights }] = [this.#slopes, this.#hidden, this.#backwards, this];
    backwards.fill(0);
    for (let output = 0; output < OUTPUTS; output += 1) {
      const slope = raw[output] ?? 0;
      gradient[OF_OUTPUT_ZERO + output] = (gradient[OF_OUTPUT_ZERO + output] ?? 0) + slope;
      for (let unit = 0; unit < HIDDEN; unit += 1) {
        const at = OF_OUTPUT + unit * OUTPUTS + output;
        gradient[at] = (gradient[at] ?? 0) + slope * (hidden[unit] ?? 0);
        backwards[unit] = (backwards[unit] ?? 0) + slope * (weights[at] ?? 0);
      }
    }
    for (let unit = 0; unit < HIDDEN; unit += 1) {
      if ((hidden[unit] ?? 0) <= 0) continue;
      const slope = backwards[unit] ?? 0;
      gradient[OF_HIDDEN + unit] = (gradient[OF_HIDDEN + unit] ?? 0) + slope;
      addScaled(gradient, OF_GLOBALS + unit * GLOBAL_FEATURES, { slope, values: this.#globals });
      addScaled(gradient, OF_LEAD + unit * LEAD_FEATURES, { slope, values: this.#leads });
    }
    const slope = raw[MIDDLE] ?? 0;
    addScaled(gradient, OF_MIDDLE, { slope, values: this.#globals });
    addScaled(gradient, OF_MIDDLE + GLOBAL_FEATURES, { slope, values: this.#leads });
  }

  /** From slopes with quantiles to slopes with what the output layer says: a distance moves all quantiles further out. */
  #toRaw(slopes: Float64Array): void {
    let above = 0;
    for (let output = OUTPUTS - 1; output > MIDDLE; output -= 1) {
      above += slopes[output] ?? 0;
      this.#slopes[output] = above * steepness(this.#raw[output] ?? 0);
    }
    let below = 0;
    for (let output = 0; output < MIDDLE; output += 1) {
      below += slopes[output] ?? 0;
      this.#slopes[output] = -below * steepness(this.#raw[output] ?? 0);
    }
    this.#slopes[MIDDLE] = above + below + (slopes[MIDDLE] ?? 0);
  }
}

/** Weights to begin a training with: small and random, distances of about a tenth. */
export function randomWeights(random: () => number): Float64Array {
  const weights = new Float64Array(WEIGHTS);
  const fill = (from: number, { count, inputs }: { count: number; inputs: number }) => {
    for (let index = 0; index < count; index += 1)
      weights[from + index] = (2 * random() - 1) / Math.sqrt(inputs);
  };
  const inputs = GLOBAL_FEATURES + LEAD_FEATURES;
  fill(OF_GLOBALS, { count: HIDDEN * GLOBAL_FEATURES, inputs });
  fill(OF_LEAD, { count: HIDDEN * LEAD_FEATURES, inputs });
  fill(OF_OUTPUT, { count: OUTPUTS * HIDDEN, inputs: 4 * HIDDEN });
  return weights;
}

function addScaled(
  into: Float64Array,
  from: number,
  { slope, values }: { slope: number; values: Float64Array },
): void {
  for (let index = 0; index < values.length; index += 1) {
    into[from + index] = (into[from + index] ?? 0) + slope * (values[index] ?? 0);
  }
}

/** A line that bends smoothly to 0. Barron, "Squareplus" (2021). */
function positive(value: number): number {
  return (value + Math.sqrt(value * value + ROUNDNESS)) / 2;
}

function steepness(value: number): number {
  return (1 + value / Math.sqrt(value * value + ROUNDNESS)) / 2;
}
