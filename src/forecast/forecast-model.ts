import type { SeriesHistory } from './series-history.ts';

/**
 * A way to forecast a series: a plug-in. It makes one model per series and step length. Whatever a model throws, or states
 * that is no number, is kept away from the others and reported.
 */
export interface ForecastMethod {
  /** In configuration and reports. Lower case, digits, hyphens. */
  readonly name: string;
  /** Of what `save` writes. A state of another version is not restored: the model begins anew, from the history. */
  readonly stateVersion: number;
  /** A model that has seen nothing, or what its history holds already. */
  create(series: SeriesContext): ForecastModel;
  /** The model that wrote `state`. Undefined where that cannot be. */
  restore(series: SeriesContext, state: Uint8Array): ForecastModel | undefined;
}

/** What a model may know of its series. */
export interface SeriesContext {
  /** Between one value and the next. */
  readonly stepMs: number;
  readonly levels: readonly number[];
  /** The last values, shared by all models of the series, and kept by who owns them: a model does not save them. */
  readonly history: SeriesHistory;
  /**
   * Another metric of the same VM with the same steps, where there is one that may move ahead of this series, such as received
   * frames for CPU. It is given its value of a step before `update` is called for that step.
   */
  readonly companion?: SeriesHistory;
}

export interface ForecastModel {
  /** The history holds one value more (`history.at(0)`, NaN where it is missing). Once per step. Microseconds. */
  update(): void;
  /**
   * Writes quantiles of the steps `leads` (ascending, 1 is the next one) into `into`, as {@link QuantileForecast.values}.
   * False where it knows too little: then `into` means nothing. Changes nothing in the model.
   */
  predict(leads: readonly number[], into: Float64Array): boolean;
  /** All that it has learnt but the history. Small: there are as many as series times methods. */
  save(): Uint8Array;
}
