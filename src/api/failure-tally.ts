import type { Clock } from '../base/clock.ts';

/** Of one key and window. */
const TOLD_MAX = 20;
const WINDOW_MS = 60_000;
/** Beyond that the oldest window ends early. */
const KEYS_MAX = 10_000;

/** What happened in a window beyond what was told by itself. */
export interface Rest<What> {
  readonly key: string;
  readonly count: number;
  /** The last of it. */
  readonly last: What;
}

interface Tally<What> {
  readonly sinceMs: number;
  count: number;
  last: What;
  cancel: () => void;
}

export interface FailureTallyOptions<What> {
  readonly clock: Clock;
  readonly toldMax?: number;
  readonly keysMax?: number;
  /** Called when a window is over in which there was more than was told by itself. */
  readonly onRest?: (rest: Rest<What>) => void;
}

/**
 * Counts what somebody does wrong, by who it is: the first twenty of a minute are told one by one, the rest of that minute
 * as one number. So a failure in a loop fills neither a log nor a database, and is in both.
 */
export class FailureTally<What> implements Disposable {
  readonly #options: Required<FailureTallyOptions<What>>;
  /** By key, the oldest window first. */
  readonly #tallies = new Map<string, Tally<What>>();

  constructor(options: FailureTallyOptions<What>) {
    this.#options = { toldMax: TOLD_MAX, keysMax: KEYS_MAX, onRest: () => {}, ...options };
  }

  /** Whether this one is to be told by itself. */
  note(key: string, what: What): boolean {
    const { clock, toldMax, keysMax } = this.#options;
    const tally = this.#current(key) ?? { sinceMs: clock.nowMs(), count: 0, last: what, cancel: () => {} };
    this.#tallies.set(key, tally);
    tally.count += 1;
    tally.last = what;
    if (tally.count === toldMax + 1)
      tally.cancel = clock.after(tally.sinceMs + WINDOW_MS - clock.nowMs(), () => this.#end(key));
    const [oldest] = this.#tallies.keys();
    if (this.#tallies.size > keysMax && oldest !== undefined) this.#end(oldest);
    return tally.count <= toldMax;
  }

  /** Whether the next one would only be counted. */
  isFull(key: string): boolean {
    return (this.#current(key)?.count ?? 0) >= this.#options.toldMax;
  }

  /** Ends all windows, so that what was counted is told. */
  [Symbol.dispose](): void {
    for (const key of [...this.#tallies.keys()]) this.#end(key);
  }

  #current(key: string): Tally<What> | undefined {
    const found = this.#tallies.get(key);
    if (found === undefined || this.#options.clock.nowMs() - found.sinceMs < WINDOW_MS) return found;
    this.#end(key);
    return undefined;
  }

  #end(key: string): void {
    const { toldMax, onRest } = this.#options;
    const tally = this.#tallies.get(key);
    if (tally === undefined) return;
    this.#tallies.delete(key);
    tally.cancel();
    const count = tally.count - toldMax;
    if (count > 0) onRest({ key, count, last: tally.last });
  }
}
