import type { DirtyLog } from '../memory/dirty-log.ts';
import { mergeRuns, type PageRun } from '../memory/page-runs.ts';

/** Knows every write, because whoever makes one marks it: as atomic as a pagemap scan. */
export class OwnWritesLog implements DirtyLog {
  readonly method = 'pagemap-scan';
  readonly atomic = true;
  #marked: PageRun[] = [];

  collect(): PageRun[] {
    const changed = mergeRuns(this.#marked);
    this.#marked = [];
    return changed;
  }

  peek(): undefined {}

  mark(runs: readonly PageRun[]): void {
    this.#marked.push(...runs);
  }

  adopt(): void {}

  [Symbol.dispose](): void {}
}
