import type { Clock } from './clock.ts';

/** A bucket holds what may be used at once after a while of nothing: this long a time's worth. */
const BURST_MS = 100;
/** Who waits is told at most so often. */
const WAIT_MIN_MS = 1;

/**
 * So many bytes a second, by several users together. One may be used as long as any is left, however many it takes: what is
 * taken too much is a debt, and all wait until that is paid. So whatever is taken stays whole, and the rate holds in the long
 * run. Without a limit it costs one comparison.
 */
export class TokenBucket {
  readonly #clock: Clock;
  #perMs: number | undefined;
  #tokens = 0;
  #filledAtMs = 0;
  readonly #waiting = new Set<() => void>();
  #cancel: (() => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Null: no limit. */
  get bytesPerSecond(): number | null {
    return this.#perMs === undefined ? null : Math.round(this.#perMs * 1000);
  }

  /** From now on. What is owed is forgotten. Null: no limit. */
  limit(bytesPerSecond: number | null): void {
    this.#perMs = bytesPerSecond === null ? undefined : bytesPerSecond / 1000;
    this.#tokens = this.#burst;
    this.#filledAtMs = this.#clock.nowMs();
    this.#wake();
  }

  get isOpen(): boolean {
    if (this.#perMs === undefined) return true;
    this.#fill(this.#perMs);
    return this.#tokens > 0;
  }

  spend(bytes: number): void {
    if (this.#perMs !== undefined) this.#tokens -= bytes;
  }

  /** Calls `tell` once it is open again; one that waits already is not told twice. Not at once. */
  whenOpen(tell: () => void): void {
    this.#waiting.add(tell);
    this.#arrange();
  }

  #arrange(): void {
    if (this.#waiting.size === 0 || this.#cancel !== undefined || this.#perMs === undefined) return;
    const waitMs = Math.max(WAIT_MIN_MS, (1 - this.#tokens) / this.#perMs);
    this.#cancel = this.#clock.after(waitMs, () => this.#wake());
  }

  /** Nobody is told any more. */
  forget(tell: () => void): void {
    this.#waiting.delete(tell);
    if (this.#waiting.size > 0) return;
    this.#cancel?.();
    this.#cancel = undefined;
  }

  #wake(): void {
    this.#cancel?.();
    this.#cancel = undefined;
    // In turns: whoever takes all of it waits behind the others then.
    for (const tell of [...this.#waiting]) {
      if (!this.isOpen) break;
      this.#waiting.delete(tell);
      tell();
    }
    this.#arrange();
  }

  #fill(perMs: number): void {
    const nowMs = this.#clock.nowMs();
    this.#tokens = Math.min(this.#burst, this.#tokens + (nowMs - this.#filledAtMs) * perMs);
    this.#filledAtMs = nowMs;
  }

  get #burst(): number {
    return (this.#perMs ?? 0) * BURST_MS;
  }
}
