import { AUDIT_KIND } from '../api/audit.ts';
import { type Reach, WHOLE_REACH } from '../api/principal.ts';
import type { HostEvent } from '../api/resources.ts';
import type { Clock } from '../base/clock.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { StateDatabase } from './state-database.ts';
import type { DeclaredVm } from './vm-inventory.ts';
import type { VmTokens } from './vm-tokens.ts';

export interface EventRetention {
  readonly retentionDays: number;
  readonly retentionMax: number;
}

const DEFAULT_RETENTION: EventRetention = { retentionDays: 365, retentionMax: 100_000 };
const FORGET_EVERY_EVENTS = 1000;
const FORGET_EVERY_MS = 60_000;
/** More at a time would keep everybody waiting. */
const FORGET_AT_ONCE = 5000;
const DAY_MS = 24 * 3600 * 1000;

export interface EventFilter {
  readonly limit: number;
  readonly vm: string | undefined;
  /** Also who wanted to change what. */
  readonly withAudit?: boolean;
  readonly reach?: Reach;
}

/** What happened on this host, numbered, kept over restarts for as long as the retention says. */
export class EventLog {
  readonly #database: StateDatabase;
  readonly #clock: Clock;
  readonly #tokens: VmTokens;
  readonly #listeners = new Set<(event: HostEvent) => void>();
  #retention = DEFAULT_RETENTION;
  #forgotAtMs = Number.NEGATIVE_INFINITY;

  constructor(database: StateDatabase, { clock, tokens }: { clock: Clock; tokens: VmTokens }) {
    this.#database = database;
    this.#clock = clock;
    this.#tokens = tokens;
  }

