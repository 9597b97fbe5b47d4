import { xxh64 } from '@node-rs/xxhash';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { DirtyLog } from './dirty-log.ts';
import type { GuestMemory } from './guest-memory.ts';
import { mergeRuns, type PageRun } from './page-runs.ts';

/** Pages read at a time. */
const CHUNK_PAGES = MIB / PAGE_BYTES;

/**
 * Finds changed pages by reading all memory that is not a hole and comparing a 64-bit hash of every page with
 * the one before: works everywhere, sees every way of changing memory, and reports only what really differs.
 * Costs about 0.3 ms per resident MiB, all of it in the pause, and 8 bytes per page.
 */
export class CompareLog implements DirtyLog {
  readonly method = 'compare';
  /** What is read for the comparison is not what is copied afterwards. */
  readonly atomic = false;
  readonly #memory: GuestMemory;
  readonly #hashes: BigUint64Array;
  readonly #chunk = Mapping.anonymous(CHUNK_PAGES * PAGE_BYTES);
  /** The chunk page by page, made once. */
  readonly #pages: readonly Uint8Array[];
  readonly #zeroHash: bigint;
  #marked: PageRun[] = [];

  /** The first `collect` reports every page that has data. */
  constructor({ memory }: { memory: GuestMemory }) {
    this.#memory = memory;
    this.#pages = Array.from({ length: CHUNK_PAGES }, (_, page) =>
      this.#chunk.bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES),
    );
    this.#zeroHash = xxh64(new Uint8Array(PAGE_BYTES));
    this.#hashes = new BigUint64Array(memory.pageCount).fill(this.#zeroHash);
  }

  collect(): PageRun[] {
    const all = mergeRuns(this.#compareAll(this.#memory), this.#marked);
    this.#marked = [];
    return all;
  }

  /** Would cost as much as `collect`. */
  peek(): undefined {
    return undefined;
  }

  mark(runs: readonly PageRun[]): void {
    this.#marked = mergeRuns(this.#marked, runs);
  }

  /** The copy becomes what the VM is compared with. */
  adopt(copy: GuestMemory): void {
    this.#compareAll(copy);
  }

  #compareAll(memory: GuestMemory): PageRun[] {
    const changed: PageRun[] = [];
    let holeStart = 0;
    for (const run of memory.dataRuns()) {
      this.#compareHole({ firstPage: holeStart, pageCount: run.firstPage - holeStart }, changed);
      this.#compareData(memory, run, changed);
      holeStart = run.firstPage + run.pageCount;
    }
    this.#compareHole({ firstPage: holeStart, pageCount: memory.pageCount - holeStart }, changed);
    return changed;
  }

  #compareData(memory: GuestMemory, run: PageRun, changed: PageRun[]): void {
    for (let done = 0; done < run.pageCount; done += CHUNK_PAGES) {
      const part = {
        firstPage: run.firstPage + done,
        pageCount: Math.min(CHUNK_PAGES, run.pageCount - done),
      };
      memory.readRuns([part], this.#chunk);
      for (let page = 0; page < part.pageCount; page++) {
        const content = this.#pages[page];
        if (content !== undefined) this.#compare(part.firstPage + page, xxh64(content), changed);
      }
    }
  }

  /** A page that was discarded has become zeros. */
  #compareHole(run: PageRun, changed: PageRun[]): void {
    for (let page = run.firstPage; page < run.firstPage + run.pageCount; page++) {
      this.#compare(page, this.#zeroHash, changed);
    }
  }

  #compare(page: number, hash: bigint, changed: PageRun[]): void {
    if (this.#hashes[page] === hash) return;
    this.#hashes[page] = hash;
    changed.push({ firstPage: page, pageCount: 1 });
  }

  [Symbol.dispose](): void {
    this.#chunk[Symbol.dispose]();
  }
}
