import { AnomalyDetector } from '../forecast/anomaly-detector.ts';
import type { AnomalyVerdict } from '../forecast/anomaly-verdict.ts';
import { ForecastError } from '../forecast/forecast-error.ts';
import { Forecaster, MINUTES_STEP_MS } from '../forecast/forecaster.ts';
import type { MethodScratch } from '../forecast/method-scratch.ts';
import { StateReader, StateWriter } from '../forecast/state-bytes.ts';
import type { ClosedStep } from '../forecast/step-aggregator.ts';
import type { Sample } from '../telemetry/sample.ts';
import {
  initialScaling,
  type ScalingEffect,
  type ScalingEvent,
  type ScalingState,
  stepScaling,
} from './scaling-decision.ts';
import type { ScalingPolicy } from './scaling-policy.ts';
import type { Demand } from './vm-demand.ts';

/** A forecast is held against what the VM has this often. */
const DECIDE_EVERY_MS = 60_000;
const STATE_VERSION = 1;

/** What follows one resource of a VM. */
export interface ScaledResource {
  readonly policy: ScalingPolicy;
  /** What the VM has when its agent begins. */
  readonly allocated: number;
  /** From here on it has all that there is, and needs no limit. */
  readonly all: number;
}

/** Quantiles of the highest demand within the horizon, by level. */
export interface Peak {
  readonly levels: readonly number[];
  readonly values: readonly number[];
}

/** What was decided, and all that it was made from. */
export interface TrackedDecision {
  readonly effect: ScalingEffect;
  readonly demand: Demand;
  /** Undefined where too little is known. */
  readonly peak: Peak | undefined;
  /** Before the decision. */
  readonly allocated: number;
  readonly reserved: number;
  readonly isAnomalous: boolean;
}

export interface TrackerOptions {
  /** Undefined: it is forecast, and nothing is decided. */
  readonly scaled: ScaledResource | undefined;
  readonly horizonMs: number;
  /** See {@link ForecasterOptions.phase}. */
  readonly phase: number;
  readonly scratch: MethodScratch;
  readonly saved: Uint8Array | undefined;
}

/** One resource of one VM: what it will be, what is unusual about it, and what follows from both. */
export class ResourceTracker {
  readonly forecaster: Forecaster;
  readonly #anomalies: AnomalyDetector;
  readonly #verdicts: AnomalyVerdict[] = [];
  readonly policy: ScalingPolicy | undefined;
  /** See {@link ScaledResource.all}. */
  readonly all: number | undefined;
  #scaling: ScalingState | undefined;
  #decidedMs = Number.NEGATIVE_INFINITY;

  constructor({ scaled, horizonMs, phase, scratch, saved }: TrackerOptions) {
    const before = saved === undefined ? undefined : readTracker(saved);
    this.policy = scaled?.policy;
    this.all = scaled?.all;
    this.#scaling = scaled === undefined ? undefined : scalingFrom(scaled, before);
    const steps = { stepMs: MINUTES_STEP_MS };
    this.#anomalies =
      (before && AnomalyDetector.restore(steps, before.anomalies)) ?? new AnomalyDetector(steps);
    const onMinutesStep = (step: ClosedStep) => this.#onStep(step);
    const options = { horizonMs, phase, scratch, onMinutesStep };
    const restored = before && Forecaster.restore(before.forecaster, options);
    this.forecaster = restored?.kind === 'restored' ? restored.forecaster : new Forecaster(options);
  }

  get scaling(): ScalingState | undefined {
    return this.#scaling;
  }

  get isAnomalous(): boolean {
    return this.#anomalies.isAnomalous;
  }

  /** Undefined while nothing is known. */
  get peak(): Peak | undefined {
    const { peak } = this.forecaster;
    return peak && { levels: peak.levels, values: [...peak.values] };
  }

