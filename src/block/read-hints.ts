import { MIB } from '../base/units.ts';
import { REGION_BYTES } from './dirty-regions.ts';

export interface DiskRange {
  readonly offset: number;
  readonly lengthBytes: number;
}

/** In one hint. */
export const HINT_BYTES_MAX = MIB;
/** 64 MiB that nobody was told of yet; of more than that the oldest are forgotten. */
const PENDING_REGIONS_MAX = 1024;
/** 1 GiB that is not told of again, until it is forgotten: the other side may have lost it by then. */
const TOLD_REGIONS_MAX = 16_384;
const TOLD_FOR_MS = 60_000;
/** Reads that go on where another one ended are told apart so many at a time. */
const STREAMS_MAX = 8;
/** A second read in a row is followed by as much as both, a longer run by more. */
const AHEAD_BYTES_MAX = 4 * MIB;

interface Stream {
  endByte: number;
  lengthBytes: number;
}

/**
 * What a guest reads from a disk, and is about to read if it goes on as it does: hints for a host that has a copy of the disk and
 * is to have the same in its cache. In whole regions, each told of once a minute at most. Costs next to nothing while nobody
 * listens.
 */
export class ReadHints {
  readonly #diskBytes: number;
  readonly #nowMs: () => number;
  readonly #pending = new Set<number>();
  readonly #told = new Set<number>();
  #streams: Stream[] = [];
  #forgetAtMs = 0;
  #isListening = false;

  constructor({ diskBytes, nowMs }: { readonly diskBytes: number; readonly nowMs: () => number }) {
    this.#diskBytes = diskBytes;
    this.#nowMs = nowMs;
  }

  get pendingBytes(): number {
    return this.#pending.size * REGION_BYTES;
  }

  /** From now on what is read is noted, and nothing of it was told. */
  listen(): void {
    this.#isListening = true;
    this.#told.clear();
  }

  ignore(): void {
    this.#isListening = false;
    this.#pending.clear();
    this.#streams = [];
  }

  noteRead(offset: number, lengthBytes: number): void {
    if (!this.#isListening) return;
    this.#want(offset, offset + lengthBytes);
    this.#runAhead(offset, offset + lengthBytes);
  }

  /** So many hints at most, in the order of the disk. They count as told. */
  take(countMax: number): DiskRange[] {
    const taken: number[] = [];
    for (const region of this.#pending) {
      if (taken.length === countMax) break;
      taken.push(region);
    }
    for (const region of taken) {
      this.#pending.delete(region);
      this.#told.add(region);
    }
    return coalesced(
      taken.toSorted((one, other) => one - other),
      this.#diskBytes,
    );
  }

  #runAhead(offset: number, endByte: number): void {
    const index = this.#streams.findIndex((stream) => stream.endByte === offset);
    const [stream] = index === -1 ? [] : this.#streams.splice(index, 1);
    const lengthBytes = (stream?.lengthBytes ?? 0) + endByte - offset;
    this.#streams.unshift({ endByte, lengthBytes });
    this.#streams.length = Math.min(this.#streams.length, STREAMS_MAX);
    if (stream === undefined) return;
    this.#want(endByte, Math.min(this.#diskBytes, endByte + Math.min(lengthBytes, AHEAD_BYTES_MAX)));
  }

  #want(offset: number, endByte: number): void {
    this.#forget();
    for (let region = Math.floor(offset / REGION_BYTES); region * REGION_BYTES < endByte; region += 1) {
      if (this.#told.has(region) || this.#pending.has(region)) continue;
      const [oldest] = this.#pending;
      if (this.#pending.size === PENDING_REGIONS_MAX && oldest !== undefined) this.#pending.delete(oldest);
      this.#pending.add(region);
    }
  }

  #forget(): void {
    const nowMs = this.#nowMs();
    if (nowMs < this.#forgetAtMs && this.#told.size < TOLD_REGIONS_MAX) return;
    this.#told.clear();
    this.#forgetAtMs = nowMs + TOLD_FOR_MS;
  }
}

function coalesced(regions: readonly number[], diskBytes: number): DiskRange[] {
  const found: DiskRange[] = [];
  for (const region of regions) {
    const offset = region * REGION_BYTES;
    const lengthBytes = Math.min(REGION_BYTES, diskBytes - offset);
    const last = found.at(-1);
    const isNext = last !== undefined && last.offset + last.lengthBytes === offset;
    if (isNext && last.lengthBytes + lengthBytes <= HINT_BYTES_MAX)
      found[found.length - 1] = { ...last, lengthBytes: last.lengthBytes + lengthBytes };
    else found.push({ offset, lengthBytes });
  }
  return found;
}
