import { assert } from '../base/assert.ts';

/** So much of a disk is marked, and copied again, at once. */
export const REGION_BYTES = 64 * 1024;

export interface Region {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** Which parts of a disk were written since they were taken last. */
export class DirtyRegions {
  readonly #diskBytes: number;
  readonly #bits: Uint8Array;
  #count = 0;

  constructor(diskBytes: number) {
    this.#diskBytes = diskBytes;
    this.#bits = new Uint8Array(Math.ceil(diskBytes / REGION_BYTES / 8));
  }

  /** About: whole regions. */
  get dirtyBytes(): number {
    return this.#count * REGION_BYTES;
  }

  mark(offset: number, lengthBytes: number): void {
    const end = Math.min(this.#diskBytes, offset + lengthBytes);
    for (let region = Math.floor(offset / REGION_BYTES); region * REGION_BYTES < end; region += 1) {
      if (!this.#isMarked(region)) this.#set(region, true);
    }
  }

  /** Regions in the order of the disk, adjacent ones together up to `lengthBytesMax`. Each is clean when it is given out. */
  *take(options: { readonly lengthBytesMax: number }): Generator<Region> {
    const regionsMax = options.lengthBytesMax / REGION_BYTES;
    assert(regionsMax >= 1, 'a region fits into what is taken at once');
    for (let region = 0; region * REGION_BYTES < this.#diskBytes; region += 1) {
      // Nothing in a whole byte of them, as nearly everywhere.
      if (region % 8 === 0 && this.#bits[region / 8] === 0) region += 7;
      else if (this.#isMarked(region)) {
        const first = region;
        for (; this.#isMarked(region) && region - first < regionsMax; region += 1) this.#set(region, false);
        const offset = first * REGION_BYTES;
        yield { offset, lengthBytes: Math.min(region * REGION_BYTES, this.#diskBytes) - offset };
        region -= 1;
      }
    }
  }

  #isMarked(region: number): boolean {
    return ((this.#bits[region >> 3] ?? 0) & (1 << (region & 7))) !== 0;
  }

  #set(region: number, marked: boolean): void {
    const bit = 1 << (region & 7);
    const bits = this.#bits[region >> 3] ?? 0;
    this.#bits[region >> 3] = marked ? bits | bit : bits & ~bit;
    this.#count += marked ? 1 : -1;
  }
}
