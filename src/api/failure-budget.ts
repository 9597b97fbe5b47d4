import type { Clock } from '../base/clock.ts';
import { ApiError } from './api-error.ts';

const FAILURES_MAX = 20;
const WINDOW_MS = 60_000;
/** Beyond that the oldest is forgotten: who owns so many addresses can guess on, at 256 bits a token. */
const ADDRESSES_MAX = 10_000;

/** Bounds how often an address may show what is no good. */
export class FailureBudget {
  readonly #clock: Clock;
  readonly #failures = new Map<string, { count: number; sinceMs: number }>();

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** @throws ApiError API_TOO_MANY_FAILURES */
  assertLeft(address: string): void {
    const found = this.#failures.get(address);
    if (found === undefined) return;
    if (this.#clock.nowMs() - found.sinceMs >= WINDOW_MS) {
      this.#failures.delete(address);
    } else if (found.count >= FAILURES_MAX) {
      throw new ApiError('API_TOO_MANY_FAILURES', 'too many wrong tokens came from this address', {
        hint: `Try again in ${WINDOW_MS / 1000} s, with a token that is valid.`,
      });
    }
  }

  note(address: string): void {
    const found = this.#failures.get(address) ?? { count: 0, sinceMs: this.#clock.nowMs() };
    found.count += 1;
    this.#failures.delete(address);
    this.#failures.set(address, found);
    const [oldest] = this.#failures.keys();
    if (this.#failures.size > ADDRESSES_MAX && oldest !== undefined) this.#failures.delete(oldest);
  }
}
