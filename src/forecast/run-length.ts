/** So many times the longest run before is new. */
const TIMES = 4;
/** What a run is worth that has just become too long, and while it goes on: minus the decimal logarithm of how rare. */
const NEW = 6;
const KNOWN = 2.5;

/** How long something lasted without a break, and how long it used to. */
export class RunLength {
  run = 0;
  longest = 0;
  /** That it is too long has been said. */
  isKnown = false;
  readonly #least: number;
  readonly #kept: number;

  /** Below `least` steps no run is too long. What is `memory` steps ago is forgotten. */
  constructor({ least, memory }: { readonly least: number; readonly memory: number }) {
    this.#least = least;
    this.#kept = 1 - 1 / memory;
  }

  get limit(): number {
    return Math.max(this.#least, TIMES * this.longest);
  }

  lengthen(steps = 1): void {
    this.run += steps;
    this.longest *= this.#kept;
  }

  end(): void {
    this.longest = Math.max(this.longest * this.#kept, this.run);
    this.run = 0;
    this.isKnown = false;
  }

  /** How rare a run of this length is; that it is too long is new only once. */
  notice(): number {
    if (this.run < this.limit) return 0;
    const rarity = this.isKnown ? KNOWN : NEW;
    this.isKnown = true;
    return rarity;
  }
}
