import { Pagemap } from '../linux/pagemap.ts';
import type { DirtyLog } from './dirty-log.ts';
import { logUnavailable, MappedMemory, type WatchedMemory } from './mapped-memory.ts';
import { countPages, mergeRuns, type PageRun } from './page-runs.ts';

/**
 * Finds written pages by the ioctl PAGEMAP_SCAN (Linux 6.7) on memory that the preload library put under
 * asynchronous write protection: one ioctl reports them and protects them anew, about 0.3 µs per MiB of guest
 * memory. It sees no discards, which come through the channel, and no writes through other mappings.
 */
export class PagemapScanLog implements DirtyLog {
  readonly method = 'pagemap-scan';
  readonly atomic = true;
  readonly #mapped: MappedMemory;
  readonly #pagemap: Pagemap;
  #marked: PageRun[] = [];

  /** @throws MemoryError MEMORY_LOG_UNAVAILABLE, LinuxError. */
  constructor(watched: WatchedMemory) {
    this.#mapped = MappedMemory.of(watched, this.method);
    const { protection, pid } = this.#mapped.hello;
    if (protection.kind === 'refused') {
      const { step, errnoName } = protection;
      throw logUnavailable(this.method, `QEMU's memory could not be write-protected: ${step}: ${errnoName}`);
    }
    this.#pagemap = Pagemap.open(pid);
  }

  collect(): PageRun[] {
    const written = this.#scan({ rearm: true });
    const changed = mergeRuns(written, this.#mapped.channel.takeDiscards(), this.#marked);
    this.#marked = [];
    return changed;
  }

  peek(limitPages: number): number {
    this.mark(this.#mapped.channel.takeDiscards());
    const written = this.#scan({ rearm: false, maxPages: limitPages });
    return Math.min(limitPages, countPages(mergeRuns(written, this.#marked)));
  }

  mark(runs: readonly PageRun[]): void {
    this.#marked = mergeRuns(this.#marked, runs);
  }

  /** Every write since was seen. */
  adopt(): void {}

  #scan(how: { rearm: boolean; maxPages?: number }): PageRun[] {
    const { range } = this.#mapped;
    const ranges = this.#pagemap.scanWritten({ ...range, ...how });
    if (ranges === undefined) throw this.#mapped.processGone();
    return this.#mapped.pagesAt(ranges);
  }

  [Symbol.dispose](): void {
    this.#pagemap[Symbol.dispose]();
  }
}
