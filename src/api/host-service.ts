import type { Duplex } from 'node:stream';
import type { Trace } from '../base/trace.ts';
import type { Policy, PolicyPage, SetPolicy, Tenant, TenantPage } from './access-resources.ts';
import type { StoredToken } from './access-token.ts';
import type { AuditEntry } from './audit.ts';
import type { ForesightService } from './foresight-resources.ts';
import type { Principal, Reach } from './principal.ts';
import type {
  ChangeVm,
  CreateToken,
  DeclareVm,
  EventPage,
  FailoverReport,
  Health,
  Host,
  HostEvent,
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
} from './resources.ts';
import type { SnapshotService } from './snapshot-resources.ts';
import type { Stats } from './stats.ts';

/** What a host is told about a request besides what it asks for. */
export interface RequestContext {
  /** `X-Request-Id`: what follows from the request carries it, in logs, events and QMP commands. */
  readonly trace?: Trace | undefined;
  readonly principal?: Principal | undefined;
}

/** Where only a part of a host may be told of. Left out: the host itself asks. */
interface Reached {
  readonly reach?: Reach;
}

interface PageByName extends Reached {
  readonly after: string | undefined;
  readonly limit: number;
}

/** To whom VMs belong, and what is allowed to them. */
export interface TenantService {
  has(name: string): boolean;
  /** Undefined where there is no such tenant. One that is made anew under an old name has another. */
  idOf(name: string): string | undefined;
  page(page: PageByName): TenantPage;
  /** With a copy of the policy `default`. @throws HostError HOST_TENANT_EXISTS */
  create(name: string): Tenant;
  /** With its policy and its tokens. @throws HostError HOST_TENANT_UNKNOWN, HOST_TENANT_OWNS_VMS */
  delete(name: string): void;
  policies(page: PageByName): PolicyPage;
  /** @throws HostError HOST_POLICY_UNKNOWN */
  policy(name: string, asked?: Reached): Policy;
  /** @throws HostError HOST_POLICY_UNKNOWN, HOST_POLICY_CHANGED when it is no longer at `ifVersion` */
  setPolicy(name: string, policy: SetPolicy, options: { readonly ifVersion: number }): Policy;
}

/** What the API needs of a host. All of it throws UnderstudyErrors with stable codes. */
export interface HostService {
  readonly tenants: TenantService;
  readonly snapshots: SnapshotService;
  readonly foresight: ForesightService;
  /** @throws HostError HOST_VM_UNKNOWN where there is no such VM within `reach` */
  ensureWithin(name: string, reach: Reach): void;

  health(): Health;
  /** Counts only VMs within `reach`. */
  describe(asked?: Reached): Host;
  /** By name, those after `after`. */
  listHosts(page: PageByName): HostPage;
  /** @throws HostError HOST_UNKNOWN */
  getHost(name: string, asked?: Reached): Host;

  /** By name, those after `after`. */
  listVms(page: PageByName): VmPage;
  /** @throws HostError HOST_VM_UNKNOWN */
  getVm(name: string): Vm;
  /**
   * It belongs to the tenant of whoever asks. @throws HostError HOST_VM_EXISTS, HOST_TENANT_UNKNOWN, HOST_LIMIT,
   * HOST_SPEC_REFUSED; ConfigError for a bad specification
   */
  declareVm(request: DeclareVm, context?: RequestContext): Vm;
  /**
   * Takes effect when the VM is started the next time.
   * @throws HostError HOST_VM_UNKNOWN, HOST_VM_CHANGED when it is no longer at `ifVersion`, HOST_NAME_FIXED, HOST_LIMIT,
   * HOST_SPEC_REFUSED; ConfigError
   */
  changeVm(name: string, request: ChangeVm, options: { readonly ifVersion: number }): Vm;
  /** Stops it and forgets it. @throws HostError HOST_VM_UNKNOWN, HOST_VM_CHANGED */
  deleteVm(name: string, options: RequestContext & { readonly ifVersion: number | undefined }): Promise<void>;

