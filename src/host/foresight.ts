import { join } from 'node:path';
import { overcommit } from '../allocation/host-outlook.ts';
import type { Resource } from '../allocation/resource.ts';
import { type Peak, quantileAt } from '../allocation/resource-tracker.ts';
import type { ResourceView } from '../allocation/vm-agent.ts';
import type {
  Allocation,
  Forecast,
  ForesightService,
  Outlook,
  ResourceName,
  Series,
} from '../api/foresight-resources.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { HORIZON_MS_DEFAULT } from '../config/allocation-schema.ts';
import { MINUTES_STEP_MS } from '../forecast/forecaster.ts';
import type { Sample } from '../telemetry/sample.ts';
import type { Resolution, SeriesStore } from '../telemetry/series-store.ts';
import { AgentFiles } from './agent-files.ts';
import { DECISION_KIND } from './decision-log.ts';
import type { EventLog } from './event-log.ts';
import type { LimitSetterOptions } from './limit-setter.ts';
import { hostCapacity } from './machine-facts.ts';
import { noStore, noTelemetry } from './refusals.ts';
import { SeriesWriter } from './series-writer.ts';
import { SettingsOfAgents } from './settings-of-agents.ts';
import type { TenantSpecs } from './tenant-specs.ts';
import { type AgentView, VmAgents } from './vm-agents.ts';
import type { VmInventory } from './vm-inventory.ts';

/** A day is drawn. */
const HISTORY_STEPS = 288;
/** The newest of them are answered. */
const SERIES_BUCKETS_MAX = 10_000;

const RESOURCE_OF: Readonly<Record<ResourceName, Resource>> = {
  cpu: 'cpuMillicores',
  memory: 'memoryBytes',
  disk: 'diskBytesPerSecond',
  net: 'netBytesPerSecond',
};
const UNITS = {
  cpu: 'millicores',
  memory: 'bytes',
  disk: 'bytes per second',
  net: 'bytes per second',
} as const satisfies Readonly<Record<ResourceName, Forecast['unit']>>;

interface ForesightOptions {
  readonly events: EventLog;
  readonly inventory: VmInventory;
  readonly specs: TenantSpecs;
  /** For what agents have learnt. */
  readonly stateDirectory: string;
  readonly clock: Clock;
  readonly log: Logger;
  /** Where samples are kept; undefined: nowhere. */
  readonly store?: SeriesStore | undefined;
  /** Asks the VM's keeper to limit it. */
  readonly order: LimitSetterOptions['order'];
  /** @throws HostError HOST_UNKNOWN for the name of another host */
  readonly ensureHost: (name: string) => void;
}

/** The agents of this host's VMs, and what they know and have decided, as the API tells it. */
export class Foresight implements ForesightService, AsyncDisposable {
  readonly #options: ForesightOptions;
  readonly #agents: VmAgents;
  readonly #writer: SeriesWriter | undefined;

