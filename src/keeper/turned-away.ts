/** Somebody who came to this host's door, and why that came to nothing. */
export interface TurnedAway {
  readonly address: string;
  readonly code: string;
}

/** A host that is turned away tries again every few seconds; once a minute is enough to be told of it. */
const AGAIN_MS = 60_000;
/** Beyond these the log would be anybody's to fill who reaches the port. */
const KNOWN_MAX = 64;

/** Which of those who were turned away are worth a line of the log. Milliseconds are of one monotonic clock. */
export class TurnedAwayLog {
  readonly #toldAtMs = new Map<string, number>();

  /** Whether to tell of this one, which counts as told then. */
  isNews({ address, code }: TurnedAway, nowMs: number): boolean {
    for (const [key, atMs] of this.#toldAtMs) if (nowMs - atMs >= AGAIN_MS) this.#toldAtMs.delete(key);
    const key = `${code} ${address}`;
    if (this.#toldAtMs.has(key) || this.#toldAtMs.size >= KNOWN_MAX) return false;
    this.#toldAtMs.set(key, nowMs);
    return true;
  }
}
