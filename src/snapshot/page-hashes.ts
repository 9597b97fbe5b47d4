/** 4 MiB: enough for the pages of 2 GiB, if they fell on different entries. */
const ENTRIES = 2 ** 19;

/**
 * Where pages with a given hash were written, as far as it is remembered: of two that fall on one entry the later one
 * stays. So it takes the same little memory for a VM of any size, and forgets some duplicates.
 */
export class PageHashes {
  readonly #hashes = new Uint32Array(ENTRIES);
  readonly #places = new Uint32Array(ENTRIES);

  /** Where such a page may be: its bytes have to be compared. */
  candidate(hash: bigint): number | undefined {
    const entry = entryOf(hash);
    const place = this.#places[entry] ?? 0;
    return place !== 0 && this.#hashes[entry] === restOf(hash) ? place : undefined;
  }

  note(hash: bigint, place: number): void {
    const entry = entryOf(hash);
    this.#hashes[entry] = restOf(hash);
    this.#places[entry] = place;
  }
}

function entryOf(hash: bigint): number {
  return Number(hash & BigInt(ENTRIES - 1));
}

function restOf(hash: bigint): number {
  return Number(hash >> 32n);
}
