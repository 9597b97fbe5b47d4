import type { SeriesDatabase } from './series-database.ts';

/** More would be names that somebody makes up: each takes memory as long as it is kept. */
const SERIES_MAX = 500_000;

/** Which series there are, by name; in memory as in the file. */
export class SeriesCatalog {
  readonly #db: SeriesDatabase;
  readonly #ids = new Map<string, Map<string, number>>();
  #count = 0;
  /** Those of the open transaction, which may come to nothing. */
  #added: { readonly vm: string; readonly metric: string }[] = [];

  constructor(db: SeriesDatabase) {
    this.#db = db;
    for (const { id, vm, metric } of db.statement('SELECT id, vm, metric FROM series').iterate())
      this.#remember(id as number, { vm: vm as string, metric: metric as string });
  }

  get count(): number {
    return this.#count;
  }

  find(vm: string, metric: string): number | undefined {
    return this.#ids.get(vm)?.get(metric);
  }

  metrics(vm: string): string[] {
    return [...(this.#ids.get(vm)?.keys() ?? [])].sort();
  }

  /** Within a transaction. Undefined where there are too many. */
  findOrAdd(vm: string, metric: string, usedMs: number): number | undefined {
    const known = this.find(vm, metric);
    if (known !== undefined || this.#count >= SERIES_MAX) return known;
    const added = this.#db
      .statement('INSERT INTO series (vm, metric, usedMs) VALUES (?, ?, ?)')
      .run(vm, metric, usedMs);
    const id = Number(added.lastInsertRowid);
    this.#remember(id, { vm, metric });
    this.#added.push({ vm, metric });
    return id;
  }

  committed(): void {
    this.#added = [];
  }

  rolledBack(): void {
    for (const { vm, metric } of this.#added) this.#drop(vm, metric);
    this.#added = [];
  }

  /** Within a transaction: their rows are deleted later. The ids of what was there; what comes with these names gets others. */
  forget(vm: string): number[] {
    const ids = [...(this.#ids.get(vm)?.values() ?? [])];
    const insert = this.#db.statement('INSERT OR IGNORE INTO forgotten (series) VALUES (?)');
    for (const id of ids) insert.run(id);
    this.#db.statement('DELETE FROM series WHERE vm = ?').run(vm);
    return ids;
  }

  /** After that transaction. */
  forgotten(vm: string): void {
    this.#count -= this.#ids.get(vm)?.size ?? 0;
    this.#ids.delete(vm);
  }

  used(id: number, usedMs: number): void {
    this.#db.statement('UPDATE series SET usedMs = ? WHERE id = ? AND usedMs < ?').run(usedMs, id, usedMs);
  }

  /** Takes away some that have had no sample since then, and of which none waits. False: there are none. */
  dropUnused(sinceMs: number, waits: (id: number) => boolean): boolean {
    const unused = this.#db
      .statement('SELECT id, vm, metric FROM series WHERE usedMs < ? LIMIT 500')
      .all(sinceMs);
    const rows = (unused as { id: number; vm: string; metric: string }[]).filter(({ id }) => !waits(id));
    this.#db.transaction(() => {
      for (const { id } of rows) this.#db.statement('DELETE FROM series WHERE id = ?').run(id);
    });
    for (const { vm, metric } of rows) this.#drop(vm, metric);
    return rows.length > 0;
  }

  #remember(id: number, { vm, metric }: { vm: string; metric: string }): void {
    let ofVm = this.#ids.get(vm);
    if (ofVm === undefined) {
      ofVm = new Map();
      this.#ids.set(vm, ofVm);
    }
    ofVm.set(metric, id);
    this.#count += 1;
  }

  #drop(vm: string, metric: string): void {
    const ofVm = this.#ids.get(vm);
    if (ofVm?.delete(metric)) this.#count -= 1;
    if (ofVm?.size === 0) this.#ids.delete(vm);
  }
}
