import type { AnomalyVerdict } from '../forecast/anomaly-verdict.ts';
import { ForecastError } from '../forecast/forecast-error.ts';
import type { Forecaster, ForecastWish, HorizonForecast } from '../forecast/forecaster.ts';
import { MethodScratch } from '../forecast/method-scratch.ts';
import { StateReader, StateWriter } from '../forecast/state-bytes.ts';
import type { Sample } from '../telemetry/sample.ts';
import { RESOURCES, type Resource } from './resource.ts';
import { type Peak, ResourceTracker, type ScaledResource, type TrackedDecision } from './resource-tracker.ts';
import type { ScalingEvent, ScalingState } from './scaling-decision.ts';
import type { ScalingPolicy } from './scaling-policy.ts';
import { type Demands, demandsOf } from './vm-demand.ts';

const NAMES = Object.keys(RESOURCES) as Resource[];
const STATE_VERSION = 1;

export interface VmAgentOptions {
  /** Resources that are not in it are forecast, and not decided about. */
  readonly scaled: Readonly<Partial<Record<Resource, ScaledResource>>>;
  readonly horizonMs: number;
  /** 0 … 1, another one for each VM: so that not all of them have their steps end, and cost something, at the same moment. */
  readonly phase?: number;
  /** Shared by the agents of a process, to save memory. */
  readonly scratch?: MethodScratch;
}

export interface AgentDecision extends TrackedDecision {
  readonly resource: Resource;
}

export interface AgentAnomaly {
  readonly resource: Resource;
  readonly verdict: AnomalyVerdict;
}

export interface AgentReport {
  readonly demands: Demands;
  readonly decisions: readonly AgentDecision[];
  /** Episodes that began or ended. */
  readonly anomalies: readonly AgentAnomaly[];
}

/** What a VM has of one resource that is scaled. */
export interface Standing {
  readonly scaling: ScalingState;
  readonly policy: ScalingPolicy;
  /** From here on it has all that there is, and needs no limit. */
  readonly all: number;
}

/** What an agent knows of one resource. */
export interface ResourceView {
  /** Undefined where the resource is not scaled. */
  readonly scaling: ScalingState | undefined;
  readonly policy: ScalingPolicy | undefined;
  readonly peak: Peak | undefined;
  readonly isAnomalous: boolean;
}

/**
 * The agent of one VM: knows from its samples how it behaves, says what it will need, and decides what has to be ready. It
 * does nothing itself: who carries its decisions out, or only shows them, tells it what came of them.
 */
export class VmAgent {
  readonly #trackers: Readonly<Record<Resource, ResourceTracker>>;

  /** With what an agent of this VM has `saved`, it goes on from there; what of that cannot be read begins anew. */
  constructor(
    { scaled, horizonMs, phase = 0, scratch = new MethodScratch() }: VmAgentOptions,
    saved?: Uint8Array,
  ) {
    const states = saved === undefined ? undefined : readStates(saved);
    const trackerOf = (resource: Resource) =>
      new ResourceTracker({
        ...{ horizonMs, scratch, phase: (phase + NAMES.indexOf(resource) / NAMES.length) % 1 },
        scaled: scaled[resource],
        saved: states?.get(resource),
      });
    this.#trackers = Object.fromEntries(NAMES.map((name) => [name, trackerOf(name)])) as Record<
      Resource,
      ResourceTracker
    >;
  }

  take(sample: Sample): AgentReport {
    const demands = demandsOf(sample);
    const decisions: AgentDecision[] = [];
    const anomalies: AgentAnomaly[] = [];
    for (const resource of NAMES) {
      const demand = demands[resource];
      if (demand === undefined) continue;
      const tracker = this.#trackers[resource];
      for (const verdict of tracker.learn(demand, sample)) anomalies.push({ resource, verdict });
      for (const decision of tracker.decide(demand)) decisions.push({ resource, ...decision });
    }
    return { demands, decisions, anomalies };
  }

  /** What came of a decision, or what was found to be so. */
  tell(resource: Resource, event: ScalingEvent): void {
    this.#trackers[resource].tell(event);
  }

  forecast(resource: Resource, wish: ForecastWish = {}): HorizonForecast | undefined {
    return this.#trackers[resource].forecaster.forecast(wish);
  }

  /** Undefined where the resource is not scaled. Costs nothing, other than {@link view}. */
  standing(resource: Resource): Standing | undefined {
    const { scaling, policy, all } = this.#trackers[resource];
    if (scaling === undefined || policy === undefined || all === undefined) return undefined;
    return { scaling, policy, all };
  }

  view(resource: Resource): ResourceView {
    const { scaling, policy, peak, isAnomalous } = this.#trackers[resource];
    return { scaling, policy, peak, isAnomalous };
  }

  /** Means of the last steps of {@link MINUTES_STEP_MS}, the oldest first. */
  history(resource: Resource, steps: number): ReturnType<Forecaster['history']> {
    return this.#trackers[resource].forecaster.history(steps);
  }

  /** All that it has learnt: about 150 kB. */
  save(): Uint8Array {
    const writer = new StateWriter(STATE_VERSION);
    for (const name of NAMES) {
      writer.text(name);
      writer.bytes(this.#trackers[name].save());
    }
    return writer.finish();
  }
}

function readStates(saved: Uint8Array): Map<string, Uint8Array> | undefined {
  try {
    const reader = new StateReader(saved, STATE_VERSION);
    return new Map(NAMES.map(() => [reader.text(), reader.bytes()]));
  } catch (thrown) {
    if (thrown instanceof ForecastError) return undefined;
    throw thrown;
  }
}
