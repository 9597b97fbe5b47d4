import fc from 'fast-check';
import { expect, test } from 'vitest';
import { countPages, mergeRuns, type PageRun, runOfBytes } from './page-runs.ts';

const run = fc.record({ firstPage: fc.nat(50), pageCount: fc.nat(5) });

const pagesOf = (runs: readonly PageRun[]) =>
  runs.flatMap(({ firstPage, pageCount }) =>
    Array.from({ length: pageCount }, (_, index) => firstPage + index),
  );

test('merged runs hold every page once, in order, with a gap between runs', () => {
  fc.assert(
    fc.property(fc.array(run), fc.array(run), (one, other) => {
      const merged = mergeRuns(one, other);
      const pages = [...new Set(pagesOf([...one, ...other]))].sort((a, b) => a - b);
      expect(pagesOf(merged)).toEqual(pages);
      expect(countPages(merged)).toBe(pages.length);
      for (const [index, { firstPage, pageCount }] of merged.entries()) {
        expect(merged[index + 1]?.firstPage ?? Infinity).toBeGreaterThan(firstPage + pageCount);
      }
    }),
  );
});

test('a range of bytes touches the pages of its first and its last byte', () => {
  expect(runOfBytes(0, 4096)).toEqual({ firstPage: 0, pageCount: 1 });
  expect(runOfBytes(4095, 2)).toEqual({ firstPage: 0, pageCount: 2 });
  expect(runOfBytes(8192, 0)).toEqual({ firstPage: 2, pageCount: 0 });
});
