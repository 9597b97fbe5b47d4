import type { HostEvent } from '../api/resources.ts';
import type { Clock } from '../base/clock.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { StateDatabase } from './state-database.ts';

const EVENTS_KEPT = 100_000;
const TRIM_EVERY = 1000;

/** What happened on this host, numbered, kept over restarts; the oldest are forgotten after a hundred thousand. */
export class EventLog {
  readonly #database: StateDatabase;
  readonly #clock: Clock;
  readonly #listeners = new Set<(event: HostEvent) => void>();

  constructor(database: StateDatabase, { clock }: { clock: Clock }) {
    this.#database = database;
    this.#clock = clock;
  }

  publish(
    kind: string,
    { vm = null, facts = {} }: { vm?: string | null; facts?: HostEvent['facts'] } = {},
  ): void {
    const time = new Date(this.#clock.wallMs()).toISOString();
    this.#tell([this.#append({ time, vm, kind, epoch: null, facts })]);
  }

  /**
   * An event of a VM, from its keeper. One that was taken before is passed over: where the keeper's journal was read
   * to is written together with the event.
   */
  take(event: VmEvent, { keeper }: { keeper: string }): void {
    const taken = this.#database.transaction(() => {
      if (event.seq <= this.lastTaken(event.vm, { keeper })) return undefined;
      this.#database.sql
        .prepare(
          'INSERT INTO keeperEvents (vm, keeper, seq) VALUES (?, ?, ?) ON CONFLICT (vm) DO UPDATE SET keeper = excluded.keeper, seq = excluded.seq',
        )
        .run(event.vm, keeper, event.seq);
      const { time, vm, kind, epoch, facts } = event;
      return this.#append({ time, vm, kind, epoch, facts });
    });
    if (taken !== undefined) this.#tell([taken]);
  }

  /** Number of the last event that was taken from this keeper; 0 if there was none. */
  lastTaken(vm: string, { keeper }: { keeper: string }): number {
    const row = this.#database.sql
      .prepare('SELECT seq FROM keeperEvents WHERE vm = ? AND keeper = ?')
      .get(vm, keeper);
    return Number(row?.seq ?? 0);
  }

  since(after: number, { limit, vm }: { limit: number; vm: string | undefined }): HostEvent[] {
    const rows =
      vm === undefined
        ? this.#database.sql
            .prepare('SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?')
            .all(after, limit)
        : this.#database.sql
            .prepare('SELECT * FROM events WHERE vm = ? AND id > ? ORDER BY id LIMIT ?')
            .all(vm, after, limit);
    return rows.map((row) => ({
      id: Number(row.id),
      time: String(row.time),
      vm: row.vm === null ? null : String(row.vm),
      kind: String(row.kind),
      epoch: row.epoch === null ? null : Number(row.epoch),
      facts: JSON.parse(String(row.facts)),
    }));
  }

  onEvent(listener: (event: HostEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  #append(event: Omit<HostEvent, 'id'>): HostEvent {
    const { lastInsertRowid } = this.#database.sql
      .prepare('INSERT INTO events (time, vm, kind, epoch, facts) VALUES (?, ?, ?, ?, ?)')
      .run(event.time, event.vm, event.kind, event.epoch, JSON.stringify(event.facts));
    const id = Number(lastInsertRowid);
    if (id % TRIM_EVERY === 0)
      this.#database.sql.prepare('DELETE FROM events WHERE id <= ?').run(id - EVENTS_KEPT);
    return { id, ...event };
  }

  #tell(events: readonly HostEvent[]): void {
    for (const event of events) for (const listener of this.#listeners) listener(event);
  }
}
