import { PAGE_BYTES } from '../base/units.ts';

/** Consecutive pages of guest memory, in pages from the start of the memory file. */
export interface PageRun {
  readonly firstPage: number;
  readonly pageCount: number;
}

export function countPages(runs: readonly PageRun[]): number {
  let pages = 0;
  for (const run of runs) pages += run.pageCount;
  return pages;
}

/** Sorts and joins runs that touch or overlap, so that every page stands in one run. */
export function mergeRuns(...lists: readonly (readonly PageRun[])[]): PageRun[] {
  const sorted = lists.flat().sort((a, b) => a.firstPage - b.firstPage);
  const merged: { firstPage: number; pageCount: number }[] = [];
  for (const run of sorted) {
    if (run.pageCount === 0) continue;
    const last = merged.at(-1);
    const end = run.firstPage + run.pageCount;
    if (last !== undefined && run.firstPage <= last.firstPage + last.pageCount) {
      last.pageCount = Math.max(last.pageCount, end - last.firstPage);
    } else {
      merged.push({ ...run });
    }
  }
  return merged;
}

/** Cuts runs into pieces of at most `pagesMax` pages, in order. */
export function* piecesOf(runs: Iterable<PageRun>, pagesMax: number): Generator<PageRun> {
  for (const run of runs) {
    const end = run.firstPage + run.pageCount;
    for (let firstPage = run.firstPage; firstPage < end; firstPage += pagesMax) {
      yield { firstPage, pageCount: Math.min(pagesMax, end - firstPage) };
    }
  }
}

/** The pages that a range of bytes touches. */
export function runOfBytes(startByte: number, lengthBytes: number): PageRun {
  const firstPage = Math.floor(startByte / PAGE_BYTES);
  return { firstPage, pageCount: Math.ceil((startByte + lengthBytes) / PAGE_BYTES) - firstPage };
}
