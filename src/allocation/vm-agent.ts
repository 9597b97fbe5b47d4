import { AnomalyDetector } from '../forecast/anomaly-detector.ts';
import type { AnomalyVerdict } from '../forecast/anomaly-verdict.ts';
import {
  Forecaster,
  type ForecastWish,
  type HorizonForecast,
  MINUTES_STEP_MS,
} from '../forecast/forecaster.ts';
import { MethodScratch } from '../forecast/method-scratch.ts';
import { PeakForecaster } from '../forecast/peak-forecaster.ts';
import type { Sample } from '../telemetry/sample.ts';
import { RESOURCES, type Resource } from './resource.ts';
import {
  initialScaling,
  type ScalingEffect,
  type ScalingEvent,
  type ScalingState,
  stepScaling,
} from './scaling-decision.ts';
import type { ScalingPolicy } from './scaling-policy.ts';
import { type Demand, demandsOf } from './vm-demand.ts';

/** A forecast is held against what the VM has this often. */
const DECIDE_EVERY_MS = 60_000;

/** What follows one resource of a VM. */
export interface ScaledResource {
  readonly policy: ScalingPolicy;
  /** What the VM has when the agent begins. */
  readonly allocated: number;
}

export interface VmAgentOptions {
  readonly vm: string;
  /** Resources that are not in it are forecast, and not decided about. */
  readonly scaled: Readonly<Partial<Record<Resource, ScaledResource>>>;
  readonly horizonMs: number;
  readonly scratch?: MethodScratch;
}

/** One decision, with all that it was made from. */
export interface AgentDecision {
  readonly resource: Resource;
  /** Unix time in ms. */
  readonly atMs: number;
  readonly effect: ScalingEffect;
  readonly demand: Demand;
  /** Quantiles of the peak within the horizon, by level; undefined where too little is known. */
  readonly peak: { readonly levels: readonly number[]; readonly values: readonly number[] } | undefined;
  readonly allocated: number;
  readonly reserved: number;
  readonly isAnomalous: boolean;
}

export interface AgentAnomaly {
  readonly resource: Resource;
  readonly verdict: AnomalyVerdict;
}

export interface AgentReport {
  readonly decisions: readonly AgentDecision[];
  /** Episodes that began or ended. */
  readonly anomalies: readonly AgentAnomaly[];
}

/**
 * The agent of one VM: knows from its samples how it behaves, says what it will need, and decides what has to be ready. It
 * does nothing itself: who carries its decisions out, or only shows them, tells it what came of them.
 */
export class VmAgent {
  readonly vm: string;
  readonly #trackers: Readonly<Record<Resource, ResourceTracker>>;

  constructor(options: VmAgentOptions) {
    this.vm = options.vm;
    const scratch = options.scratch ?? new MethodScratch();
    this.#trackers = mapResources((resource) => new ResourceTracker(resource, { ...options, scratch }));
  }

  take(sample: Sample): AgentReport {
    const demands = demandsOf(sample);
    const decisions: AgentDecision[] = [];
    const anomalies: AgentAnomaly[] = [];
    for (const tracker of Object.values(this.#trackers)) {
      const demand = demands[tracker.resource];
      if (demand === undefined) continue;
      anomalies.push(...tracker.learn(demand, sample));
      decisions.push(...tracker.decide(demand, sample));
    }
    return { decisions, anomalies };
  }

  /** What came of a decision, or what was found to be so. */
  tell(resource: Resource, event: ScalingEvent): void {
    this.#trackers[resource].tell(event);
  }

  forecast(resource: Resource, wish: ForecastWish = {}): HorizonForecast | undefined {
    return this.#trackers[resource].forecaster.forecast(wish);
  }

  /** Undefined where the resource is not scaled. */
  scaling(resource: Resource): ScalingState | undefined {
    return this.#trackers[resource].scaling;
  }
}

class ResourceTracker {
  readonly resource: Resource;
  readonly forecaster: Forecaster;
  readonly #peaks: PeakForecaster;
  readonly #anomalies = new AnomalyDetector({ stepMs: MINUTES_STEP_MS });
  readonly #verdicts: AnomalyVerdict[] = [];
  #policy: ScalingPolicy | undefined;
  scaling: ScalingState | undefined;
  #decidedMs = Number.NEGATIVE_INFINITY;

