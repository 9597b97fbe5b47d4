import type { Duplex } from 'node:stream';
import type { StoredToken } from '../api/access-token.ts';
import { AUDIT_KIND, type AuditEntry } from '../api/audit.ts';
import type { HostService, RequestContext, StoredAnswer } from '../api/host-service.ts';
import { isWithin, type Reach, WHOLE_REACH } from '../api/principal.ts';
import type {
  ChangeVm,
  CreateToken,
  DeclareVm,
  EventPage,
  FailoverReport,
  Health,
  HostEvent,
  Host as HostFacts,
  HostPage,
  LodgerPage,
  MigrateVm,
  Migration,
  NewToken,
  StartVm,
  StopVm,
  TokenPage,
  Vm,
  VmPage,
} from '../api/resources.ts';
import type { Stats } from '../api/stats.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { traceFacts } from '../base/trace.ts';
import { ConfigError } from '../config/config-error.ts';
import type { Termination } from '../config/vm-spec-schema.ts';
import { checkSpec } from '../qemu/protectability.ts';
import { maintenanceOf } from '../site/maintenance.ts';
import { migrateVm } from '../site/migration.ts';
import type { SeriesStore } from '../telemetry/series-store.ts';
import { AccessTokens } from './access-tokens.ts';
import { AnswerStore } from './answer-store.ts';
import { Convergence } from './convergence.ts';
import { type EventFilter, EventLog, type EventRetention } from './event-log.ts';
import { Foresight } from './foresight.ts';
import { HostError } from './host-error.ts';
import { HostMetrics } from './host-metrics.ts';
import type { StartKeeper } from './keeper-starters.ts';
import { machineFacts } from './machine-facts.ts';
import { actsElsewhere, cannotEnd, isSuspended, noSavedState, runs } from './refusals.ts';
import { type SavedKind, SavedStates } from './saved-states.ts';
import { SnapshotFiles } from './snapshot-files.ts';
import { StateDatabase } from './state-database.ts';
import { extentOf, TenantSpecs } from './tenant-specs.ts';
import { Tenants, tenantUnknown } from './tenants.ts';
import { type DeclaredVm, VmInventory, type VmOutline, vmUnknown } from './vm-inventory.ts';
import { type CountedVm, vmStats } from './vm-stats.ts';
import { VmTokens } from './vm-tokens.ts';

/** What may change while the host runs. */
export interface HostSettings {
  readonly retention: EventRetention;
  /** A keeper that is starting or ending shows no event until it has; and traces may be removed by others. */
  readonly lookIntervalMs: number;
}

export interface HostOptions {
  readonly databasePath: string;
  readonly startKeeper: StartKeeper;
  readonly settings: HostSettings;
  /** Where keepers leave how they ended. */
  readonly endDirectory: string;
  /** Where the state of VMs is saved. */
  readonly stateDirectory: string;
  readonly version: string;
  /** Where samples are kept; undefined: nowhere. */
  readonly store?: SeriesStore | undefined;
  readonly clock: Clock;
  readonly log: Logger;
}

interface DesireOptions extends RequestContext {
  readonly graceful: boolean;
  readonly termination?: StopVm['termination'] | null;
  readonly startFrom?: 'snapshot' | null;
}

interface Reached {
  readonly reach?: Reach;
}

/** The daemon's inside: declared VMs on one side, keepers on the other, and the loop that makes the second like the first. */
export class Host implements HostService, AsyncDisposable {
  readonly tenants: Tenants;
  readonly snapshots: SnapshotFiles;
  readonly foresight: Foresight;
  readonly #options: HostOptions;
  readonly #database: StateDatabase;
  readonly #inventory: VmInventory;
  readonly #events: EventLog;
  readonly #answers: AnswerStore;
  readonly #accessTokens: AccessTokens;
  readonly #tokens: VmTokens;
  readonly #saved: SavedStates;
  readonly #startedMs: number;
  readonly #metrics: HostMetrics;
  readonly #convergence: Convergence;
  readonly #specs: TenantSpecs;

