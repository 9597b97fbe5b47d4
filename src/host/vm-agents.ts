import { crc32 } from 'node:zlib';
import type { AgentSettings } from '../allocation/agent-settings.ts';
import { HostOutlook, type ResourceOutlook } from '../allocation/host-outlook.ts';
import { RESOURCES, type Resource } from '../allocation/resource.ts';
import { ResourcePool } from '../allocation/resource-pool.ts';
import type { Peak } from '../allocation/resource-tracker.ts';
import { type AgentAnomaly, type AgentDecision, VmAgent } from '../allocation/vm-agent.ts';
import type { Demands } from '../allocation/vm-demand.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { type AllocationMode, HORIZON_MS_DEFAULT } from '../config/allocation-schema.ts';
import type { ForecastWish, HorizonForecast } from '../forecast/forecaster.ts';
import { MethodScratch } from '../forecast/method-scratch.ts';
import type { Sample } from '../telemetry/sample.ts';
import type { AgentFiles } from './agent-files.ts';
import { DecisionLog } from './decision-log.ts';
import { LimitSetter, type LimitSetterOptions, type SetOutcome, type Wanted } from './limit-setter.ts';

/** What an agent has learnt is written down this often: a crash costs it no more than that. */
const SAVE_EVERY_MS = 300_000;
/** Specifications are looked at anew this often. */
const SETTINGS_EVERY_MS = 5000;

/** What all VMs use together is a sample this often. */
const SUM_EVERY_MS = 1000;
/** A VM that has been silent for so many of its intervals, and so long, uses nothing. */
const SILENT_INTERVALS = 3;
const SILENT_MS = 10_000;
/** So long an order may still be under way when all ends. */
const SETTLE_MS = 5000;
const RESOURCE_NAMES = Object.keys(RESOURCES) as Resource[];

export interface VmAgentsOptions {
  /** Undefined for a VM that is none of this host's. */
  readonly settingsOf: (vm: string) => AgentSettings | undefined;
  /** What this host has of each resource. */
  readonly capacity: Readonly<Record<Resource, number>>;
  readonly files: AgentFiles;
  readonly clock: Clock;
  readonly log: Logger;
  readonly publish: (kind: string, vm: string, facts: Readonly<Record<string, unknown>>) => void;
  /** Asks the VM's keeper to limit it. */
  readonly order: LimitSetterOptions['order'];
}

interface Attended {
  readonly agent: VmAgent;
  readonly settings: AgentSettings;
  /** Of the settings, to notice others. */
  readonly key: string;
  savedAtMs: number;
  lookedAtMs: number;
  last: Sample;
  /** Until when its next sample is awaited: CLOCK_MONOTONIC. */
  silentAtMs: number;
  /** Whether limits that were decided may hold for it. */
  isLimited: boolean;
}

/** Amounts of a resource of this host. */
export interface HostResource extends ResourceOutlook {
  readonly capacity: number;
  readonly allocated: number;
  readonly reserved: number;
  readonly lent: number;
}

/** What is known of a VM's future. */
export interface AgentView {
  readonly mode: AllocationMode;
  readonly horizonMs: number;
  readonly agent: VmAgent;
  readonly last: Sample;
}

/**
 * The agents of this host's VMs. Samples come in, decisions go to the pools at once and into the log with all that they were
 * made from. Nothing waits here.
 */
export class VmAgents implements AsyncDisposable {
  readonly #options: VmAgentsOptions;
  readonly #attended = new Map<string, Attended>();
  readonly #scratch = new MethodScratch();
  readonly #pools: Readonly<Record<Resource, ResourcePool>>;
  readonly #decisions: DecisionLog;
  readonly #limits: LimitSetter;
  readonly #writing = new Set<Promise<void>>();
  readonly #outlook: HostOutlook;
  #summedAtMs = Number.NEGATIVE_INFINITY;

