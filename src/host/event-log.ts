import type { HostEvent } from '../api/resources.ts';
import type { Clock } from '../base/clock.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { StateDatabase } from './state-database.ts';
import type { VmTokens } from './vm-tokens.ts';

const EVENTS_KEPT = 100_000;
const TRIM_EVERY = 1000;
/** By their count: numbers jump ahead when a backup is restored. */
const TRIM = 'DELETE FROM events WHERE id < (SELECT id FROM events ORDER BY id DESC LIMIT 1 OFFSET ?)';

/** What happened on this host, numbered, kept over restarts; the oldest are forgotten after a hundred thousand. */
export class EventLog {
  readonly #database: StateDatabase;
  readonly #clock: Clock;
  readonly #tokens: VmTokens;
  readonly #listeners = new Set<(event: HostEvent) => void>();

  constructor(database: StateDatabase, { clock, tokens }: { clock: Clock; tokens: VmTokens }) {
    this.#database = database;
    this.#clock = clock;
    this.#tokens = tokens;
  }

  publish(
    kind: string,
    { vm = null, facts = {} }: { vm?: string | null; facts?: HostEvent['facts'] } = {},
  ): void {
    const time = new Date(this.#clock.wallMs()).toISOString();
    this.#tell(this.#append({ time, vm, kind, token: null, epoch: null, facts }));
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
      return this.#append({ time, vm, kind, token, epoch, facts });
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

  since(after: number, { limit, vm }: { limit: number; vm: string | undefined }): HostEvent[] {
    const rows =
      vm === undefined
        ? this.#database.statement('SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?').all(after, limit)
        : this.#database
            .statement('SELECT * FROM events WHERE vm = ? AND id > ? ORDER BY id LIMIT ?')
            .all(vm, after, limit);
    return rows.map((row) => ({
      id: Number(row.id),
      time: String(row.time),
      vm: row.vm === null ? null : String(row.vm),
      kind: String(row.kind),
      token: row.token === null ? null : Number(row.token),
      epoch: row.epoch === null ? null : Number(row.epoch),
      facts: JSON.parse(String(row.facts)),
    }));
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
      .statement('INSERT INTO events (time, vm, kind, token, epoch, facts) VALUES (?, ?, ?, ?, ?, ?)')
      .run(event.time, event.vm, event.kind, event.token, event.epoch, JSON.stringify(event.facts));
    const id = Number(lastInsertRowid);
    if (id % TRIM_EVERY === 0) this.#database.statement(TRIM).run(EVENTS_KEPT - 1);
    return { id, ...event };
  }

  /** Who listens hears of nothing that may yet be undone. */
  #tell(event: HostEvent): void {
    this.#database.afterCommit(() => {
      for (const listener of this.#listeners) listener(event);
    });
  }
}
