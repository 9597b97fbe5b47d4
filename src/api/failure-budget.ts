import type { Clock } from '../base/clock.ts';
import { ApiError } from './api-error.ts';

const FAILURES_MAX = 20;
const WINDOW_MS = 60_000;
/** Beyond that the oldest is forgotten: who has so many can go on, at 256 bits a token. */
const KEYS_MAX = 10_000;

/** Bounds how often an address may show what is no good, or somebody ask for what they may not have. */
export class FailureBudget {
  readonly #clock: Clock;
  readonly #complaint: string;
  readonly #failures = new Map<string, { count: number; sinceMs: number }>();

  /** `complaint` is told to who is refused. */
  constructor(clock: Clock, complaint: string) {
    this.#clock = clock;
    this.#complaint = complaint;
  }

  /** @throws ApiError API_TOO_MANY_FAILURES */
  assertLeft(key: string): void {
    const found = this.#failures.get(key);
    if (found === undefined) return;
    if (this.#clock.nowMs() - found.sinceMs >= WINDOW_MS) {
      this.#failures.delete(key);
    } else if (found.count >= FAILURES_MAX) {
      throw new ApiError('API_TOO_MANY_FAILURES', this.#complaint, {
        hint: `Try again in ${WINDOW_MS / 1000} s, with what is valid.`,
      });
    }
  }

  note(key: string): void {
    const found = this.#failures.get(key) ?? { count: 0, sinceMs: this.#clock.nowMs() };
    found.count += 1;
    this.#failures.delete(key);
    this.#failures.set(key, found);
    const [oldest] = this.#failures.keys();
    if (this.#failures.size > KEYS_MAX && oldest !== undefined) this.#failures.delete(oldest);
  }
}