  constructor(options: VmAgentsOptions) {
    this.#options = options;
    const { capacity, clock, publish } = options;
    this.#pools = Object.fromEntries(
      Object.keys(RESOURCES).map((name) => [
        name,
        new ResourcePool({ capacity: capacity[name as Resource] }),
      ]),
    ) as Record<Resource, ResourcePool>;
    this.#outlook = new HostOutlook({ horizonMs: HORIZON_MS_DEFAULT, scratch: this.#scratch });
    this.#limits = new LimitSetter({
      ...{ clock, log: options.log, order: options.order },
      onFailure: (outcome) => this.#onFailure(outcome),
    });
    this.#decisions = new DecisionLog({ clock, publish });
  }

  take(sample: Sample): void {
    const attended = this.#attend(sample);
    if (attended === undefined) return;
    const { agent, settings } = attended;
    attended.last = sample;
    const { demands, decisions, anomalies } = agent.take(sample);
    for (const anomaly of anomalies) this.#tellOf(anomaly, sample.vm);
    for (const decision of decisions) this.#carryOut(decision, { vm: sample.vm, agent, mode: settings.mode });
    this.#limit(sample.vm, attended);
    this.#sumUp(sample, demands);
    if (this.#options.clock.nowMs() - attended.savedAtMs >= SAVE_EVERY_MS) this.#save(sample.vm, attended);
  }

  /** One resource of this host, and what all VMs have and want of it. */
  hostView(resource: Resource): HostResource {
    const { capacity, allocated, reserved, lent } = this.#pools[resource];
    return { capacity, allocated, reserved, lent, ...this.#outlook.view(resource) };
  }

  /** Of the VMs that say something about the resource. */
  peaks(resource: Resource): readonly Peak[] {
    return [...this.#attended.values()].flatMap(({ agent }) => agent.view(resource).peak ?? []);
  }

  view(vm: string): AgentView | undefined {
    const attended = this.#attended.get(vm);
    if (attended === undefined) return undefined;
    const { agent, last, settings } = attended;
    return { agent, last, mode: settings.mode, horizonMs: settings.horizonMs };
  }

  forecast(vm: string, resource: Resource, wish: ForecastWish = {}): HorizonForecast | undefined {
    return this.#attended.get(vm)?.agent.forecast(resource, wish);
  }

  /** The VM is gone for good. */
  forget(vm: string): void {
    this.#attended.delete(vm);
    this.#release(vm);
    this.#decisions.forget(vm);
    this.#follow(vm, this.#options.files.forget(vm));
  }

  /** Writes down what all of them have learnt. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const [vm, attended] of this.#attended) this.#save(vm, attended);
    await Promise.all([...this.#writing, this.#limits.settle(SETTLE_MS)]);
  }

  #sumUp(sample: Sample, demands: Demands): void {
    const { clock } = this.#options;
    const nowMs = clock.nowMs();
    const untilMs = nowMs + SILENT_INTERVALS * sample.intervalMs + SILENT_MS;
    const attended = this.#attended.get(sample.vm);
    if (attended !== undefined) attended.silentAtMs = untilMs;
    this.#outlook.note(sample.vm, { demands, untilMs });
    if (nowMs - this.#summedAtMs < SUM_EVERY_MS) return;
    this.#summedAtMs = nowMs;
    // Once a second for all, not with each sample: it looks at what every VM has.
    this.#expire();
    for (const [vm, { silentAtMs }] of this.#attended) if (silentAtMs < nowMs) this.#leave(vm);
    this.#outlook.take({ wallMs: clock.wallMs(), monotonicMs: nowMs });
  }

  /** It has ended, or acts elsewhere: what it had is free, what was learnt of it stays. */
  #leave(vm: string): void {
    const attended = this.#attended.get(vm);
    if (attended !== undefined) this.#save(vm, attended);
    this.#attended.delete(vm);
    this.#release(vm);
  }

  #release(vm: string): void {
    this.#outlook.forget(vm);
    for (const pool of Object.values(this.#pools)) pool.remove(vm);
    this.#limits.forget(vm);
  }

  /** Has what is decided carried out; or, where nobody decides any more, what was decided taken back, until it is. */
  #limit(vm: string, attended: Attended): void {
    const { agent, settings } = attended;
    const { files } = this.#options;
    if (settings.mode === 'auto') {
      const wanted = limitsOf(agent);
      if (!attended.isLimited && Object.values(wanted).some((amount) => amount !== null)) {
        files.noteLimited(vm, true);
        attended.isLimited = true;
      }
      this.#limits.want(vm, wanted);
      return;
    }
    if (!attended.isLimited || !this.#limits.release(vm, { limited: RESOURCE_NAMES })) return;
    files.noteLimited(vm, false);
    attended.isLimited = false;
  }

  #attend(sample: Sample): Attended | undefined {
    const { clock, settingsOf, files } = this.#options;
    const known = this.#attended.get(sample.vm);
    const nowMs = clock.nowMs();
    if (known !== undefined && nowMs - known.lookedAtMs < SETTINGS_EVERY_MS) return known;
    const settings = settingsOf(sample.vm);
    if (settings === undefined) return undefined;
    const key = JSON.stringify(settings);
    if (known?.key === key) {
      known.lookedAtMs = nowMs;
      return known;
    }
    const options = {
      horizonMs: settings.horizonMs,
      scratch: this.#scratch,
      phase: phaseOf(sample.vm),
      scaled: settings.mode === 'off' ? {} : settings.scaled,
    };
    const agent = new VmAgent(options, known?.agent.save() ?? files.load(sample.vm));
    const attended = {
      ...{ agent, settings, key, last: sample, silentAtMs: Number.POSITIVE_INFINITY },
      // Not all at the same moment, after a start of the daemon.
      savedAtMs: known?.savedAtMs ?? nowMs - phaseOf(sample.vm) * SAVE_EVERY_MS,
      lookedAtMs: nowMs,
      isLimited: known?.isLimited ?? files.isLimited(sample.vm),
    };
    this.#attended.set(sample.vm, attended);
    for (const [resource, pool] of Object.entries(this.#pools) as [Resource, ResourcePool][]) {
      pool.remove(sample.vm);
      const standing = agent.standing(resource);
      if (standing === undefined) continue;
      const { policy } = standing;
      // What was only recommended is not what it has: carried out, it would lose all of that at once.
      if (settings.mode === 'auto' && !files.isLimited(sample.vm))
        agent.tell(resource, { kind: 'measured', allocated: policy.max });
      const { allocated } = agent.standing(resource)?.scaling ?? standing.scaling;
      this.#adopt(pool, { resource, vm: sample.vm, allocated });
    }
    return attended;
  }

  /** Others lose reservations where this one has, as it is, more than is free. */
  #adopt(
    pool: ResourcePool,
    {
      resource,
      vm,
      allocated,
    }: { readonly resource: Resource; readonly vm: string; readonly allocated: number },
  ): void {
    for (const { vm: other, amount } of pool.adopt(vm, allocated).dropped)
      this.#attended.get(other)?.agent.tell(resource, { kind: 'expired', amount });
  }

  #carryOut(
    decision: AgentDecision,
    { vm, agent, mode }: { readonly vm: string; readonly agent: VmAgent; readonly mode: AllocationMode },
  ): void {
    const { resource, effect } = decision;
    const pool = this.#pools[resource];
    let granted: number | undefined;
    if (effect.kind === 'reserve') {
      const untilMs = this.#options.clock.nowMs() + effect.forMs;
      ({ granted } = pool.reserve(vm, { amount: effect.amount, untilMs }));
      agent.tell(resource, { kind: 'reserved', granted });
    } else if (effect.kind === 'relief') {
      granted = this.#relieve(pool, { resource, vm, amount: effect.amount });
      agent.tell(resource, { kind: 'relieved', granted });
    } else if (effect.kind === 'hand-over') ({ granted } = pool.handOver(vm, effect.amount));
    else if (effect.kind === 'release') pool.release(vm, effect.amount);
    else pool.lower(vm, effect.to);
    this.#decisions.note({ vm, mode, decision, granted });
  }

  /** What holds is what was read back: the next decision begins there. */
  #onFailure({ vm, resource, wanted, inForce, problem }: SetOutcome): void {
    this.#decisions.noteFailure({ vm, resource, wanted, inForce, problem });
    const agent = this.#attended.get(vm)?.agent;
    const policy = agent?.standing(resource)?.policy;
    if (agent === undefined || policy === undefined || inForce === undefined) return;
    const allocated = Math.min(policy.max, Math.max(policy.min, inForce ?? policy.max));
    agent.tell(resource, { kind: 'measured', allocated });
    this.#adopt(this.#pools[resource], { resource, vm, allocated });
  }

  /**
   * Processor time can be given although it is promised to others: the kernel shares it out by weight, and a VM that is held back
   * must not wait for those that do not use theirs. Memory is there or it is not.
   */
  #relieve(
    pool: ResourcePool,
    { resource, vm, amount }: { readonly resource: Resource; readonly vm: string; readonly amount: number },
  ): number {
    if (resource !== 'cpuMillicores') return pool.allocate(vm, amount).granted;
    this.#adopt(pool, { resource, vm, allocated: pool.holding(vm).allocated + amount });
    return amount;
  }

  #expire(): void {
    const nowMs = this.#options.clock.nowMs();
    for (const [resource, pool] of Object.entries(this.#pools) as [Resource, ResourcePool][])
      for (const { vm, amount } of pool.expire(nowMs))
        this.#attended.get(vm)?.agent.tell(resource, { kind: 'expired', amount });
  }

  #tellOf({ resource, verdict }: AgentAnomaly, vm: string): void {
    const { change, episode, expected } = verdict;
    const { kind, reason, sinceMs } = episode ?? {};
    const since = sinceMs === undefined ? undefined : new Date(sinceMs).toISOString();
    if (change === 'begins')
      this.#options.publish('anomaly', vm, { resource, kind, reason, since, expected });
    else this.#options.publish('anomaly-over', vm, { resource, kind, since, because: change });
  }

  #save(vm: string, attended: Attended): void {
    const { files, clock } = this.#options;
    attended.savedAtMs = clock.nowMs();
    this.#follow(vm, files.save(vm, attended.agent.save()));
  }

  #follow(vm: string, work: Promise<void>): void {
    const { log } = this.#options;
    const writing = work
      .catch((thrown) =>
        log.warn('the file of an agent is not as it should be', { vm, ...errorFacts(thrown) }),
      )
      .finally(() => this.#writing.delete(writing));
    this.#writing.add(writing);
  }
}

/** The same for a name, always. */
function phaseOf(vm: string): number {
  return crc32(vm) / 2 ** 32;
}

function limitsOf(agent: VmAgent): Wanted {
  const wanted: Partial<Record<Resource, number | null>> = {};
  for (const resource of RESOURCE_NAMES) {
    const standing = agent.standing(resource);
    if (standing === undefined) continue;
    const { allocated } = standing.scaling;
    wanted[resource] = allocated >= standing.all ? null : allocated;
  }
  return wanted;
}
