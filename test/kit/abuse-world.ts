import { randomUUID } from 'node:crypto';
import type { StoredToken } from '../../src/api/access-token.ts';
import { makeToken } from '../../src/api/access-token.ts';
import type { ManualClock } from '../../src/api/api-fixture.ts';
import type { HostService } from '../../src/api/host-service.ts';
import { MemoryService } from '../../src/api/memory-service.ts';
import type { Role } from '../../src/api/principal.ts';
import type { HostEvent, Vm } from '../../src/api/resources.ts';

/** Whose: of a tenant, or of the host itself. */
export type Owner = string | null;

export const TENANTS = ['acme7', 'other7'] as const;
export const OWNERS: readonly Owner[] = [...TENANTS, null];
const VM_OF: Readonly<Record<string, string>> = { acme7: 'alpha7', other7: 'beta7', host: 'gamma7' };
/** Owns nothing and has nobody. */
export const EMPTY_TENANT = 'empty7';
/** The name of nothing. */
export const NOBODY = 'zeta7';

/** A part of the state of a host, for comparison. */
export interface Dump {
  readonly vms: readonly Vm[];
  readonly tokens: readonly StoredToken[];
  readonly tenants: unknown;
  readonly acts: readonly number[];
  readonly events: readonly HostEvent[];
  readonly answers: readonly unknown[];
}

const wordOf = (kind: string, owner: Owner) => `${kind}-word-${owner ?? 'host'}`;

/** Every VM has one of this id. */
export const KNOWN_SNAPSHOT = '20261127T021500123Z';

/**
 * A host in memory with something of everybody, each with words that are in no request, and which can be made as it was.
 */
export class AbuseWorld {
  readonly service: HostService;
  readonly #clock: ManualClock;
  readonly #tokens: StoredToken[] = [];
  readonly #tenantIds = new Map<string, string>();
  readonly #listeners = new Set<(event: HostEvent) => void>();
  #memory = new MemoryService();

  constructor(clock: ManualClock) {
    this.#clock = clock;
    // What a server holds on to stays the same, whatever it stands for.
    this.service = new Proxy(this.#memory, {
      get: (_, key) => {
        if (key === 'onEvent') return this.#listen;
        const value: unknown = Reflect.get(this.#memory, key);
        return typeof value === 'function' ? value.bind(this.#memory) : value;
      },
    });
    for (const owner of OWNERS) this.addToken({ role: 'viewer', tenant: owner });
    this.reset();
  }

  get memory(): MemoryService {
    return this.#memory;
  }

  /** Ids of the tokens that everybody has. */
  get tokenIds(): readonly string[] {
    return this.#tokens.map(({ id }) => id);
  }

  /** The same after each reset: certificates carry it. */
  tenantId(name: string): string {
    const known = this.#tenantIds.get(name) ?? randomUUID();
    this.#tenantIds.set(name, known);
    return known;
  }

  /** One that is there again after each reset; its text. */
  addToken({
    role,
    tenant,
    expiresMs = null,
  }: {
    role: Role;
    tenant: Owner;
    expiresMs?: number | null;
  }): string {
    const { id, hash, text } = makeToken();
    const name = wordOf(`token-${role}`, tenant);
    const stored = { id, name, role, tenant, hash, createdMs: 0, expiresMs };
    this.#tokens.push(stored);
    this.#memory.tokens.set(id, stored);
    return text;
  }

  /** As if it had been revoked. */
  forget(text: string): void {
    const index = this.#tokens.findIndex(({ id }) => text.includes(id));
    for (const { id } of this.#tokens.splice(index, 1)) this.#memory.tokens.delete(id);
  }

  /** As it was in the beginning. */
  reset(): void {
    const memory = new MemoryService();
    for (const name of [...TENANTS, EMPTY_TENANT]) memory.tenants.create(name, { id: this.tenantId(name) });
    for (const owner of OWNERS) {
      const spec = `name: ${VM_OF[owner ?? 'host']}\n# ${wordOf('spec', owner)}`;
      memory.declareVm({
        spec,
        directory: `/${wordOf('directory', owner)}`,
        desired: 'running',
        tenant: owner,
      });
      memory.snapshots.put(VM_OF[owner ?? 'host'] ?? '', KNOWN_SNAPSHOT);
    }
    for (const token of this.#tokens) memory.tokens.set(token.id, token);
    memory.nowMs = () => this.#clock.wallMs();
    memory.onEvent((event) => {
      for (const listener of this.#listeners) listener(event);
    });
    this.#memory = memory;
    this.tellAll('past');
  }

  /** An event of everybody, with a word of theirs, and an audit event. */
  tellAll(kind: string): void {
    for (const owner of OWNERS)
      this.#memory.emit(VM_OF[owner ?? 'host'] ?? null, kind, { word: wordOf(kind, owner) });
    this.#memory.emit(null, 'audit', { word: `${kind}-word-audit` });
  }

  dump(): Dump {
    const { vms, tokens, tenants, promotions, consoles, events, answers } = this.#memory;
    return {
      vms: [...vms.values()],
      tokens: [...tokens.values()],
      tenants: tenants.state(),
      acts: [promotions, consoles.length],
      events,
      answers: [...answers],
    };
  }

  /** All that an answer to somebody of this role and tenant must not hold, unless they said it themselves. */
  foreignWords({ role, tenant }: { role: Role; tenant: Owner }): string[] {
    const others = tenant === null ? [] : OWNERS.filter((owner) => owner !== tenant);
    const theirs = others.flatMap((owner) => [
      VM_OF[owner ?? 'host'] ?? '',
      owner ?? 'gamma7',
      `-word-${owner ?? 'host'}`,
      ...this.#tokens.filter((token) => token.tenant === owner).map(({ id }) => id),
    ]);
    return [
      ...theirs,
      ...(role === 'admin' ? [] : this.tokenIds),
      ...(role === 'admin' && tenant === null ? [] : ['-word-audit']),
    ];
  }

  /** All words at once: for those who are nobody. */
  get words(): string[] {
    return [...Object.values(VM_OF), ...TENANTS, EMPTY_TENANT, '-word-', ...this.tokenIds];
  }

  readonly #listen = (listener: (event: HostEvent) => void): (() => void) => {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };
}
