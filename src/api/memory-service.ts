import { type Duplex, duplexPair } from 'node:stream';
import { ConfigError } from '../config/config-error.ts';
import { makeToken, type StoredToken } from './access-token.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import { AUDIT_KIND, type AuditEntry } from './audit.ts';
import type { HostService, RequestContext, StoredAnswer } from './host-service.ts';
import type {
  ChangeVm,
  CreateToken,
  DeclareVm,
  EventPage,
  FailoverReport,
  Host,
  HostEvent,
  HostPage,
  NewToken,
  Token,
  TokenPage,
  Vm,
  VmPage,
} from './resources.ts';
import type { Stats } from './stats.ts';

const TIME = '2026-01-01T00:00:00.000Z';

/** A host without VMs behind it, for the tests of this room. A specification here is one line: `name: NAME`. */
export class MemoryService implements HostService {
  readonly vms = new Map<string, Vm>();
  readonly events: HostEvent[] = [];
  readonly answers = new Map<string, StoredAnswer>();
  readonly tokens = new Map<string, StoredToken>();
  readonly audits: AuditEntry[] = [];
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

  describe(): Host {
    return {
      ...{ name: 'here', version: '0.0.0', pid: process.pid, startedAt: TIME, accel: null, cpus: 1 },
      memory: { totalBytes: 0, freeBytes: 0 },
      vms: { declared: this.vms.size, running: 0, protected: 0 },
    };
  }

  listHosts({ after = '' }: { after: string | undefined }): HostPage {
    return { hosts: [this.describe()].filter(({ name }) => name > after), next: null };
  }

  getHost(name: string): Host {
    if (name !== 'here') throw hostError('HOST_UNKNOWN', name);
    return this.describe();
  }

  listVms({ after, limit }: { after: string | undefined; limit: number }): VmPage {
    const all = [...this.vms.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
    const rest = all.filter(({ name }) => after === undefined || name > after);
    const vms = rest.slice(0, limit);
    return { vms, next: rest.length > limit ? (vms.at(-1)?.name ?? null) : null };
  }

  getVm(name: string): Vm {
    const vm = this.vms.get(name);
    if (vm === undefined) throw hostError('HOST_VM_UNKNOWN', name);
    return vm;
  }

  declareVm({ spec, directory, desired }: DeclareVm): Vm {
    const name = nameIn(spec);
    if (this.vms.has(name)) throw hostError('HOST_VM_EXISTS', name);
    return this.#put({
      name,
      version: this.#nextVersion(),
      spec,
      directory,
      desired,
      shadowWanted: true,
      saved: { suspended: null, snapshot: { savedAt: TIME, sizeBytes: 1, epoch: 1, problem: null } },
      observed: { state: 'absent', version: null, keeperPid: null, problem: null },
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
    this.vms.delete(name);
    this.emit(name, 'vm-deleted');
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

  async stats(): Promise<Stats> {
    const vms = [...this.vms.values()];
    return {
      host: this.describe(),
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

  listEvents({ after, limit, vm, withAudit }: Parameters<HostService['listEvents']>[0]): EventPage {
    const shown = this.events.slice(after).filter(({ kind }) => withAudit === true || kind !== AUDIT_KIND);
    const rest = shown.filter((event) => vm === undefined || event.vm === vm);
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

  listTokens({ after = '', limit }: { after: string | undefined; limit: number }): TokenPage {
    const all = [...this.tokens.values()]
      .filter(({ id }) => id > after)
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    const tokens = all.slice(0, limit).map(tokenOf);
    return { tokens, next: all.length > limit ? (tokens.at(-1)?.id ?? null) : null };
  }

  createToken({ name, role, expiresInSeconds }: CreateToken): NewToken {
    const { text, id, hash } = makeToken();
    const expiresMs = expiresInSeconds === null ? null : this.nowMs() + expiresInSeconds * 1000;
    const stored = { id, name, role, hash, createdMs: this.nowMs(), expiresMs };
    this.tokens.set(id, stored);
    return { ...tokenOf(stored), token: text };
  }

  revokeToken(id: string): void {
    if (!this.tokens.delete(id)) throw hostError('HOST_TOKEN_UNKNOWN', id);
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
    const event = { id: this.events.length + 1, time: TIME, vm, kind, token: null, epoch: null, facts };
    this.events.push(event);
    return event;
  }

  announce(event: HostEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  /** Everything that a request could have changed, but for the answers that are kept. */
  state(): string {
    return JSON.stringify([[...this.vms], this.events, this.promotions, [...this.tokens.keys()]]);
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

function tokenOf({ id, name, role, createdMs, expiresMs }: StoredToken): Token {
  const expiresAt = expiresMs === null ? null : new Date(expiresMs).toISOString();
  return { id, name, role, createdAt: new Date(createdMs).toISOString(), expiresAt };
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
