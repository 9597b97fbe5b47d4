import { clearSoftDirty, kernelKeepsSoftDirty, Pagemap } from '../linux/pagemap.ts';
import type { DirtyLog } from './dirty-log.ts';
import { logUnavailable, MappedMemory, type WatchedMemory } from './mapped-memory.ts';
import { mergeRuns, type PageRun } from './page-runs.ts';

/**
 * Finds written pages by the soft-dirty bits of QEMU's page table (Documentation/admin-guide/mm/soft-dirty.rst),
 * for kernels without PAGEMAP_SCAN. A bit is lost with its page table entry, so guest memory must not be
 * swapped out: have no swap, or let QEMU lock it (`-overcommit mem-lock=on`). Discards come through the channel.
 */
export class SoftDirtyLog implements DirtyLog {
  readonly method = 'soft-dirty';
  readonly #mapped: MappedMemory;
  readonly #pagemap: Pagemap;
  #marked: PageRun[] = [];

  /** @throws MemoryError MEMORY_LOG_UNAVAILABLE, LinuxError. */
  constructor(watched: WatchedMemory) {
    this.#mapped = MappedMemory.of(watched, this.method);
    if (!kernelKeepsSoftDirty()) {
      throw logUnavailable(this.method, 'this kernel is built without CONFIG_MEM_SOFT_DIRTY');
    }
    this.#pagemap = Pagemap.open(this.#mapped.pid);
  }

  collect(): PageRun[] {
    const { range, pid, channel } = this.#mapped;
    const ranges = this.#pagemap.softDirty(range);
    if (ranges === undefined) throw this.#mapped.processGone();
    // Nothing is written between reading and clearing: the VM stands still.
    clearSoftDirty(pid);
    const changed = mergeRuns(this.#mapped.pagesAt(ranges), channel.takeDiscards(), this.#marked);
    this.#marked = [];
    return changed;
  }

  /** Would cost as much as `collect`. */
  peek(): undefined {
    return undefined;
  }

  mark(runs: readonly PageRun[]): void {
    this.#marked = mergeRuns(this.#marked, runs);
  }

  [Symbol.dispose](): void {
    this.#pagemap[Symbol.dispose]();
  }
}
