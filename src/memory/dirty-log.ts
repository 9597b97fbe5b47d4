import type { GuestMemory } from './guest-memory.ts';
import type { PageRun } from './page-runs.ts';

/**
 * Which pages of a VM's memory changed since last asked. Three implementations keep this contract (pagemap
 * scan, soft-dirty, compare) and pass the same tests.
 *
 * A page counts as changed when its content may differ from what it was at the last `collect`, by whatever
 * means: the guest, QEMU's own devices, a discard, or ourselves (`mark`). Reporting a page too many is
 * allowed, one too few never is.
 */
export interface DirtyLog extends Disposable {
  readonly method: 'pagemap-scan' | 'soft-dirty' | 'compare';
  /** Whether `collect` may be called while QEMU runs: it misses no write that falls together with it. */
  readonly atomic: boolean;
  /**
   * Returns the pages changed since the last call and starts anew: sorted, disjoint. Destructive: pages of an
   * epoch that is not completed have to be given back with `mark`. Complete only while the VM stands still;
   * where the log is not `atomic`, a call while QEMU runs loses writes: only for who copies everything after it.
   * @throws MemoryError MEMORY_PROCESS_GONE when QEMU dies meanwhile, whose page tables then show no writes;
   * after any error the log cannot be trusted any more.
   */
  collect(): PageRun[];
  /** Counts changed pages without starting anew, but stops counting at `limitPages`. Undefined where this would cost as much as `collect`. */
  peek(limitPages: number): number | undefined;
  /** Pages that the next `collect` has to report whatever else it finds. */
  mark(runs: readonly PageRun[]): void;
  /**
   * The VM's memory was copied while it ran, all of it after the last `collect`. The next one reports every
   * page in which the VM differs from this copy, also where it was changed to and fro meanwhile.
   */
  adopt(copy: GuestMemory): void;
}
