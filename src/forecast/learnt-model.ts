import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';
import { GLOBAL_FEATURES, LEAD_FEATURES, LearntFeatures } from './learnt-features.ts';
import { LearntNetwork } from './learnt-network.ts';
import { LEARNT_WEIGHTS } from './learnt-weights.ts';
import { readState, type StatePart, writeState } from './model-state.ts';
import { OnlineCorrection, type StatedRows } from './online-correction.ts';
import { boundedValue } from './point-method.ts';
import { LEVELS } from './quantile-forecast.ts';

/** With fewer values a network has nothing to look at. */
const VALUES_MIN = 3;

/**
 * Quantile regression that has learnt from synthetic workloads how machines behave ({@link LearntNetwork} on
 * {@link LearntFeatures}), and goes on learning from the series that it is given ({@link OnlineCorrection}).
 */
export const LEARNT: ForecastMethod = learntMethod('learnt', weightsOf(LEARNT_WEIGHTS.base64));

/** The same with other weights, or without learning from its own series: `learns` false. */
export function learntMethod(
  name: string,
  weights: Float64Array,
  { learns = true }: { readonly learns?: boolean } = {},
): ForecastMethod {
  const network = new LearntNetwork(weights);
  return {
    name,
    stateVersion: 1,
    create: (series) => new LearntModel(series, { network, learns }),
    restore: (series, state) => {
      const model = new LearntModel(series, { network, learns });
      return model.read(state) ? model : undefined;
    },
  };
}

/** Weights as they are shipped: floats of four bytes, little endian, in base64, in lines. */
export function weightsOf(base64: readonly string[]): Float64Array {
  const bytes = Buffer.from(base64.join(''), 'base64');
  return Float64Array.from({ length: bytes.length / 4 }, (_, index) => bytes.readFloatLE(4 * index));
}

class LearntModel implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #network: LearntNetwork;
  readonly #features: LearntFeatures;
  readonly #correction = new OnlineCorrection();
  readonly #learns: boolean;
  readonly #parts: readonly StatePart[];
  readonly #globals = new Float64Array(GLOBAL_FEATURES);
  readonly #lead = new Float64Array(LEAD_FEATURES);
  readonly #row = new Float64Array(LEVELS.length);
  /** For each level of the series: between which of {@link LEVELS} it lies, and how far. */
  readonly #places: readonly { readonly below: number; readonly share: number }[];

  constructor(series: SeriesContext, { network, learns }: { network: LearntNetwork; learns: boolean }) {
    this.#series = series;
    this.#network = network;
    this.#learns = learns;
    this.#features = new LearntFeatures(series);
    this.#places = series.levels.map(placeOf);
    this.#parts = [...this.#features.parts, ...this.#correction.parts];
  }

  read(state: Uint8Array): boolean {
    return readState(state, this.#parts);
  }

  update(): void {
    const value = boundedValue(this.#series.history.at(0));
    this.#features.update(value);
    if (this.#learns) this.#correction.update(value, this.#state);
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    if (!this.#prepare()) return false;
    const { zero, unit } = this.#features;
    const width = this.#places.length;
    for (let index = 0; index < leads.length; index += 1) {
      this.#rowOf(leads[index] ?? 1, this.#row);
      for (let level = 0; level < width; level += 1) {
        const { below, share } = this.#places[level] ?? { below: 0, share: 0 };
        const low = this.#row[below] ?? 0;
        const high = this.#row[Math.min(LEVELS.length - 1, below + 1)] ?? low;
        into[index * width + level] = zero + unit * (low + share * (high - low));
      }
    }
    return true;
  }

  save(): Uint8Array {
    return writeState(this.#parts);
  }

  readonly #state = (): StatedRows | undefined => {
    const { zero, unit } = this.#features;
    return this.#prepare() && unit > 0 ? { zero, unit, rowOf: this.#rowOf } : undefined;
  };

  #prepare(): boolean {
    if (this.#features.seen < VALUES_MIN) return false;
    this.#features.globals(this.#globals);
    this.#network.prepare(this.#globals);
    return true;
  }

  /** In units of features. The network is prepared. */
  readonly #rowOf = (lead: number, into: Float64Array): void => {
    this.#features.lead(lead, this.#lead);
    this.#network.row(this.#lead, into);
    if (this.#learns) this.#correction.apply(lead, into);
  };
}

function placeOf(level: number): { readonly below: number; readonly share: number } {
  let below = 0;
  while (below < LEVELS.length - 2 && (LEVELS[below + 1] ?? 1) <= level) below += 1;
  const [low, high] = [LEVELS[below] ?? 0, LEVELS[below + 1] ?? 1];
  return { below, share: Math.min(1, Math.max(0, (level - low) / (high - low))) };
}