  publish(
    kind: string,
    {
      vm = null,
      tenant = this.#ownerOf(vm),
      facts = {},
    }: { vm?: string | null; tenant?: string | null; facts?: HostEvent['facts'] } = {},
  ): void {
    const time = new Date(this.#clock.wallMs()).toISOString();
    this.#tell(this.#append({ time, vm, tenant, kind, token: null, epoch: null, facts }));
  }

  /**
   * An event of a VM, from its keeper. One that was taken before is passed over: where the keeper's journal was read
   * to is written together with the event, and so is its token.
   */
  take(event: VmEvent, { keeper }: { keeper: string }): void {
    const taken = this.#database.transaction(() => {
      if (event.seq <= this.lastTaken(event.vm, { keeper })) return undefined;
      this.#database
        .statement(
          'INSERT INTO keeperEvents (vm, keeper, seq) VALUES (?, ?, ?) ON CONFLICT (vm) DO UPDATE SET keeper = excluded.keeper, seq = excluded.seq',
        )
        .run(event.vm, keeper, event.seq);
      const { time, vm, kind, token, epoch, facts } = event;
      this.#tokens.note(vm, token);
      return this.#append({ time, vm, tenant: this.#ownerOf(vm), kind, token, epoch, facts });
    });
    if (taken !== undefined) this.#tell(taken);
  }

  /** Number of the last event that was taken from this keeper; 0 if there was none. */
  lastTaken(vm: string, { keeper }: { keeper: string }): number {
    const row = this.#database
      .statement('SELECT seq FROM keeperEvents WHERE vm = ? AND keeper = ?')
      .get(vm, keeper);
    return Number(row?.seq ?? 0);
  }

  /**
   * Events after this number. Where some of them have been forgotten the first one says so: a reader that resumes must
   * not take a gap for silence.
   */
  since(after: number, { limit, ...filter }: EventFilter): HostEvent[] {
    const forgotten = this.#oldestId() - 1;
    if (after === 0 || after >= forgotten) return this.#read(after, { limit, ...filter });
    const time = new Date(this.#clock.wallMs()).toISOString();
    const gap = {
      id: forgotten,
      time,
      vm: null,
      tenant: null,
      kind: 'events-forgotten',
      epoch: null,
      token: null,
      facts: { after },
    };
    return [gap, ...this.#read(forgotten, { limit: limit - 1, ...filter })];
  }

  /** The last events of one kind of a VM, newest first: not those of another one that had its name before. */
  newestOf(
    { name, tenant, createdMs }: Pick<DeclaredVm, 'name' | 'tenant' | 'createdMs'>,
    { kind, limit }: { readonly kind: string; readonly limit: number },
  ): HostEvent[] {
    const rows = this.#database
      .statement(
        'SELECT * FROM events WHERE vm = ? AND kind = ? AND tenant IS ? AND time >= ? ORDER BY id DESC LIMIT ?',
      )
      .all(...[name, kind, tenant, new Date(createdMs).toISOString(), limit]);
    return rows.map(eventFrom);
  }

  retain(retention: EventRetention): void {
    this.#retention = retention;
    this.#forgotAtMs = Number.NEGATIVE_INFINITY;
    this.forgetWhenDue();
  }

  /** To be called now and then: events become too old without anything happening. */
  forgetWhenDue(): void {
    if (this.#clock.nowMs() - this.#forgotAtMs >= FORGET_EVERY_MS) this.#forget();
  }

  /** The oldest beyond the retention, in a bounded number; the rest soon afterwards. */
  #forget(): void {
    const { retentionDays, retentionMax } = this.#retention;
    const database = this.#database;
    const oldestId = this.#oldestId();
    const tooOld = new Date(this.#clock.wallMs() - retentionDays * DAY_MS).toISOString();
    // Ids and times grow together but for a moment: the first that is young enough ends what is looked at.
    const young = database.statement('SELECT id FROM events WHERE time >= ? ORDER BY id LIMIT 1').get(tooOld);
    // By their count: numbers jump ahead when a backup is restored.
    const tooMany = database
      .statement('SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?')
      .get(retentionMax);
    const keptFromId = Math.max(Number(young?.id ?? this.#nextId()), Number(tooMany?.id ?? 0) + 1);
    const untilId = Math.min(keptFromId, oldestId + FORGET_AT_ONCE);
    if (untilId > oldestId) database.statement('DELETE FROM events WHERE id < ?').run(untilId);
    this.#forgotAtMs = untilId < keptFromId ? Number.NEGATIVE_INFINITY : this.#clock.nowMs();
  }

  #oldestId(): number {
    const oldest = this.#database.statement('SELECT min(id) AS id FROM events').get()?.id;
    return Number(oldest ?? this.#nextId());
  }

  #nextId(): number {
    const row = this.#database.statement("SELECT seq FROM sqlite_sequence WHERE name = 'events'").get();
    return Number(row?.seq ?? 0) + 1;
  }

  #read(
    after: number,
    { limit, vm, withAudit = false, reach: { tenant } = WHOLE_REACH }: EventFilter,
  ): HostEvent[] {
    const conditions = [
      'id > ?',
      ...(vm === undefined ? [] : ['vm = ?']),
      ...(tenant === undefined ? [] : ['tenant = ?']),
      ...(withAudit ? [] : [`kind <> '${AUDIT_KIND}'`]),
    ];
    const rows = this.#database
      .statement(`SELECT * FROM events WHERE ${conditions.join(' AND ')} ORDER BY id LIMIT ?`)
      .all(...[after, ...(vm === undefined ? [] : [vm]), ...(tenant === undefined ? [] : [tenant]), limit]);
    return rows.map(eventFrom);
  }

  /** Number of the newest event; 0 if there never was one. */
  newest(): number {
    return Number(this.#database.statement('SELECT max(id) AS id FROM events').get()?.id ?? 0);
  }

  onEvent(listener: (event: HostEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #append(event: Omit<HostEvent, 'id'>): HostEvent {
    const { lastInsertRowid } = this.#database
      .statement(
        'INSERT INTO events (time, vm, tenant, kind, token, epoch, facts) VALUES (?, ?, ?, ?, ?, ?, ?)',
      )
      .run(
        ...[event.time, event.vm, event.tenant, event.kind, event.token, event.epoch],
        JSON.stringify(event.facts),
      );
    const id = Number(lastInsertRowid);
    if (id % FORGET_EVERY_EVENTS === 0) this.#forget();
    return { id, ...event };
  }

  /** Of the VM that has the name now; null for what is the host's own. */
  #ownerOf(vm: string | null): string | null {
    if (vm === null) return null;
    const row = this.#database.statement('SELECT tenant FROM vms WHERE name = ?').get(vm);
    return (row?.tenant ?? null) as string | null;
  }

  /** Who listens hears of nothing that may yet be undone. */
  #tell(event: HostEvent): void {
    this.#database.afterCommit(() => {
      for (const listener of this.#listeners) listener(event);
    });
  }
}

function eventFrom(row: Readonly<Record<string, unknown>>): HostEvent {
  return {
    id: Number(row.id),
    time: String(row.time),
    vm: row.vm === null ? null : String(row.vm),
    tenant: row.tenant === null ? null : String(row.tenant),
    kind: String(row.kind),
    token: row.token === null ? null : Number(row.token),
    epoch: row.epoch === null ? null : Number(row.epoch),
    facts: JSON.parse(String(row.facts)),
  };
}
