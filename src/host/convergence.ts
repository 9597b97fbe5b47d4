import type { Vm } from '../api/resources.ts';
import { unreachable } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts, messageOf, UnderstudyError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { type Trace, traceFacts } from '../base/trace.ts';
import { bootId } from '../control/process-identity.ts';
import type { GivenSpec } from '../control/run-directory.ts';
import type { FedSample } from '../telemetry/sample-feed.ts';
import type { EventLog } from './event-log.ts';
import type { HostMetrics } from './host-metrics.ts';
import { type FleetSight, KeeperFleet, NOTHING } from './keeper-fleet.ts';
import { KeeperLedger } from './keeper-ledger.ts';
import type { StartKeeper } from './keeper-starters.ts';
import { type HostAction, reconcile, type VmSight } from './reconcile.ts';
import type { SavedStates } from './saved-states.ts';
import type { StateDatabase } from './state-database.ts';
import type { RunOrder } from './tenant-specs.ts';
import type { DeclaredVm, VmInventory, VmOutline } from './vm-inventory.ts';
import type { VmTokens } from './vm-tokens.ts';
import { Whereabouts } from './whereabouts.ts';

/** A VM that has run for so long is no longer one that does not start. */
const SETTLED_MS = 60_000;

const SAVED_KINDS = ['suspended', 'snapshot'] as const;

export interface ConvergenceOptions {
  readonly database: StateDatabase;
  readonly inventory: VmInventory;
  readonly events: EventLog;
  readonly tokens: VmTokens;
  readonly metrics: HostMetrics;
  readonly onSample: (fed: FedSample) => void;
  readonly saved: SavedStates;
  readonly startKeeper: StartKeeper;
  /** What its keeper is given, where one that was killed `left` a specification to go on with. @throws what forbids it */
  readonly orderOf: (vm: DeclaredVm, left: GivenSpec | undefined) => RunOrder;
  /** Whether it may act on other hosts as well. */
  readonly isSpread: (name: string) => boolean;
  readonly lookIntervalMs: number;
  readonly endDirectory: string;
  readonly stateDirectory: string;
  readonly clock: Clock;
  readonly log: Logger;
}

/** What this process knows of a VM and need not remember. */
interface Care {
  busy: boolean;
  failures: number;
  failedAtMs: number;
  startedAtMs: number;
  problem: Vm['observed']['problem'];
  /** The request that is behind what is being done about it; undefined where nobody asked. */
  trace: Trace | undefined;
}

/** Makes declared VMs what they are desired to be: looks, lets `reconcile` decide, acts, and looks again. */
export class Convergence implements AsyncDisposable {
  readonly fleet: KeeperFleet;
  readonly #ledger: KeeperLedger;
  readonly #whereabouts: Whereabouts;
  readonly #options: ConvergenceOptions;
  readonly #bootId = bootId();
  readonly #care = new Map<string, Care>();
  readonly #working = new Set<Promise<void>>();
  #sights: Map<string, FleetSight> = new Map();
  #cancelLook: () => void = () => {};
  /** When all VMs are looked at again, whatever happens. */
  #lookAtMs = 0;
  /** VMs about which something is new. */
  readonly #toLookAt = new Set<string>();
  #closing = false;
  #lookIntervalMs: number;

  constructor(options: ConvergenceOptions) {
    this.#options = options;
    const { startKeeper, endDirectory, stateDirectory, clock, events } = options;
    this.#lookIntervalMs = options.lookIntervalMs;
    this.fleet = new KeeperFleet({
      startKeeper,
      endDirectory,
      stateDirectory,
      clock,
      lastTaken: (vm, keeper) => events.lastTaken(vm, { keeper }),
      onEvent: (event, keeper) => events.take(event, { keeper }),
      onSample: options.onSample,
      onChange: (vm) => this.#lookSoon(vm),
    });
    this.#whereabouts = new Whereabouts(options);
    this.#ledger = new KeeperLedger({ ...options, fleet: this.fleet });
  }

  /** Takes the VMs back that run, and goes on from there. */
  begin(): void {
    this.#lookAtAll();
  }

  /** From now on; and once at once. */
  lookEvery(intervalMs: number): void {
    this.#lookIntervalMs = intervalMs;
    this.#lookAtAll();
  }