  /** Desired from now on; resolves at once, the VM follows. @throws HostError HOST_VM_UNKNOWN */
  startVm(name: string, options: StartVm & RequestContext): Vm;
  stopVm(name: string, options: StopVm & RequestContext): Vm;
  /** Remembered over restarts. @throws HostError HOST_VM_UNKNOWN; QemuError QEMU_UNPROTECTABLE; MemoryError; KeeperError */
  protectVm(name: string, context?: RequestContext): Promise<Vm>;
  unprotectVm(name: string, context?: RequestContext): Promise<Vm>;
  /** @throws HostError HOST_VM_UNKNOWN; KeeperError KEEPER_NOT_PROTECTED, …; MemoryError MEMORY_NO_ROOM */
  testFailover(name: string): Promise<FailoverReport>;
  /** @throws HostError HOST_VM_UNKNOWN, HOST_VM_RUNS, HOST_NO_SAVED_STATE */
  deleteSavedState(name: string, kind: 'suspended' | 'snapshot'): void;
  /** Planned switch to the shadow; resolves when it acts. @throws HostError HOST_VM_UNKNOWN; KeeperError KEEPER_NOT_PROTECTED */
  promoteVm(name: string, context?: RequestContext): Promise<Vm>;

  /** Moves it to another host of the site. @throws HostError HOST_VM_UNKNOWN, HOST_VM_ELSEWHERE; KeeperError, ConfigError */
  migrateVm(name: string, order: MigrateVm & RequestContext): Promise<Migration>;
  /** VMs on this machine that are not declared here. */
  listLodgers(): Promise<LodgerPage>;

  /**
   * Joins the serial console: what it showed last, then committed output; what is written is typed. It ends with the VM,
   * and when its output is not read. @throws HostError HOST_VM_UNKNOWN; KeeperError KEEPER_NO_CONSOLE, KEEPER_NOT_RUNNING, …
   */
  openConsole(name: string): Promise<Duplex>;

  /** Events after number `after`, oldest first. */
  listEvents(page: {
    readonly after: number;
    readonly limit: number;
    readonly vm: string | undefined;
    /** Of others' requests; by default they are left out. */
    readonly withAudit?: boolean;
    readonly reach?: Reach;
  }): EventPage;
  /** Number of the newest event; 0 if there never was one. */
  newestEvent(): number;
  /** Called for every event from now on, until the returned function is called. */
  onEvent(listener: (event: HostEvent) => void): () => void;

  /**
   * All that `work` changes is kept, or nothing of it: so that an effect and the answer to a repeated request are one.
   * Whoever listens to events hears of them when they are there to stay.
   */
  transaction<Result>(work: () => Result): Result;
  /** What there is to watch. A keeper that gives no answer costs a bounded time, and only its own VM's figures. */
  stats(asked?: Reached): Promise<Stats>;
  /** The same and more, for Prometheus: its text format, without what the API measures of itself. */
  exposition(): Promise<string>;

  /** By id, those after `after`. */
  listTokens(page: PageByName): TokenPage;
  /** What it returns holds the secret, which is kept nowhere. @throws HostError HOST_TENANT_UNKNOWN */
  createToken(request: CreateToken): NewToken;
  /** @throws HostError HOST_TOKEN_UNKNOWN */
  revokeToken(id: string, asked?: Reached): void;
  findToken(id: string): StoredToken | undefined;

  /** Somebody wanted to change something: written down before it is answered. */
  audit(entry: AuditEntry): void;

  /** What was answered before to a request with this key. */
  recallAnswer(key: string): StoredAnswer | undefined;
  storeAnswer(key: string, answer: StoredAnswer): void;
}

export interface StoredAnswer {
  /** Hash of method, path and body: the same key with another request is a mistake of the caller. */
  readonly request: string;
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}