  /** Opens the state and takes the VMs back that run. @throws HostError for a state that cannot be used */
  constructor(options: HostOptions) {
    this.#options = options;
    const { clock } = options;
    this.#startedMs = clock.wallMs();
    this.#database = StateDatabase.open(options.databasePath);
    this.#inventory = new VmInventory(this.#database, { clock });
    this.#tokens = new VmTokens(this.#database);
    this.#events = new EventLog(this.#database, { clock, tokens: this.#tokens });
    this.tenants = new Tenants(this.#database, { clock });
    this.#specs = new TenantSpecs({ tenants: this.tenants, inventory: this.#inventory });
    this.#inventory.measure((vm) => this.#specs.extentOf(vm));
    this.#answers = new AnswerStore(this.#database, { clock });
    this.#accessTokens = new AccessTokens(this.#database, { clock });
    this.#metrics = new HostMetrics(options);
    this.#events.onEvent(() => this.#metrics.noteEvent());
    this.#saved = new SavedStates(options.stateDirectory);
    this.#events.retain(options.settings.retention);
    this.#convergence = new Convergence({
      ...options,
      lookIntervalMs: options.settings.lookIntervalMs,
      ...{ database: this.#database, inventory: this.#inventory, events: this.#events },
      ...{ tokens: this.#tokens, metrics: this.#metrics, saved: this.#saved },
      onSample: ({ sample }) => this.foresight.take(sample),
      orderOf: (vm, left) => this.#specs.orderOf(vm, left),
      isSpread: (name) => {
        const vm = this.#inventory.find(name);
        return vm !== undefined && this.#specs.isSpread(vm);
      },
    });
    this.foresight = new Foresight({
      ...{ ...options, inventory: this.#inventory, specs: this.#specs, events: this.#events },
      order: (vm, order) => this.#convergence.fleet.limit(vm, order),
      ensureHost: (name) => void this.getHost(name),
    });
    this.snapshots = new SnapshotFiles({
      clock,
      specOf: (vm) => this.#specs.parse(this.#inventory.get(vm)),
      order: (vm, order) => this.#convergence.fleet.snapshot(vm, order),
      publish: (vm, kind, facts) => this.#events.publish(kind, { vm, facts }),
    });
    this.#events.publish('host-started', { facts: { pid: process.pid, version: options.version } });
    this.#convergence.begin();
  }

  // --- what the API asks for ---------------------------------------------------------------------------------

  health(): Health {
    const asDesired = this.#inventory.outlines().every((vm) => {
      const running = this.#convergence.sightOf(vm.name).keeper === 'alive';
      if (this.#convergence.actsOn(vm.name) !== undefined) return true;
      return running === (vm.desired === 'running') && this.#convergence.problemOf(vm.name) === null;
    });
    return { status: asDesired ? 'ok' : 'degraded' };
  }

  ensureWithin(name: string, reach: Reach): void {
    const vm = this.#inventory.outline(name);
    if (vm === undefined || !isWithin(vm.tenant, reach)) throw vmUnknown(name);
  }

  describe({ reach = WHOLE_REACH }: Reached = {}): HostFacts {
    const phases = this.#within(reach).map(({ name }) => this.#convergence.sightOf(name));
    return {
      ...machineFacts(),
      maintenance: maintenanceOf() !== undefined,
      version: this.#options.version,
      pid: process.pid,
      startedAt: new Date(this.#startedMs).toISOString(),
      vms: {
        declared: phases.length,
        running: phases.filter(({ keeper, actsOn }) => keeper === 'alive' && actsOn === undefined).length,
        protected: phases.filter(({ phase }) => phase === 'protected').length,
      },
    };
  }

  listHosts({ after = '', ...asked }: Reached & { after: string | undefined }): HostPage {
    return { hosts: [this.describe(asked)].filter(({ name }) => name > after), next: null };
  }

  getHost(name: string, asked: Reached = {}): HostFacts {
    const host = this.describe(asked);
    if (host.name === name) return host;
    throw new HostError('HOST_UNKNOWN', `this host is ${host.name}, and knows no ${name}`, {
      hint: 'GET /v1/hosts lists the hosts that can be asked here.',
      facts: { host: name },
    });
  }

  listVms({ after = '', limit, reach }: Reached & { after: string | undefined; limit: number }): VmPage {
    const vms = this.#inventory.page({ after, limit: limit + 1, tenant: reach?.tenant });
    const page = vms.slice(0, limit);
    const saved = this.#saved.look();
    const next = vms.length > limit ? (page.at(-1)?.name ?? null) : null;
    return { vms: page.map((vm) => this.#resource(vm, saved)), next };
  }

  getVm(name: string): Vm {
    return this.#resource(this.#inventory.get(name), this.#saved.look());
  }

  declareVm(
    { spec, directory, desired, tenant: wanted = null }: DeclareVm,
    { trace, principal }: RequestContext = {},
  ): Vm {
    const mine = principal?.tenant ?? null;
    const tenant = mine ?? wanted;
    // For those who belong to one there is no other.
    if (tenant !== null && ((wanted ?? tenant) !== tenant || !this.tenants.has(tenant)))
      throw tenantUnknown(wanted ?? tenant);
    return this.#database.transaction(() => {
      const parsed = this.#specs.admit({ spec, directory, tenant });
      const { name, shadow } = parsed;
      const said = { name, spec, directory, desired, tenant, extent: extentOf(parsed) };
      this.#inventory.declare({ ...said, shadowInSpec: shadow.enabled });
      this.#events.publish('declared', { vm: name, facts: { desired, ...traceFacts(trace) } });
      this.#convergence.renew(name, trace);
      return this.getVm(name);
    });
  }

  changeVm(name: string, { spec, directory }: ChangeVm, { ifVersion }: { ifVersion: number }): Vm {
    const parsed = this.#specs.admit({ spec, directory, tenant: this.#inventory.get(name).tenant });
    if (parsed.name !== name) {
      throw new HostError('HOST_NAME_FIXED', `the specification is of ${parsed.name}, not of ${name}`, {
        hint: 'A VM keeps its name. Declare a new one and delete this one.',
        facts: { vm: name },
      });
    }
    const said = { spec, directory, extent: extentOf(parsed), shadowInSpec: parsed.shadow.enabled };
    return this.#database.transaction(() => {
      const { version } = this.#inventory.change(name, said, { ifVersion });
      this.#events.publish('changed', { vm: name, facts: { version } });
      return this.getVm(name);
    });
  }