  /** What its keeper looked like last. */
  sightOf(name: string): FleetSight {
    return this.#sights.get(name) ?? NOTHING;
  }

  stateOf(name: string): Vm['observed']['state'] {
    const { keeper, phase } = this.sightOf(name);
    if (keeper !== 'alive' && this.actsOn(name) !== undefined) return 'elsewhere';
    if (keeper === 'alive') return phase ?? (this.isBusyWith(name) ? 'starting' : 'no-answer');
    return keeper === 'none' ? 'absent' : keeper;
  }

  /** The other host that acts as this VM, where one does. */
  actsOn(name: string): string | undefined {
    const { keeper, actsOn } = this.sightOf(name);
    return keeper === 'alive' ? actsOn : this.#whereabouts.hostOf(name);
  }

  /** Why a VM is not as desired, where that is known. */
  problemOf(name: string): Vm['observed']['problem'] {
    return this.#care.get(name)?.problem ?? null;
  }

  /** Something is being done about it. */
  isBusyWith(name: string): boolean {
    return this.#care.get(name)?.busy === true;
  }

  /** Something else is desired of it. Who asks for it anew does not wait for the next try. */
  renew(name: string, trace: Trace | undefined): void {
    Object.assign(this.#careOf(name), { failures: 0, trace });
    this.#whereabouts.forget(name);
    this.#lookSoon(name);
  }

  /** Lets the VMs be; what is under way with them comes to its end first. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true;
    this.#cancelLook();
    await Promise.all(this.#working);
    this.fleet[Symbol.dispose]();
  }

  /** Many changes come together: they are looked at once. The others of a thousand VMs are let be. */
  #lookSoon(name: string): void {
    const isPlanned = this.#toLookAt.size > 0;
    this.#toLookAt.add(name);
    if (isPlanned || this.#closing) return;
    setImmediate(() => {
      const names = [...this.#toLookAt];
      this.#toLookAt.clear();
      if (!this.#closing) this.#lookAt(names);
    });
  }

  #lookAt(names: readonly string[]): void {
    const declared = names.flatMap((name) => this.#options.inventory.outline(name) ?? []);
    for (const { name } of declared) this.#sights.set(name, this.fleet.lookAt(name));
    this.#decide(declared, this.#lookAtMs);
  }

  #lookAtAll(): void {
    this.#options.events.forgetWhenDue();
    const declared = this.#options.inventory.outlines();
    this.#sights = this.fleet.look(declared.map(({ name }) => name));
    this.#decide(declared, this.#options.clock.nowMs() + this.#lookIntervalMs);
  }

  #decide(declared: readonly VmOutline[], lookAtMs: number): void {
    const { clock } = this.#options;
    const nowMs = clock.nowMs();
    const vms = declared.map((vm) => this.#sight(vm, nowMs));
    const { actions, againAtMs } = reconcile({ nowMs, bootId: this.#bootId, vms });
    for (const action of actions) this.#begin(action);
    this.#lookAtMs = Math.min(lookAtMs, againAtMs ?? Number.POSITIVE_INFINITY);
    this.#cancelLook();
    this.#cancelLook = clock.after(Math.max(0, this.#lookAtMs - nowMs), () => this.#lookAtAll());
  }

  #sight(vm: VmOutline, nowMs: number): VmSight {
    const care = this.#careOf(vm.name);
    const { keeper, phase, shadowWanted, leftVm } = this.sightOf(vm.name);
    const isShadow = phase === 'shadowing';
    // Where it acted last is of no interest any more.
    if (keeper === 'alive' && !isShadow) this.#whereabouts.forget(vm.name);
    if (keeper === 'alive' && !isShadow && vm.desired === 'running' && !care.busy) {
      care.problem = null;
      care.trace = undefined;
      if (nowMs - care.startedAtMs > SETTLED_MS) care.failures = 0;
      // Somebody started it by hand.
      if (vm.started?.bootId !== this.#bootId) this.#ledger.noteStarted(vm);
    }
    // Only what was started and is gone has left one that says something.
    const left = keeper === 'none' && vm.started !== null ? this.fleet.endOf(vm.name) : undefined;
    const staleMs = this.#lookIntervalMs / 2;
    const known = keeper === 'alive' ? undefined : this.#whereabouts.of(vm, { end: left, staleMs });
    const couldGoOn = leftVm && this.#options.saved.look()(vm.name).suspended === null;
    return { vm, keeper, end: left?.reason, shadowWanted, couldGoOn, isShadow, known, ...care };
  }

  #begin(action: HostAction): void {
    const care = this.#careOf(action.name);
    care.busy = true;
    const work = this.#carryOut(action, care)
      .then(() => {
        care.problem = null;
        this.#options.metrics.noteAction(action.kind, 'done');
        const level = action.kind === 'locate' ? 'debug' : 'info';
        this.#options.log[level](`${action.kind} done`, { vm: action.name, ...traceFacts(care.trace) });
      })
      .catch((thrown) => this.#noteFailure(action, { care, thrown }))
      .finally(() => {
        care.busy = false;
        this.#working.delete(work);
        this.#lookSoon(action.name);
      });
    this.#working.add(work);
  }

  async #carryOut(action: HostAction, care: Care): Promise<void> {
    const { name } = action;
    const { saved } = this.#options;
    switch (action.kind) {
      case 'start': {
        const vm = this.#options.inventory.get(name);
        care.startedAtMs = this.#options.clock.nowMs();
        const left = this.fleet.leftSpec(name);
        // Before anything is written down or touched: what was left stays as it is where this is refused.
        const order = this.#options.orderOf(vm, left);
        const version = left === undefined ? vm.version : (vm.started?.version ?? vm.version);
        const tokenAbove = this.#ledger.prepareStart(
          { name, version },
          { recorded: this.sightOf(name).token },
        );
        try {
          await this.fleet.start({ ...vm, ...order }, { tokenAbove, left, trace: care.trace });
        } catch (thrown) {
          this.#ledger.noteFailedStart(name, thrown);
          throw thrown;
        } finally {
          this.#whereabouts.forget(name);
        }
        return;
      }
      case 'locate':
        return await this.#locate(name);
      case 'stop':
        await this.fleet.stop(name, { ...action, trace: care.trace });
        return;
      case 'protect':
        await this.fleet.protect(name, care);
        return;
      case 'unprotect':
        await this.fleet.unprotect(name, care);
        return;
      case 'sweep':
        await this.fleet.sweep(name);
        return;
      case 'accept-end':
        this.#ledger.noteEnded(name, { desired: 'stopped' });
        return;
      case 'note-end':
        this.#ledger.noteEnded(name);
        return;
      case 'forget':
        this.#care.delete(name);
        this.#ledger.forget(name, {
          removed: SAVED_KINDS.filter((kind) => saved.discard(name, kind)),
          ...traceFacts(care.trace),
        });
        return;
      default:
        return unreachable(action);
    }
  }

