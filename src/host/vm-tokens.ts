import type { StateDatabase } from './state-database.ts';

/** More than a VM can change its QEMU while no host looks. */
const DOUBT = 1_000_000;

/**
 * The highest token of each VM that this host has heard of: every keeper that it starts goes on above it. Where a
 * keeper may have gone further than anybody can tell (machine and keeper are gone, and how the VM ended), the next one
 * begins so far above that no token is given out twice.
 */
export class VmTokens {
  readonly #database: StateDatabase;

  constructor(database: StateDatabase) {
    this.#database = database;
  }

  /** A keeper is to be started: returns the token that it goes on above. */
  begin(vm: string): number {
    return this.#database.transaction(() => {
      const row = this.#database.statement('SELECT token, open FROM tokens WHERE vm = ?').get(vm);
      const token = Number(row?.token ?? 0) + (row?.open === 1 ? DOUBT : 0);
      this.#database
        .statement('INSERT OR REPLACE INTO tokens (vm, token, open) VALUES (?, ?, 1)')
        .run(vm, token);
      return token;
    });
  }

  /** A QEMU with this token acts, or has acted. */
  note(vm: string, token: number): void {
    this.#database
      .statement(`
        INSERT INTO tokens (vm, token, open) VALUES (?, ?, 1) ON CONFLICT (vm) DO UPDATE
          SET token = excluded.token, open = 1 WHERE excluded.token > token
      `)
      .run(vm, token);
  }

  /** The last keeper is gone, and this is the last token that it gave out. */
  end(vm: string, token: number): void {
    this.#database.transaction(() => {
      this.note(vm, token);
      this.#database.statement('UPDATE tokens SET open = 0 WHERE vm = ?').run(vm);
    });
  }

  forget(vm: string): void {
    this.#database.statement('DELETE FROM tokens WHERE vm = ?').run(vm);
  }
}
