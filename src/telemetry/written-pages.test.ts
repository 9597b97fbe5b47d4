import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { WrittenPages } from './written-pages.ts';

const PAGES = 300;

describe('pages written within the last minute', () => {
  it('count once, however often they are written', () => {
    const written = new WrittenPages(PAGES);
    expect(written.count(0)).toBe(0);
    for (let ms = 0; ms < 5000; ms += 100) written.note([{ firstPage: 10, pageCount: 5 }], ms);
    written.note([{ firstPage: 12, pageCount: 5 }], 6000);
    expect(written.count(6000)).toBe(7);
  });

  it('are forgotten a minute later, at most 10 s too late and never too early', () => {
    for (const atMs of [0, 1, 9999]) {
      const written = new WrittenPages(PAGES);
      written.note([{ firstPage: 0, pageCount: 3 }], atMs);
      expect(written.count(atMs + 60_000)).toBe(3);
      expect(written.count(atMs + 70_000)).toBe(0);
    }
  });

  it('are those of the memory alone', () => {
    const written = new WrittenPages(4);
    written.note([{ firstPage: 2, pageCount: 100 }], 0);
    written.note([{ firstPage: 100, pageCount: 1 }], 0);
    expect(written.count(0)).toBe(2);
  });

  it('are those that a plain list of times says, over hours of any writes', () => {
    const step = fc.record({
      waitMs: fc.oneof(
        fc.integer({ min: 0, max: 20_000 }),
        fc.constantFrom(60_000, 300_000, 560_000, 2_600_000),
      ),
      firstPage: fc.integer({ min: 0, max: PAGES - 1 }),
      pageCount: fc.integer({ min: 0, max: 80 }),
    });
    fc.assert(
      fc.property(fc.array(step, { minLength: 1, maxLength: 400, size: 'max' }), (steps) => {
        const written = new WrittenPages(PAGES);
        const lastSlot = new Map<number, number>();
        let nowMs = 0;
        for (const { waitMs, firstPage, pageCount } of steps) {
          nowMs += waitMs;
          const slot = Math.floor(nowMs / 10_000);
          const fresh = [...lastSlot.values()].filter((last) => slot - last < 7).length;
          expect(written.count(nowMs)).toBe(fresh);
          written.note([{ firstPage, pageCount }], nowMs);
          for (let page = firstPage; page < Math.min(PAGES, firstPage + pageCount); page += 1)
            lastSlot.set(page, slot);
        }
      }),
    );
  });
});
