import type { StoredAnswer } from '../api/host-service.ts';
import type { Clock } from '../base/clock.ts';
import type { StateDatabase } from './state-database.ts';

/** For so long a request may be repeated under its key. */
const KEPT_MS = 24 * 3600 * 1000;

/** Answers to requests that carried an idempotency key, kept for a day. */
export class AnswerStore {
  readonly #database: StateDatabase;
  readonly #clock: Clock;

  constructor(database: StateDatabase, { clock }: { clock: Clock }) {
    this.#database = database;
    this.#clock = clock;
  }

  recall(key: string): StoredAnswer | undefined {
    const row = this.#database
      .statement('SELECT * FROM answers WHERE key = ? AND storedMs > ?')
      .get(key, this.#clock.wallMs() - KEPT_MS);
    if (row === undefined) return undefined;
    return {
      request: String(row.request),
      status: Number(row.status),
      headers: JSON.parse(String(row.headers)),
      body: String(row.body),
    };
  }

  store(key: string, { request, status, headers, body }: StoredAnswer): void {
    const nowMs = this.#clock.wallMs();
    this.#database.transaction(() => {
      this.#database.statement('DELETE FROM answers WHERE storedMs <= ?').run(nowMs - KEPT_MS);
      this.#database
        .statement(
          'INSERT OR REPLACE INTO answers (key, request, status, headers, body, storedMs) VALUES (?, ?, ?, ?, ?, ?)',
        )
        .run(key, request, status, JSON.stringify(headers), body, nowMs);
    });
  }
}