  async #locate(name: string): Promise<void> {
    const { inventory, events } = this.#options;
    try {
      const host = await this.#whereabouts.locate(name);
      if (host !== undefined) events.publish('acts-elsewhere', { vm: name, facts: { host } });
    } catch (thrown) {
      if (inventory.find(name)?.desired === 'running') throw thrown;
      // Nothing is to be done with it that this would be needed for.
      this.#whereabouts.assumeHere(name);
    }
  }

  #noteFailure(action: HostAction, { care, thrown }: { care: Care; thrown: unknown }): void {
    this.#options.metrics.noteAction(action.kind, 'failed');
    care.failures += 1;
    care.failedAtMs = this.#options.clock.nowMs();
    care.problem =
      thrown instanceof UnderstudyError
        ? {
            code: thrown.code,
            message: thrown.message,
            ...(thrown.hint !== undefined && { hint: thrown.hint }),
          }
        : { code: 'HOST_INTERNAL', message: messageOf(thrown) };
    const facts = { ...errorFacts(thrown), ...traceFacts(care.trace) };
    this.#options.log.warn(`${action.kind} failed`, { vm: action.name, ...facts });
    this.#options.events.publish(`${action.kind}-failed`, { vm: action.name, facts });
  }

  #careOf(name: string): Care {
    let care = this.#care.get(name);
    if (care === undefined) {
      care = { busy: false, failures: 0, failedAtMs: 0, startedAtMs: 0, problem: null, trace: undefined };
      this.#care.set(name, care);
    }
    return care;
  }
}