  /** Anomalies that began or ended with this sample. */
  learn({ used }: Demand, sample: Sample): AnomalyVerdict[] {
    // While something is not normal nothing is learnt from it: it would be forgotten too late.
    this.forecaster.add(used, sample, { learn: !this.isAnomalous });
    return this.#verdicts.splice(0);
  }

  decide(demand: Demand): TrackedDecision[] {
    const before = this.#scaling;
    if (before === undefined || this.policy === undefined) return [];
    const { atMs } = this.forecaster;
    const { isAnomalous } = this;
    const effects = [...this.tell({ kind: 'use', atMs, ...demand })];
    const isTime = atMs - this.#decidedMs >= DECIDE_EVERY_MS;
    const peak = isTime || effects.length > 0 ? this.peak : undefined;
    if (isTime) {
      this.#decidedMs = atMs;
      const wanted = peak && quantileAt(peak, this.policy.quantile);
      effects.push(...this.tell({ kind: 'forecast', atMs, peak: wanted, isAnomalous }));
    }
    const { allocated, reserved } = before;
    return effects.map((effect) => ({ effect, demand, peak, allocated, reserved, isAnomalous }));
  }

  tell(event: ScalingEvent): readonly ScalingEffect[] {
    if (this.#scaling === undefined || this.policy === undefined) return [];
    const { next, effects } = stepScaling(this.#scaling, event, this.policy);
    this.#scaling = next;
    return effects;
  }

  /** All that it has learnt, but for what is reserved: that is gone when its pool is. */
  save(): Uint8Array {
    const writer = new StateWriter(STATE_VERSION);
    writer.bytes(this.forecaster.save());
    writer.bytes(this.#anomalies.save());
    const { allocated = Number.NaN, loweredAtMs = 0, pressedAtMs = 0, calmMs = 0 } = this.#scaling ?? {};
    for (const value of [allocated, loweredAtMs, pressedAtMs, calmMs]) writer.float64(value);
    return writer.finish();
  }

  #onStep({ mean, startMs }: ClosedStep): void {
    const verdict = this.#anomalies.push(mean, startMs);
    if (verdict.change !== undefined) this.#verdicts.push(verdict);
  }
}

interface SavedTracker {
  readonly forecaster: Uint8Array;
  readonly anomalies: Uint8Array;
  readonly scaling: Pick<ScalingState, 'allocated' | 'loweredAtMs' | 'pressedAtMs' | 'calmMs'>;
}

/** Undefined where it is damaged, or of another version. */
function readTracker(saved: Uint8Array): SavedTracker | undefined {
  try {
    const reader = new StateReader(saved, STATE_VERSION);
    const [forecaster, anomalies] = [reader.bytes(), reader.bytes()];
    const [allocated, loweredAtMs] = [reader.float64(), reader.float64()];
    const [pressedAtMs, calmMs] = [reader.float64(), reader.float64()];
    return { forecaster, anomalies, scaling: { allocated, loweredAtMs, pressedAtMs, calmMs } };
  } catch (thrown) {
    if (thrown instanceof ForecastError) return undefined;
    throw thrown;
  }
}

/** Bounds may have changed since: what the VM has stays within them. */
function scalingFrom({ policy, allocated }: ScaledResource, saved: SavedTracker | undefined): ScalingState {
  const before = saved?.scaling;
  if (before === undefined || !Number.isFinite(before.allocated)) return initialScaling(allocated);
  const within = Math.min(policy.max, Math.max(policy.min, before.allocated));
  return { ...initialScaling(within), ...before, allocated: within };
}

/** Between the levels that are stated; beyond them the last one. */
export function quantileAt({ levels, values }: Peak, level: number): number {
  const upper = levels.findIndex((stated) => stated >= level);
  if (upper <= 0) return values.at(upper) ?? Number.NaN;
  const [low, high] = [levels[upper - 1] ?? 0, levels[upper] ?? 1];
  const [from, to] = [values[upper - 1] ?? 0, values[upper] ?? 0];
  return from + ((level - low) / (high - low)) * (to - from);
}
