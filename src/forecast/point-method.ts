import { CandidateChoice } from './candidate-choice.ts';
import type { ForecastMethod, ForecastModel, SeriesContext } from './forecast-model.ts';
import { LeadResiduals } from './lead-residuals.ts';
import { readState, type StatePart, writeState } from './model-state.ts';

/** Larger values are taken for this: sums of their squares stay finite. */
const VALUE_MAX = 1e100;

/** A model that states one value per step, in one or several ways: candidates, of which the least wrong is taken. */
export interface PointModel {
  readonly candidates: number;
  /** All that it has learnt but the history. */
  readonly parts: readonly StatePart[];
  /** The history holds one value more, which is `value`: finite, at most {@link VALUE_MAX} in size. */
  update(value: number): void;
  /** The history holds one step more, whose value is missing. */
  skip(): void;
  /** One value for each of `leads` (ascending, 1 is the next step) into `into`. False where it knows too little. */
  forecast(candidate: number, leads: readonly number[], into: Float64Array): boolean;
}

/** Makes a method of a point model: its quantiles are those of what it was wrong by lately, at each lead. */
export function pointMethod({
  name,
  stateVersion,
  model,
}: {
  readonly name: string;
  readonly stateVersion: number;
  readonly model: (series: SeriesContext) => PointModel;
}): ForecastMethod {
  return {
    name,
    stateVersion,
    create: (series) => new SpreadModel(series, model(series)),
    restore: (series, state) => {
      const restored = new SpreadModel(series, model(series));
      return restored.read(state) ? restored : undefined;
    },
  };
}

/** History as point models see it: a value that is too large for arithmetic is the largest that is not. */
export function boundedValue(value: number): number {
  return Math.min(VALUE_MAX, Math.max(-VALUE_MAX, value));
}

class SpreadModel implements ForecastModel {
  readonly #series: SeriesContext;
  readonly #model: PointModel;
  readonly #choice: CandidateChoice;
  readonly #residuals = new LeadResiduals();
  readonly #parts: readonly StatePart[];
  #points = new Float64Array(0);
  #chosen = new Float64Array(0);

  constructor(series: SeriesContext, model: PointModel) {
    this.#series = series;
    this.#model = model;
    this.#choice = new CandidateChoice(model.candidates);
    this.#parts = [...model.parts, ...this.#choice.parts, ...this.#residuals.parts];
  }

  read(state: Uint8Array): boolean {
    const isRead = readState(state, this.#parts);
    if (isRead) this.#residuals.restored();
    return isRead;
  }

  update(): void {
    const value = boundedValue(this.#series.history.at(0));
    if (Number.isNaN(value)) this.#model.skip();
    else this.#model.update(value);
    this.#choice.update(value, this.#ofCandidate);
    this.#residuals.update(value, this.#ofBest);
  }

  predict(leads: readonly number[], into: Float64Array): boolean {
    if (this.#points.length < leads.length) this.#points = new Float64Array(leads.length);
    if (!this.#ofBest(leads, this.#points)) return false;
    return this.#residuals.spread(this.#points, { leads, levels: this.#series.levels, into });
  }

  save(): Uint8Array {
    return writeState(this.#parts);
  }

  readonly #ofCandidate = (candidate: number, leads: readonly number[], into: Float64Array): boolean =>
    this.#model.forecast(candidate, leads, into);

  /** Of each lead's best candidate. Leads of one candidate follow each other, so it is asked once for all of them. */
  readonly #ofBest = (leads: readonly number[], into: Float64Array): boolean => {
    let asked = -1;
    for (let index = 0; index < leads.length; index += 1) {
      const best = this.#choice.at(leads[index] ?? 1);
      if (best !== asked) {
        if (this.#chosen.length < leads.length) this.#chosen = new Float64Array(leads.length);
        if (!this.#model.forecast(best, leads, this.#chosen)) return false;
        asked = best;
      }
      into[index] = this.#chosen[index] ?? 0;
    }
    return true;
  };
}
