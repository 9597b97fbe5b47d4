import { randomBytes } from 'node:crypto';
import { xxh3 } from '@node-rs/xxhash';
import { PAGE_BYTES } from '../base/units.ts';
import type { WorkPace } from '../base/work-pace.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { mergeRuns, type PageRun, piecesOf } from '../memory/page-runs.ts';

/** Of one page. */
export const HASH_BYTES = 16;
/** Pages that are hashed in one go: some hundred microseconds. */
export const HASH_PIECE_PAGES = 256;
/** As long as XXH3 takes its default one. */
const SECRET_BYTES = 192;
const LOW = (1n << 64n) - 1n;

/** Chosen anew for every comparison and told to the other host alone: no guest can prepare pages that hash alike. */
export function makeSecret(): Buffer {
  return randomBytes(SECRET_BYTES);
}

/** Hashes of pages that lie one after the other. */
export function hashPages(pages: Uint8Array, secret: Uint8Array): Buffer {
  const hashes = Buffer.alloc((pages.length / PAGE_BYTES) * HASH_BYTES);
  for (let page = 0; page * PAGE_BYTES < pages.length; page += 1) {
    const hash = xxh3.xxh128WithSecret(pages.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES), secret);
    hashes.writeBigUInt64LE(hash & LOW, page * HASH_BYTES);
    hashes.writeBigUInt64LE(hash >> 64n, page * HASH_BYTES + 8);
  }
  return hashes;
}

/** Hashes of memory, piece by piece, at a pace that leaves room for what else this process does. */
export async function* hashesOf(
  memory: GuestMemory,
  { runs, secret, pace }: { runs: readonly PageRun[]; secret: Uint8Array; pace: WorkPace },
): AsyncGenerator<{ readonly piece: PageRun; readonly hashes: Buffer }> {
  using buffer = Mapping.anonymous(HASH_PIECE_PAGES * PAGE_BYTES);
  for (const piece of piecesOf(runs, HASH_PIECE_PAGES)) {
    const hashes = await pace.work(() => {
      const bytes = memory.readRuns([piece], buffer);
      return hashPages(buffer.bytes.subarray(0, bytes), secret);
    });
    yield { piece, hashes };
  }
}

/** What the other host has, by its hashes; what it says nothing of is zeros there. */
export class PageHashes {
  readonly #hashes: Buffer;
  readonly #isKnown: Uint8Array;

  constructor(pageCount: number) {
    this.#hashes = Buffer.alloc(pageCount * HASH_BYTES);
    this.#isKnown = new Uint8Array(pageCount);
  }

  get pageCount(): number {
    return this.#isKnown.length;
  }

  note({ firstPage, pageCount }: PageRun, hashes: Uint8Array): void {
    this.#hashes.set(hashes.subarray(0, pageCount * HASH_BYTES), firstPage * HASH_BYTES);
    this.#isKnown.fill(1, firstPage, firstPage + pageCount);
  }

  /** Pages that are zeros here, as far as `dataRuns` go, and something else there. */
  beyond(dataRuns: readonly PageRun[], zeroHash: Uint8Array): PageRun[] {
    const isData = new Uint8Array(this.pageCount);
    for (const { firstPage, pageCount } of dataRuns) isData.fill(1, firstPage, firstPage + pageCount);
    const pages: PageRun[] = [];
    for (let page = 0; page < this.pageCount; page += 1) {
      if (isData[page] === 0 && !this.isSame(page, zeroHash, zeroHash))
        pages.push({ firstPage: page, pageCount: 1 });
    }
    return mergeRuns(pages);
  }

  isSame(page: number, hash: Uint8Array, zeroHash: Uint8Array): boolean {
    const at = page * HASH_BYTES;
    const theirs = this.#isKnown[page] === 1 ? this.#hashes.subarray(at, at + HASH_BYTES) : zeroHash;
    return Buffer.compare(theirs, hash) === 0;
  }
}

/**
 * In which pages a VM that runs differs from what the other host has. What it writes from the call on may be in the result
 * or not: the dirty log knows of it.
 */
export async function differingRuns(
  memory: GuestMemory,
  {
    theirs,
    secret,
    pace,
    signal,
  }: { theirs: PageHashes; secret: Uint8Array; pace: WorkPace; signal: AbortSignal },
): Promise<PageRun[]> {
  const zeroHash = hashPages(new Uint8Array(PAGE_BYTES), secret);
  const dataRuns = memory.dataRuns();
  const differing = theirs.beyond(dataRuns, zeroHash);
  for await (const { piece, hashes } of hashesOf(memory, { runs: dataRuns, secret, pace })) {
    signal.throwIfAborted();
    for (let index = 0; index < piece.pageCount; index += 1) {
      const hash = hashes.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES);
      const page = piece.firstPage + index;
      if (!theirs.isSame(page, hash, zeroHash)) differing.push({ firstPage: page, pageCount: 1 });
    }
  }
  return mergeRuns(differing);
}
