import { type Duplex, duplexPair } from 'node:stream';
import { ConfigError } from '../config/config-error.ts';
import { makeToken, type StoredToken } from './access-token.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import { AUDIT_KIND, type AuditEntry } from './audit.ts';
import type { HostService, RequestContext, StoredAnswer } from './host-service.ts';
import { MemoryForesight } from './memory-foresight.ts';
import { MemorySnapshots } from './memory-snapshots.ts';
import { MemoryTenants } from './memory-tenants.ts';
import { isWithin, type Reach, WHOLE_REACH } from './principal.ts';
import type {
  ChangeVm,
  CreateToken,
  DeclareVm,
  EventPage,
  FailoverReport,
  Host,
  HostEvent,
  HostPage,
  LodgerPage,
  MigrateVm,
  Migration,
  NewToken,
  Token,
  TokenPage,
  Vm,
  VmPage,
} from './resources.ts';
import type { Stats } from './stats.ts';

const TIME = '2026-01-01T00:00:00.000Z';

interface Reached {
  readonly reach?: Reach;
}

/** A host without VMs behind it, for the tests of this room. A specification here is one line: `name: NAME`. */
export class MemoryService implements HostService {
  readonly vms = new Map<string, Vm>();
  readonly events: HostEvent[] = [];
  readonly answers = new Map<string, StoredAnswer>();
  readonly tokens = new Map<string, StoredToken>();
  readonly audits: AuditEntry[] = [];
  readonly snapshots = new MemorySnapshots({
    ensureVm: (vm) => void this.getVm(vm),
    nowMs: () => this.nowMs(),
  });
  readonly foresight = new MemoryForesight((vm) => void this.getVm(vm));
  readonly tenants = new MemoryTenants({
    owns: (tenant) => [...this.vms.values()].some((vm) => vm.tenant === tenant),
    onDelete: (name) => {
      for (const [id, token] of this.tokens) if (token.tenant === name) this.tokens.delete(id);
    },
  });
  /** Of the tokens. */
  nowMs = () => Date.now();
  readonly #listeners = new Set<(event: HostEvent) => void>();
  #lastVersion = 0;
  /** What a promotion waits for, or fails with. */
  promotion = async (): Promise<void> => {};
  promotions = 0;
  /** Of the promotions. */
  readonly traces: (string | undefined)[] = [];
  /** The guest's ends of all consoles that were opened. */
  readonly consoles: Duplex[] = [];

  health() {
    return { status: 'ok' } as const;
  }

  ensureWithin(name: string, reach: Reach): void {
    if (!isWithin(this.getVm(name).tenant, reach)) throw hostError('HOST_VM_UNKNOWN', name);
  }

