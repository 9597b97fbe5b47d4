import { readFileSync, statSync } from 'node:fs';
import { clearSoftDirty, kernelKeepsSoftDirty, Pagemap } from '../linux/pagemap.ts';
import type { DirtyLog } from './dirty-log.ts';
import { logUnavailable, MappedMemory, type WatchedMemory } from './mapped-memory.ts';
import { mergeRuns, type PageRun } from './page-runs.ts';

/**
 * Finds written pages by the soft-dirty bits of QEMU's page table (Documentation/admin-guide/mm/soft-dirty.rst),
 * for kernels without PAGEMAP_SCAN. A bit is lost with its page table entry: where that can happen unseen, this
 * log refuses to work. Discards come through the channel.
 */
export class SoftDirtyLog implements DirtyLog {
  readonly method = 'soft-dirty';
  readonly atomic = false;
  readonly #mapped: MappedMemory;
  readonly #pagemap: Pagemap;
  #marked: PageRun[] = [];

  /** @throws MemoryError MEMORY_LOG_UNAVAILABLE, LinuxError. */
  constructor(watched: WatchedMemory) {
    this.#mapped = MappedMemory.of(watched, this.method);
    if (!kernelKeepsSoftDirty()) {
      throw logUnavailable(this.method, 'this kernel is built without CONFIG_MEM_SOFT_DIRTY');
    }
    const loss = lossOfBits(watched.memory.path);
    if (loss !== undefined) throw logUnavailable(this.method, loss);
    this.#pagemap = Pagemap.open(this.#mapped.pid);
  }

  collect(): PageRun[] {
    const { range, pid, channel } = this.#mapped;
    const ranges = this.#pagemap.softDirty(range);
    if (ranges === undefined) throw this.#mapped.processGone();
    // What is written between reading and clearing is lost: nothing is, while the VM stands still.
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

  /** Every write since was seen. */
  adopt(): void {}

  [Symbol.dispose](): void {
    this.#pagemap[Symbol.dispose]();
  }
}

/** Why page table entries of guest memory might go, and their soft-dirty bits with them, while QEMU runs. */
function lossOfBits(memoryPath: string): string | undefined {
  const [, ...swaps] = readFileSync('/proc/swaps', 'utf8').trim().split('\n');
  if (swaps.length > 0) return 'this machine has swap, and a page that is swapped out loses its bit';
  // The kernel splits a huge page of a file by dropping its entry (mm/huge_memory.c, __split_huge_pmd_locked).
  const huge = hugePagesOf(memoryPath);
  return huge && `${memoryPath} may lie in huge pages (${huge}), which lose their bits when they are split`;
}

/** The setting that lets a file in a tmpfs have huge pages: Documentation/admin-guide/mm/transhuge.rst. */
function hugePagesOf(path: string): string | undefined {
  const setting = readFileSync('/sys/kernel/mm/transparent_hugepage/shmem_enabled', 'utf8');
  if (setting.includes('[force]')) return 'shmem_enabled=force';
  const { dev } = statSync(path);
  const device = `${(dev >> 8) & 0xfff}:${(dev & 0xff) | ((dev >> 12) & 0xfff00)}`;
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n');
  const mount = mounts.find((line) => line.split(' ')[2] === device);
  return /[ ,](huge=(?!never)[^ ,]*)/.exec(mount ?? '')?.[1];
}
