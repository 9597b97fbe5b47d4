import type { HostService, StoredAnswer } from '../api/host-service.ts';
import type {
  ChangeVm,
  DeclareVm,
  EventPage,
  Health,
  HostEvent,
  Host as HostFacts,
  HostPage,
  Vm,
  VmPage,
} from '../api/resources.ts';
import { unreachable } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts, messageOf, UnderstudyError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { bootId } from '../control/process-identity.ts';
import { AnswerStore } from './answer-store.ts';
import { EventLog } from './event-log.ts';
import { HostError } from './host-error.ts';
import { type FleetSight, KeeperFleet, NOTHING } from './keeper-fleet.ts';
import { machineFacts } from './machine-facts.ts';
import { type HostAction, reconcile, type VmSight } from './reconcile.ts';
import { StateDatabase } from './state-database.ts';
import { type DeclaredVm, VmInventory, type VmOutline } from './vm-inventory.ts';
import { VmTokens } from './vm-tokens.ts';

/** A VM that has run for so long is no longer one that does not start. */
const SETTLED_MS = 60_000;
/** A keeper that is starting or ending shows no event until it has; and traces may be removed by others. */
const LOOK_INTERVAL_MS = 5000;

export interface HostOptions {
  readonly databasePath: string;
  readonly specDirectory: string;
  /** Where keepers leave how they ended. */
  readonly endDirectory: string;
  readonly version: string;
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
}

/** The daemon's inside: declared VMs on one side, keepers on the other, and the loop that makes the second like the first. */
export class Host implements HostService, AsyncDisposable {
  readonly #options: HostOptions;
  readonly #database: StateDatabase;
  readonly #inventory: VmInventory;
  readonly #events: EventLog;
  readonly #answers: AnswerStore;
  readonly #tokens: VmTokens;
  readonly #bootId = bootId();
  readonly #fleet: KeeperFleet;
  readonly #startedMs: number;
  readonly #care = new Map<string, Care>();
  readonly #working = new Set<Promise<void>>();
  #sights: Map<string, FleetSight> = new Map();
  #cancelLook: () => void = () => {};
  /** When all VMs are looked at again, whatever happens. */
  #lookAtMs = 0;
  /** VMs about which something is new. */
  readonly #toLookAt = new Set<string>();
  #closing = false;