  describe({ reach = WHOLE_REACH }: Reached = {}): Host {
    return {
      ...{
        name: 'here',
        version: '0.0.0',
        pid: process.pid,
        startedAt: TIME,
        accel: null,
        cpus: 1,
        maintenance: false,
      },
      memory: { totalBytes: 0, freeBytes: 0 },
      vms: { declared: this.#within(reach).length, running: 0, protected: 0 },
    };
  }

  listHosts({ after = '', ...asked }: Reached & { after: string | undefined }): HostPage {
    return { hosts: [this.describe(asked)].filter(({ name }) => name > after), next: null };
  }

  getHost(name: string, asked: Reached = {}): Host {
    if (name !== 'here') throw hostError('HOST_UNKNOWN', name);
    return this.describe(asked);
  }

  listVms({
    after,
    limit,
    reach = WHOLE_REACH,
  }: Reached & { after: string | undefined; limit: number }): VmPage {
    const all = this.#within(reach).sort((a, b) => (a.name < b.name ? -1 : 1));
    const rest = all.filter(({ name }) => after === undefined || name > after);
    const vms = rest.slice(0, limit);
    return { vms, next: rest.length > limit ? (vms.at(-1)?.name ?? null) : null };
  }

  getVm(name: string): Vm {
    const vm = this.vms.get(name);
    if (vm === undefined) throw hostError('HOST_VM_UNKNOWN', name);
    return vm;
  }

  declareVm({ spec, directory, desired, tenant = null }: DeclareVm, { principal }: RequestContext = {}): Vm {
    const name = nameIn(spec);
    const owner = principal?.tenant ?? tenant;
    if (owner !== null && !this.tenants.has(owner)) throw hostError('HOST_TENANT_UNKNOWN', owner);
    if (this.vms.has(name)) throw hostError('HOST_VM_EXISTS', name);
    return this.#put({
      name,
      tenant: owner,
      version: this.#nextVersion(),
      spec,
      directory,
      desired,
      shadowWanted: true,
      saved: { suspended: null, snapshot: { savedAt: TIME, sizeBytes: 1, epoch: 1, problem: null } },
      observed: { state: 'absent', version: null, keeperPid: null, actsOn: null, problem: null },
      createdAt: TIME,
      changedAt: TIME,
    });
  }

  changeVm(name: string, { spec, directory }: ChangeVm, { ifVersion }: { ifVersion: number }): Vm {
    const vm = this.getVm(name);
    if (vm.version !== ifVersion) throw hostError('HOST_VM_CHANGED', name);
    if (nameIn(spec) !== name) throw hostError('HOST_NAME_FIXED', name);
    return this.#put({ ...vm, spec, directory, version: this.#nextVersion() });
  }

  async deleteVm(name: string, { ifVersion }: { ifVersion: number | undefined }): Promise<void> {
    const vm = this.getVm(name);
    if (ifVersion !== undefined && vm.version !== ifVersion) throw hostError('HOST_VM_CHANGED', name);
    this.emit(name, 'vm-deleted');
    this.vms.delete(name);
  }

  /** Moves, one after the other. */
  readonly migrations: { readonly name: string; readonly to: string | undefined }[] = [];

  async migrateVm(name: string, { to }: MigrateVm): Promise<Migration> {
    this.getVm(name);
    this.migrations.push({ name, to });
    const token = this.migrations.length;
    const times = { pauseMs: 1, promoteMs: 1 };
    return { name, from: 'here', to: to ?? 'there', token, ...times, protected: true, shadowHost: 'here' };
  }

  async listLodgers(): Promise<LodgerPage> {
    return { lodgers: [{ name: 'lodger', state: 'shadowing', actsOn: 'there', memoryBytes: 1 }] };
  }

  startVm(name: string): Vm {
    return this.#put({ ...this.getVm(name), desired: 'running' });
  }

  stopVm(name: string): Vm {
    return this.#put({ ...this.getVm(name), desired: 'stopped' });
  }

  async protectVm(name: string): Promise<Vm> {
    return this.#put({ ...this.getVm(name), shadowWanted: true });
  }

  async unprotectVm(name: string): Promise<Vm> {
    return this.#put({ ...this.getVm(name), shadowWanted: false });
  }

  async testFailover(name: string): Promise<FailoverReport> {
    this.getVm(name);
    this.emit(name, 'failover-test');
    return {
      ...{ ok: true, reason: null, epoch: 1, copyMs: 1, heldMs: 1, loadMs: 1, runningMs: 1 },
      ...{ agentAnswered: true, memoryBytes: 4096 },
    };
  }

  deleteSavedState(name: string, kind: 'suspended' | 'snapshot'): void {
    const vm = this.getVm(name);
    if (vm.saved[kind] === null) throw hostError('HOST_NO_SAVED_STATE', name);
    this.#put({ ...vm, saved: { ...vm.saved, [kind]: null } });
  }

  async promoteVm(name: string, { trace }: RequestContext = {}): Promise<Vm> {
    const vm = this.getVm(name);
    this.promotions += 1;
    this.traces.push(trace);
    await this.promotion();
    return vm;
  }

  async stats({ reach = WHOLE_REACH }: Reached = {}): Promise<Stats> {
    const vms = this.#within(reach);
    return {
      host: this.describe({ reach }),
      vms: vms.map(({ name, desired, observed }) => ({
        name,
        desired,
        state: observed.state,
        figures: null,
      })),
    };
  }

  async exposition(): Promise<string> {
    return `# HELP memory_vms VMs that are declared.\n# TYPE memory_vms gauge\nmemory_vms ${this.vms.size}\n`;
  }

  async openConsole(name: string): Promise<Duplex> {
    this.getVm(name);
    const [console, guest] = duplexPair();
    // As the two ends of a socket.
    console.once('close', () => guest.destroy());
    this.consoles.push(guest);
    return console;
  }

  listEvents({
    after,
    limit,
    vm,
    withAudit,
    reach = WHOLE_REACH,
  }: Parameters<HostService['listEvents']>[0]): EventPage {
    const shown = this.events.slice(after).filter(({ kind }) => withAudit === true || kind !== AUDIT_KIND);
    const rest = shown.filter(
      (event) => (vm === undefined || event.vm === vm) && isWithin(event.tenant, reach),
    );
    const events = rest.slice(0, limit);
    return { events, next: rest.length > limit ? (events.at(-1)?.id ?? null) : null };
  }

  newestEvent(): number {
    return this.events.length;
  }

  onEvent(listener: (event: HostEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  transaction<Result>(work: () => Result): Result {
    return work();
  }

  listTokens({
    after = '',
    limit,
    reach = WHOLE_REACH,
  }: Reached & { after: string | undefined; limit: number }): TokenPage {
    const all = [...this.tokens.values()]
      .filter(({ id, tenant }) => id > after && isWithin(tenant, reach))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    const tokens = all.slice(0, limit).map(tokenOf);
    return { tokens, next: all.length > limit ? (tokens.at(-1)?.id ?? null) : null };
  }

  createToken({ name, role, tenant = null, expiresInSeconds }: CreateToken): NewToken {
    if (tenant !== null && !this.tenants.has(tenant)) throw hostError('HOST_TENANT_UNKNOWN', tenant);
    const { text, id, hash } = makeToken();
    const expiresMs = expiresInSeconds === null ? null : this.nowMs() + expiresInSeconds * 1000;
    const stored = { id, name, role, tenant, hash, createdMs: this.nowMs(), expiresMs };
    this.tokens.set(id, stored);
    return { ...tokenOf(stored), token: text };
  }

  revokeToken(id: string, { reach = WHOLE_REACH }: Reached = {}): void {
    const found = this.tokens.get(id);
    if (found === undefined || !isWithin(found.tenant, reach) || !this.tokens.delete(id))
      throw hostError('HOST_TOKEN_UNKNOWN', id);
  }

  findToken(id: string): StoredToken | undefined {
    return this.tokens.get(id);
  }

  audit(entry: AuditEntry): void {
    this.audits.push(entry);
  }

  recallAnswer(key: string): StoredAnswer | undefined {
    return this.answers.get(key);
  }

  storeAnswer(key: string, answer: StoredAnswer): void {
    this.answers.set(key, answer);
  }

  emit(vm: string | null, kind: string, facts: Record<string, unknown> = {}): void {
    this.announce(this.record(vm, kind, facts));
  }

  record(vm: string | null, kind: string, facts: Record<string, unknown> = {}): HostEvent {
    const tenant = this.vms.get(vm ?? '')?.tenant ?? null;
    const event = {
      id: this.events.length + 1,
      time: TIME,
      vm,
      tenant,
      kind,
      token: null,
      epoch: null,
      facts,
    };
    this.events.push(event);
    return event;
  }

  announce(event: HostEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  /** Everything that a request could have changed, but for the answers that are kept. */
  state(): string {
    return JSON.stringify([
      [...this.vms],
      this.events,
      this.promotions,
      [...this.tokens.keys()],
      this.tenants.state(),
    ]);
  }

  #within(reach: Reach): Vm[] {
    return [...this.vms.values()].filter(({ tenant }) => isWithin(tenant, reach));
  }

  #put(vm: Vm): Vm {
    this.vms.set(vm.name, vm);
    this.emit(vm.name, 'vm-changed');
    return vm;
  }

  #nextVersion(): number {
    this.#lastVersion += 1;
    return this.#lastVersion;
  }
}

function tokenOf({ id, name, role, tenant, createdMs, expiresMs }: StoredToken): Token {
  const expiresAt = expiresMs === null ? null : new Date(expiresMs).toISOString();
  return { id, name, role, tenant, createdAt: new Date(createdMs).toISOString(), expiresAt };
}

function nameIn(spec: string): string {
  const name = /^name: ([a-z0-9][a-z0-9-]{0,39})$/m.exec(spec)?.[1];
  if (name !== undefined) return name;
  throw new ConfigError('CONFIG_INVALID', 'the specification has 1 problem', {
    hint: 'Correct it.',
    facts: { problems: ['spec:1: name: expected a name'] },
  });
}

/** As the client does it: the code is one of another module. */
function hostError(code: string, name: string): ApiError {
  return new ApiError(code as ApiErrorCode, `${name}: ${code}`);
}