  async deleteVm(
    name: string,
    { ifVersion, trace }: RequestContext & { ifVersion: number | undefined },
  ): Promise<void> {
    this.#database.transaction(() => {
      this.#inventory.desire(name, 'deleted', { graceful: false, ifVersion });
      this.#events.publish('deleting', { vm: name, facts: traceFacts(trace) });
    });
    this.#convergence.renew(name, trace);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const forget = this.#events.onEvent((event) => {
      if (event.vm !== name) return;
      if (event.kind === 'deleted') resolve();
      if (event.kind === 'stop-failed' || event.kind === 'sweep-failed') reject(cannotEnd(name, event.facts));
    });
    await promise.finally(forget);
  }

  startVm(name: string, { from, discard, trace }: StartVm & RequestContext): Vm {
    this.#getHere(name);
    if (discard && this.#saved.look()(name).suspended !== null) this.deleteSavedState(name, 'suspended');
    if (from === 'snapshot') this.#assertSnapshot(name);
    return this.#desire(name, 'running', { graceful: true, startFrom: from ?? null, trace });
  }

  stopVm(name: string, { graceful, termination, trace }: StopVm & RequestContext): Vm {
    const usual = this.#usualTermination(this.#getHere(name));
    const order = termination ?? (graceful ? usual : 'remove');
    // What nobody ever asked for need not be said.
    const said = order === 'remove' && usual === 'remove' ? null : order;
    return this.#desire(name, 'stopped', { graceful, termination: said, trace });
  }

  async protectVm(name: string, { trace }: RequestContext = {}): Promise<Vm> {
    const vm = this.#getHere(name);
    const parsed = this.#specs.parse(vm);
    checkSpec({ ...parsed, shadow: { ...parsed.shadow, enabled: true } });
    return await this.#wishShadow(name, { wanted: true, before: vm.shadowWanted, trace });
  }

  async unprotectVm(name: string, { trace }: RequestContext = {}): Promise<Vm> {
    const { shadowWanted } = this.#getHere(name);
    return await this.#wishShadow(name, { wanted: false, before: shadowWanted, trace });
  }

  async testFailover(name: string): Promise<FailoverReport> {
    this.#getHere(name);
    return await this.#convergence.fleet.testFailover(name);
  }

  deleteSavedState(name: string, kind: SavedKind): void {
    this.#inventory.get(name);
    if (this.#isAtWork(name)) throw runs(name);
    if (!this.#saved.discard(name, kind)) throw noSavedState(name, kind);
    this.#events.publish('state-discarded', { vm: name, facts: { kind } });
  }

  async promoteVm(name: string, context: RequestContext = {}): Promise<Vm> {
    this.#getHere(name);
    await this.#convergence.fleet.promote(name, context);
    return this.getVm(name);
  }

  async migrateVm(
    name: string,
    { to, wait, timeoutSeconds, trace }: MigrateVm & RequestContext,
  ): Promise<Migration> {
    this.#getHere(name);
    const order = { to, until: wait, timeoutMs: timeoutSeconds * 1000 };
    const report = await migrateVm(name, { ...order, clock: this.#options.clock, trace });
    this.#events.publish('migrated', { vm: name, facts: { ...report, ...traceFacts(trace) } });
    this.#convergence.renew(name, undefined);
    return report;
  }

  async listLodgers(): Promise<LodgerPage> {
    const isDeclared = (name: string) => this.#inventory.find(name) !== undefined;
    return { lodgers: await this.#convergence.fleet.strangers(isDeclared) };
  }

  async stats({ reach = WHOLE_REACH }: Reached = {}): Promise<Stats> {
    const figures = await this.#convergence.fleet.metrics();
    return { host: this.describe({ reach }), vms: vmStats(this.#census(reach), figures) };
  }

  async exposition(): Promise<string> {
    const figures = await this.#convergence.fleet.metrics();
    const isDegraded = this.health().status === 'degraded';
    return await this.#metrics.exposition({ vms: this.#census(), figures, isDegraded });
  }

  #within(reach: Reach): readonly VmOutline[] {
    return this.#inventory.outlines().filter(({ tenant }) => isWithin(tenant, reach));
  }

  /** VMs in short, by name. */
  #census(reach: Reach = WHOLE_REACH): readonly CountedVm[] {
    return this.#within(reach).map(({ name, desired }) => ({
      name,
      state: this.#convergence.stateOf(name),
      desired: desired === 'running' ? 'running' : 'stopped',
    }));
  }

  async openConsole(name: string): Promise<Duplex> {
    this.#getHere(name);
    return this.#convergence.fleet.console(name);
  }

  listEvents({ after, limit, ...filter }: EventFilter & { after: number }): EventPage {
    const events = this.#events.since(after, { ...filter, limit: limit + 1 });
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

  listTokens(page: Reached & { after: string | undefined; limit: number }): TokenPage {
    return this.#accessTokens.page(page);
  }

  createToken(request: CreateToken): NewToken {
    return this.#accessTokens.create(request);
  }

  revokeToken(id: string, asked: Reached = {}): void {
    this.#accessTokens.revoke(id, asked);
  }

  findToken(id: string): StoredToken | undefined {
    return this.#accessTokens.find(id);
  }

  audit({ tenant, ...facts }: AuditEntry): void {
    this.#events.publish(AUDIT_KIND, { tenant, facts });
  }

  /** Something happened to the host itself. */
  note(kind: string, facts: Readonly<Record<string, unknown>>): void {
    this.#events.publish(kind, { facts });
  }

  recallAnswer(key: string): StoredAnswer | undefined {
    return this.#answers.recall(key);
  }

  storeAnswer(key: string, answer: StoredAnswer): void {
    this.#answers.store(key, answer);
  }

  /** Takes other settings over; VMs do not notice. */
  apply({ retention, lookIntervalMs }: HostSettings): void {
    this.#events.retain(retention);
    this.#convergence.lookEvery(lookIntervalMs);
  }

  /** Lets the VMs be; what is under way with them comes to its end first. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#convergence[Symbol.asyncDispose]();
    await this.foresight[Symbol.asyncDispose]();
    this.#database[Symbol.dispose]();
  }

  /** @throws HostError HOST_VM_UNKNOWN, HOST_VM_ELSEWHERE */
  #getHere(name: string): DeclaredVm {
    const vm = this.#inventory.get(name);
    const host = this.#convergence.actsOn(name);
    if (host !== undefined) throw actsElsewhere(name, host);
    return vm;
  }

  /** A keeper that starts may be reading a saved state, and one that ends may be writing it. */
  #isAtWork(name: string): boolean {
    return this.#convergence.sightOf(name).keeper === 'alive' || this.#convergence.isBusyWith(name);
  }

  /** Written down first: should this process end in between, the next one tells the keeper. */
  async #wishShadow(
    name: string,
    { wanted, before, trace }: RequestContext & { wanted: boolean; before: boolean | null },
  ): Promise<Vm> {
    const { fleet } = this.#convergence;
    this.#inventory.wantShadow(name, wanted);
    try {
      if (this.#convergence.sightOf(name).keeper === 'alive')
        await (wanted ? fleet.protect(name, { trace }) : fleet.unprotect(name, { trace }));
    } catch (thrown) {
      this.#inventory.wantShadow(name, before);
      throw thrown;
    }
    this.#events.publish('shadow-wish', { vm: name, facts: { wanted, ...traceFacts(trace) } });
    this.#convergence.renew(name, trace);
    return this.getVm(name);
  }

  /** What the specification says. One that an earlier version took, and this one does not, must not keep its VM running. */
  #usualTermination(vm: DeclaredVm): Termination {
    try {
      return this.#specs.parse(vm).termination;
    } catch (thrown) {
      if (thrown instanceof ConfigError) return 'remove';
      throw thrown;
    }
  }

  #assertSnapshot(name: string): void {
    const { suspended, snapshot } = this.#saved.look()(name);
    if (this.#convergence.sightOf(name).keeper === 'alive') throw runs(name);
    if (suspended !== null) throw isSuspended(name);
    if (snapshot === null) throw noSavedState(name, 'snapshot');
  }

  #desire(name: string, desired: 'running' | 'stopped', options: DesireOptions): Vm {
    const { graceful, termination = null, startFrom = null, trace } = options;
    this.#database.transaction(() => {
      const before = this.#inventory.get(name).desired;
      this.#inventory.desire(name, desired, { graceful, termination, startFrom });
      if (before !== desired)
        this.#events.publish('desired', { vm: name, facts: { desired, ...traceFacts(trace) } });
    });
    this.#convergence.renew(name, trace);
    return this.getVm(name);
  }

  #resource(vm: DeclaredVm, saved: ReturnType<SavedStates['look']>): Vm {
    const { name, tenant, version, spec, directory, desired, started, createdMs, changedMs } = vm;
    const { keeper, pid } = this.#convergence.sightOf(name);
    return {
      name,
      tenant,
      version,
      spec,
      directory,
      desired: desired === 'running' ? 'running' : 'stopped',
      shadowWanted: vm.shadowWanted ?? vm.shadowInSpec,
      saved: saved(name),
      observed: {
        state: this.#convergence.stateOf(name),
        version: keeper === 'alive' ? (started?.version ?? null) : null,
        keeperPid: pid ?? null,
        actsOn: this.#convergence.actsOn(name) ?? null,
        problem: this.#convergence.problemOf(name),
      },
      createdAt: new Date(createdMs).toISOString(),
      changedAt: new Date(changedMs).toISOString(),
    };
  }
}