  /** Opens the state and takes the VMs back that run. @throws HostError for a state that cannot be used */
  constructor(options: HostOptions) {
    this.#options = options;
    const { clock, specDirectory, endDirectory } = options;
    this.#startedMs = clock.wallMs();
    this.#database = StateDatabase.open(options.databasePath);
    this.#inventory = new VmInventory(this.#database, { clock });
    this.#tokens = new VmTokens(this.#database);
    this.#events = new EventLog(this.#database, { clock, tokens: this.#tokens });
    this.#answers = new AnswerStore(this.#database, { clock });
    this.#fleet = new KeeperFleet({
      specDirectory,
      endDirectory,
      clock,
      lastTaken: (vm, keeper) => this.#events.lastTaken(vm, { keeper }),
      onEvent: (event, keeper) => this.#events.take(event, { keeper }),
      onChange: (vm) => this.#lookSoon(vm),
    });
    this.#events.publish('host-started', { facts: { pid: process.pid, version: options.version } });
    this.#lookAtAll();
  }

  // --- what the API asks for ---------------------------------------------------------------------------------

  health(): Health {
    const asDesired = this.#inventory.outlines().every((vm) => {
      const running = this.#sightOf(vm.name).keeper === 'alive';
      return running === (vm.desired === 'running') && (this.#care.get(vm.name)?.problem ?? null) === null;
    });
    return { status: asDesired ? 'ok' : 'degraded' };
  }

  describe(): HostFacts {
    const phases = this.#inventory.outlines().map(({ name }) => this.#sightOf(name));
    return {
      ...machineFacts(),
      version: this.#options.version,
      pid: process.pid,
      startedAt: new Date(this.#startedMs).toISOString(),
      vms: {
        declared: phases.length,
        running: phases.filter(({ keeper }) => keeper === 'alive').length,
        protected: phases.filter(({ phase }) => phase === 'protected').length,
      },
    };
  }

  listHosts({ after = '' }: { after: string | undefined }): HostPage {
    return { hosts: [this.describe()].filter(({ name }) => name > after), next: null };
  }

  getHost(name: string): HostFacts {
    const host = this.describe();
    if (host.name === name) return host;
    throw new HostError('HOST_UNKNOWN', `this host is ${host.name}, and knows no ${name}`, {
      hint: 'GET /v1/hosts lists the hosts that can be asked here.',
      facts: { host: name },
    });
  }

  listVms({ after = '', limit }: { after: string | undefined; limit: number }): VmPage {
    const vms = this.#inventory.page({ after, limit: limit + 1 });
    const page = vms.slice(0, limit);
    return {
      vms: page.map((vm) => this.#resource(vm)),
      next: vms.length > limit ? (page.at(-1)?.name ?? null) : null,
    };
  }

  getVm(name: string): Vm {
    return this.#resource(this.#inventory.get(name));
  }

  declareVm({ spec, directory, desired }: DeclareVm): Vm {
    const { name } = checkedSpec(spec, directory);
    return this.#database.transaction(() => {
      this.#inventory.declare({ name, spec, directory, desired });
      this.#events.publish('declared', { vm: name, facts: { desired } });
      this.#lookSoon(name);
      return this.getVm(name);
    });
  }

  changeVm(name: string, { spec, directory }: ChangeVm, { ifVersion }: { ifVersion: number }): Vm {
    const parsed = checkedSpec(spec, directory);
    if (parsed.name !== name) {
      throw new HostError('HOST_NAME_FIXED', `the specification is of ${parsed.name}, not of ${name}`, {
        hint: 'A VM keeps its name. Declare a new one and delete this one.',
        facts: { vm: name },
      });
    }
    return this.#database.transaction(() => {
      const { version } = this.#inventory.change(name, { spec, directory }, { ifVersion });
      this.#events.publish('changed', { vm: name, facts: { version } });
      return this.getVm(name);
    });
  }

  async deleteVm(name: string, { ifVersion }: { ifVersion: number | undefined }): Promise<void> {
    this.#database.transaction(() => {
      this.#inventory.desire(name, 'deleted', { graceful: false, ifVersion });
      this.#events.publish('deleting', { vm: name });
    });
    this.#careOf(name).failures = 0;
    this.#lookSoon(name);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const forget = this.#events.onEvent((event) => {
      if (event.vm !== name) return;
      if (event.kind === 'deleted') resolve();
      if (event.kind === 'stop-failed' || event.kind === 'sweep-failed') reject(cannotEnd(name, event.facts));
    });
    await promise.finally(forget);
  }

  startVm(name: string): Vm {
    return this.#desire(name, 'running', { graceful: true });
  }

  stopVm(name: string, { graceful }: { graceful: boolean }): Vm {
    return this.#desire(name, 'stopped', { graceful });
  }

  async promoteVm(name: string): Promise<Vm> {
    this.#inventory.get(name);
    await this.#fleet.promote(name);
    return this.getVm(name);
  }

  listEvents({ after, limit, vm }: { after: number; limit: number; vm: string | undefined }): EventPage {
    const events = this.#events.since(after, { limit: limit + 1, vm });
    const page = events.slice(0, limit);
    return { events: page, next: events.length > limit ? (page.at(-1)?.id ?? null) : null };
  }

  newestEvent(): number {
    return this.#events.newest();
  }

  onEvent(listener: (event: HostEvent) => void): () => void {
    return this.#events.onEvent(listener);
  }

  transaction<Result>(work: () => Result): Result {
    return this.#database.transaction(work);
  }

  recallAnswer(key: string): StoredAnswer | undefined {
    return this.#answers.recall(key);
  }

  storeAnswer(key: string, answer: StoredAnswer): void {
    this.#answers.store(key, answer);
  }

  /** Lets the VMs be; what is under way with them comes to its end first. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing = true;
    this.#cancelLook();
    await Promise.all(this.#working);
    this.#fleet[Symbol.dispose]();
    this.#database[Symbol.dispose]();
  }

  #desire(name: string, desired: 'running' | 'stopped', { graceful }: { graceful: boolean }): Vm {
    this.#database.transaction(() => {
      const before = this.#inventory.get(name).desired;
      this.#inventory.desire(name, desired, { graceful });
      if (before !== desired) this.#events.publish('desired', { vm: name, facts: { desired } });
    });
    // Who asks for it anew does not wait for the next try.
    const care = this.#careOf(name);
    care.failures = 0;
    this.#lookSoon(name);
    return this.getVm(name);
  }

  // --- the loop ----------------------------------------------------------------------------------------------

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
    const declared = names.flatMap((name) => this.#inventory.outline(name) ?? []);
    for (const { name } of declared) this.#sights.set(name, this.#fleet.lookAt(name));
    this.#decide(declared, this.#lookAtMs);
  }

  #lookAtAll(): void {
    const declared = this.#inventory.outlines();
    this.#sights = this.#fleet.look(declared.map(({ name }) => name));
    this.#decide(declared, this.#options.clock.nowMs() + LOOK_INTERVAL_MS);
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
    const { keeper } = this.#sightOf(vm.name);
    if (keeper === 'alive' && vm.desired === 'running' && !care.busy) {
      care.problem = null;
      if (nowMs - care.startedAtMs > SETTLED_MS) care.failures = 0;
      // Somebody started it by hand.
      if (vm.started?.bootId !== this.#bootId) this.#noteStarted(vm);
    }
    // Only what was started and is gone has left one that says something.
    const end = keeper === 'none' && vm.started !== null ? this.#fleet.endOf(vm.name)?.reason : undefined;
    return { vm, keeper, end, ...care };
  }

  #begin(action: HostAction): void {
    const care = this.#careOf(action.name);
    care.busy = true;
    const work = this.#carryOut(action, care)
      .then(() => {
        care.problem = null;
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
    switch (action.kind) {
      case 'start': {
        const vm = this.#inventory.get(name);
        care.startedAtMs = this.#options.clock.nowMs();
        await this.#fleet
          .start(vm, { tokenAbove: this.#prepareStart(vm) })
          .catch((thrown) => this.#noteFailedStart(name, thrown));
        return;
      }
      case 'stop':
        await this.#fleet.stop(name, action);
        return;
      case 'sweep':
        await this.#fleet.sweep(name);
        return;
      case 'accept-end':
        this.#noteEnded(name, { desired: 'stopped' });
        return;
      case 'note-end':
        this.#noteEnded(name, {});
        return;
      case 'forget':
        this.#fleet.forgetEnd(name);
        this.#care.delete(name);
        this.#database.transaction(() => {
          this.#inventory.forget(name);
          this.#tokens.forget(name);
          this.#events.publish('deleted', { vm: name });
        });
        return;
      default:
        return unreachable(action);
    }
  }

  /**
   * Written down before the keeper is started: a daemon that is killed meanwhile leaves a VM that was started. Whether
   * it got so far, and how it ended, is what its keeper tells. Returns the token that it goes on above.
   */
  #prepareStart(vm: VmOutline): number {
    const { name } = vm;
    const known = this.#fleet.endOf(name)?.token ?? this.#sightOf(name).token;
    if (known !== undefined) this.#tokens.end(name, known);
    // Else it might be taken for the end of the keeper that is started now.
    this.#fleet.forgetEnd(name);
    return this.#database.transaction(() => {
      this.#noteStarted(vm);
      return this.#tokens.begin(name);
    });
  }

  /** One that refused took back what it had begun; of one that was killed nobody knows how far it came. */
  #noteFailedStart(name: string, thrown: unknown): never {
    const end = this.#fleet.endOf(name);
    const wasKilled = thrown instanceof KeeperError && thrown.code === 'KEEPER_START_FAILED';
    this.#database.transaction(() => {
      this.#inventory.noteEnded(name);
      if (end !== undefined || !wasKilled) this.#tokens.end(name, end?.token ?? 0);
    });
    throw thrown;
  }

  #noteStarted({ name, version }: VmOutline): void {
    this.#inventory.noteStarted(name, { version, bootId: this.#bootId });
  }

  #noteEnded(name: string, { desired }: { desired?: 'stopped' }): void {
    const end = this.#fleet.endOf(name);
    this.#database.transaction(() => {
      if (desired !== undefined) this.#inventory.desire(name, desired);
      this.#inventory.noteEnded(name);
      if (end !== undefined) this.#tokens.end(name, end.token);
      this.#events.publish('ended', { vm: name, facts: { reason: end?.reason ?? 'unknown' } });
    });
    // After the note of it: whoever is killed in between finds it again.
    this.#fleet.forgetEnd(name);
  }

  #noteFailure(action: HostAction, { care, thrown }: { care: Care; thrown: unknown }): void {
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
    this.#options.log.warn(`${action.kind} failed`, { vm: action.name, ...errorFacts(thrown) });
    this.#events.publish(`${action.kind}-failed`, { vm: action.name, facts: errorFacts(thrown) });
  }

  #careOf(name: string): Care {
    let care = this.#care.get(name);
    if (care === undefined) {
      care = { busy: false, failures: 0, failedAtMs: 0, startedAtMs: 0, problem: null };
      this.#care.set(name, care);
    }
    return care;
  }

  #sightOf(name: string): FleetSight {
    return this.#sights.get(name) ?? NOTHING;
  }

  #resource({ name, version, spec, directory, desired, started, createdMs, changedMs }: DeclaredVm): Vm {
    const { keeper, phase, pid } = this.#sightOf(name);
    const care = this.#care.get(name);
    return {
      name,
      version,
      spec,
      directory,
      desired: desired === 'running' ? 'running' : 'stopped',
      observed: {
        state: stateOf(keeper, { phase, starting: care?.busy === true }),
        version: keeper === 'alive' ? (started?.version ?? null) : null,
        keeperPid: pid ?? null,
        problem: care?.problem ?? null,
      },
      createdAt: new Date(createdMs).toISOString(),
      changedAt: new Date(changedMs).toISOString(),
    };
  }
}

function stateOf(
  keeper: FleetSight['keeper'],
  { phase, starting }: { phase: FleetSight['phase']; starting: boolean },
): Vm['observed']['state'] {
  if (keeper === 'alive') return phase ?? (starting ? 'starting' : 'no-answer');
  return keeper === 'none' ? 'absent' : keeper;
}

function cannotEnd(vm: string, facts: HostEvent['facts']): HostError {
  return new HostError('HOST_VM_STUCK', `${vm} cannot be ended yet: ${facts.error}`, {
    hint: `The host goes on trying, and forgets it then. \`understudy stop ${vm} --force\` ends a keeper that hangs.`,
    facts: { vm },
  });
}

/** @throws ConfigError */
function checkedSpec(text: string, directory: string): VmSpec {
  return parseVmSpec(text, { source: 'specification', directory });
}