  constructor(
    resource: Resource,
    { scaled, horizonMs, scratch }: VmAgentOptions & { readonly scratch: MethodScratch },
  ) {
    this.resource = resource;
    this.#policy = scaled[resource]?.policy;
    this.scaling = scaled[resource] && initialScaling(scaled[resource].allocated);
    this.#peaks = new PeakForecaster({ stepMs: MINUTES_STEP_MS, horizonMs });
    this.forecaster = new Forecaster({
      scratch,
      onMinutesStep: ({ mean, max, startMs }) => {
        const verdict = this.#anomalies.push(mean, startMs);
        if (verdict.change !== undefined) this.#verdicts.push(verdict);
        this.#peaks.update(max, startMs, { learn: !verdict.isAnomalous });
      },
    });
  }

  learn({ used }: Demand, sample: Sample): AgentAnomaly[] {
    // While something is not normal nothing is learnt from it: it would be forgotten too late.
    this.forecaster.add(used, sample, { learn: !this.#anomalies.isAnomalous });
    return this.#verdicts.splice(0).map((verdict) => ({ resource: this.resource, verdict }));
  }

  decide(demand: Demand, { wallMs }: Sample): AgentDecision[] {
    if (this.scaling === undefined || this.#policy === undefined) return [];
    const { atMs } = this.forecaster;
    const isAnomalous = this.#anomalies.isAnomalous;
    const before = this.scaling;
    const effects = [...this.tell({ kind: 'use', atMs, ...demand })];
    let peak: AgentDecision['peak'];
    if (atMs - this.#decidedMs >= DECIDE_EVERY_MS || effects.length > 0) {
      const values = this.#peaks.predict();
      peak = values && { levels: this.#peaks.levels, values: [...values] };
    }
    if (atMs - this.#decidedMs >= DECIDE_EVERY_MS) {
      this.#decidedMs = atMs;
      effects.push(...this.tell({ kind: 'forecast', atMs, peak: this.#wanted(peak), isAnomalous }));
    }
    const { allocated, reserved } = before;
    return effects.map((effect) => ({
      ...{ resource: this.resource, atMs: wallMs, effect, demand, peak },
      ...{ allocated, reserved, isAnomalous },
    }));
  }

  tell(event: ScalingEvent): readonly ScalingEffect[] {
    if (this.scaling === undefined || this.#policy === undefined) return [];
    const { next, effects } = stepScaling(this.scaling, event, this.#policy);
    this.scaling = next;
    return effects;
  }

  /** The policy's quantile, between those that are stated. */
  #wanted(peak: AgentDecision['peak']): number | undefined {
    if (peak === undefined || this.#policy === undefined) return undefined;
    return quantileAt(peak, this.#policy.quantile);
  }
}

function quantileAt(
  { levels, values }: { readonly levels: readonly number[]; readonly values: readonly number[] },
  level: number,
): number {
  const upper = levels.findIndex((stated) => stated >= level);
  if (upper <= 0) return values.at(upper) ?? Number.NaN;
  const [low, high] = [levels[upper - 1] ?? 0, levels[upper] ?? 1];
  const [from, to] = [values[upper - 1] ?? 0, values[upper] ?? 0];
  return from + ((level - low) / (high - low)) * (to - from);
}

function mapResources<Value>(make: (resource: Resource) => Value): Record<Resource, Value> {
  const names = Object.keys(RESOURCES) as Resource[];
  return Object.fromEntries(names.map((name) => [name, make(name)])) as Record<Resource, Value>;
}