  constructor(options: ForesightOptions) {
    this.#options = options;
    const { clock, log, order, events } = options;
    const settings = new SettingsOfAgents(options);
    this.#agents = new VmAgents({
      ...{ clock, log, order, capacity: hostCapacity() },
      settingsOf: (vm) => settings.of(vm),
      files: AgentFiles.open(join(options.stateDirectory, 'agents'), {
        isKnown: (vm) => options.inventory.outline(vm) !== undefined,
      }),
      publish: (kind, vm, facts) => events.publish(kind, { vm, facts }),
    });
    const { store } = options;
    this.#writer = store && new SeriesWriter({ store, clock, log });
    events.onEvent(({ kind, vm }) => {
      if (kind !== 'deleted' || vm === null) return;
      store
        ?.forget(vm)
        .catch((thrown) => log.warn('samples of a VM stay behind', { vm, ...errorFacts(thrown) }));
      this.#agents.forget(vm);
      settings.forget(vm);
    });
  }

  take(sample: Sample): void {
    this.#agents.take(sample);
    // Of VMs that are this host's.
    if (this.#agents.view(sample.vm) !== undefined) this.#writer?.take(sample);
  }

  /** What agents have learnt is written down. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agents[Symbol.asyncDispose]();
    await this.#writer?.[Symbol.asyncDispose]();
  }

  async series(
    vm: string,
    {
      metric,
      resolution,
      seconds,
    }: { readonly metric: string; readonly resolution: Resolution; readonly seconds: number },
  ): Promise<Series> {
    const { store, clock, inventory } = this.#options;
    inventory.get(vm);
    if (store === undefined) throw noStore();
    const toMs = clock.wallMs() + 1;
    const found = await store.range({ vm, metric, resolution, fromMs: toMs - seconds * 1000, toMs });
    const buckets = found.slice(-SERIES_BUCKETS_MAX).map(({ startMs, ...rest }) => ({
      startedAt: new Date(startMs).toISOString(),
      ...rest,
    }));
    return { vm, metric, resolution, buckets, metrics: [...(await store.metrics(vm))] };
  }

  forecast(vm: string, name: ResourceName): Forecast {
    const { agent, last, horizonMs } = this.#viewOf(vm);
    const resource = RESOURCE_OF[name];
    const { startMs, values } = agent.history(resource, HISTORY_STEPS);
    const forecast = agent.forecast(resource);
    const width = forecast?.levels.length ?? 0;
    return {
      ...{ vm, resource: name, unit: UNITS[name] },
      at: new Date(last.wallMs).toISOString(),
      history: {
        stepSeconds: MINUTES_STEP_MS / 1000,
        startedAt: values.length === 0 ? null : new Date(startMs).toISOString(),
        values: Array.from(values, (value) => (Number.isNaN(value) ? null : Math.max(0, value))),
      },
      levels: [...(forecast?.levels ?? [])],
      rows: (forecast?.horizonsMs ?? []).map((horizon, row) => ({
        horizonSeconds: horizon / 1000,
        values: [...(forecast?.values.subarray(row * width, (row + 1) * width) ?? [])],
      })),
      peakHorizonSeconds: horizonMs / 1000,
      ...outlook(agent.view(resource)),
    };
  }

  outlook(host: string, { risk }: { readonly risk: number }): Outlook {
    this.#options.ensureHost(host);
    const names = Object.keys(RESOURCE_OF) as ResourceName[];
    return {
      ...{ host, risk, horizonSeconds: HORIZON_MS_DEFAULT / 1000 },
      resources: names.map((name) => this.#resourceOutlook(name, risk)),
    };
  }

  #resourceOutlook(name: ResourceName, risk: number): Outlook['resources'][number] {
    const resource = RESOURCE_OF[name];
    const { capacity, used, vms, allocated, reserved, lent, peakOfSum } = this.#agents.hostView(resource);
    const peaks = this.#agents.peaks(resource);
    const isKnown = capacity < Number.MAX_SAFE_INTEGER;
    const chance = peakOfSum && overcommit(peakOfSum, { capacity, promised: allocated, risk });
    return {
      ...{ resource: name, unit: UNITS[name], vms, used, allocated, reserved, lent },
      capacity: isKnown ? capacity : null,
      peakOfSum: quantilesOf(peakOfSum),
      sumOfPeaks:
        peaks.length === 0
          ? null
          : peaks.reduce((sum, peak) => sum + Math.max(0, quantileAt(peak, 1 - risk)), 0),
      needed: chance?.needed ?? null,
      promisable: isKnown ? (chance?.promisable ?? null) : null,
    };
  }

  allocation(vm: string, { limit }: { readonly limit: number }): Allocation {
    const { agent, mode, horizonMs } = this.#viewOf(vm);
    const names = Object.keys(RESOURCE_OF) as ResourceName[];
    return {
      ...{ vm, mode, horizonSeconds: horizonMs / 1000 },
      resources: names.map((name) => ({
        ...{ resource: name, unit: UNITS[name] },
        ...outlook(agent.view(RESOURCE_OF[name])),
      })),
      decisions: this.#options.events.newestOf(this.#options.inventory.get(vm), {
        kind: DECISION_KIND,
        limit,
      }),
    };
  }

  #viewOf(vm: string): AgentView {
    this.#options.inventory.get(vm);
    const view = this.#agents.view(vm);
    if (view === undefined) throw noTelemetry(vm);
    return view;
  }
}

function quantilesOf(peak: Peak | undefined): Forecast['peak'] {
  return peak === undefined ? null : { levels: [...peak.levels], values: [...peak.values] };
}

function outlook({ scaling, policy, peak, isAnomalous }: ResourceView) {
  return {
    peak: quantilesOf(peak),
    allocation:
      scaling === undefined || policy === undefined
        ? null
        : { allocated: scaling.allocated, reserved: scaling.reserved, min: policy.min, max: policy.max },
    isAnomalous,
  };
}
