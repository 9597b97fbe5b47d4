import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import { CompareLog } from '../memory/compare-log.ts';
import type { DirtyLog } from '../memory/dirty-log.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { countPages } from '../memory/page-runs.ts';
import { copyWhileRunning } from './full-copy.ts';
import { OwnWritesLog } from './own-writes-log-fixture.ts';

const PAGES = (3 * MIB) / PAGE_BYTES;
const REST_PAGES_MAX = 4;

let from: GuestMemory;
let to: GuestMemory;
let page: Mapping;

beforeEach(() => {
  const directory = mkdtempSync(`/dev/shm/${marked('copy')}-`);
  from = GuestMemory.create(join(directory, 'from.ram'), PAGES * PAGE_BYTES);
  to = GuestMemory.create(join(directory, 'to.ram'), PAGES * PAGE_BYTES);
  page = Mapping.anonymous(PAGE_BYTES);
  onTestFinished(() => {
    for (const resource of [page, from, to]) resource[Symbol.dispose]();
    rmSync(directory, { recursive: true });
  });
});

function write(memory: GuestMemory, at: number, value: number): void {
  page.bytes.fill(value);
  memory.writeRuns([{ firstPage: at, pageCount: 1 }], page);
}

const LOGS: Readonly<Record<string, (memory: GuestMemory) => DirtyLog>> = {
  'an atomic log': () => new OwnWritesLog(),
  'a log that compares': (memory) => new CompareLog({ memory }),
};

function contentOf(memory: GuestMemory): Buffer {
  using all = Mapping.anonymous(PAGES * PAGE_BYTES);
  memory.readRuns([{ firstPage: 0, pageCount: PAGES }], all);
  return Buffer.from(all.bytes);
}

const writes = fc.array(
  // Few pages and values, so that a page is often changed to and fro.
  fc.record({
    page: fc.constantFrom(0, 1, 255, 256, 300, 512, PAGES - 1),
    value: fc.integer({ min: 1, max: 2 }),
    zero: fc.boolean(),
  }),
  { minLength: 1, maxLength: 12 },
);

describe('the copy of a running VM', () => {
  it.each(Object.entries(LOGS))(
    'lacks nothing but what %s still holds, whatever is written meanwhile',
    async (_, openLog) => {
      await fc.assert(
        fc.asyncProperty(writes, fc.array(writes, { maxLength: 12 }), async (before, during) => {
          from.discardAll();
          write(to, 5, 99);
          for (const { page: at, value } of before) write(from, at, value);
          using dirtyLog = openLog(from);
          const rounds = [...during];
          await copyWhileRunning({
            from,
            to,
            dirtyLog,
            restPagesMax: REST_PAGES_MAX,
            onProgress: () => {
              for (const { page: at, value, zero } of rounds.shift() ?? []) {
                if (zero) from.discard([{ firstPage: at, pageCount: 1 }]);
                else write(from, at, value);
                if (dirtyLog.atomic) dirtyLog.mark([{ firstPage: at, pageCount: 1 }]);
              }
            },
            signal: new AbortController().signal,
          });
          const rest = dirtyLog.collect();
          for (const run of rest) {
            for (let at = run.firstPage; at < run.firstPage + run.pageCount; at += 1) {
              from.readRuns([{ firstPage: at, pageCount: 1 }], page);
              to.writeRuns([{ firstPage: at, pageCount: 1 }], page);
            }
          }
          expect(contentOf(to).equals(contentOf(from))).toBe(true);
        }),
        { numRuns: 60 },
      );
    },
  );

  it('leaves little to the first cut when the VM writes little', async () => {
    for (let at = 0; at < PAGES; at += 1) write(from, at, 1);
    using dirtyLog = new OwnWritesLog();
    const progress: number[] = [];
    await copyWhileRunning({
      from,
      to,
      dirtyLog,
      restPagesMax: REST_PAGES_MAX,
      onProgress: (copied, total) => {
        progress.push(copied / total);
        if (progress.length !== 2) return;
        for (let at = 0; at < 100; at += 1) write(from, at, 2);
        dirtyLog.mark([{ firstPage: 0, pageCount: 100 }]);
      },
      signal: new AbortController().signal,
    });
    expect(countPages(dirtyLog.collect())).toBeLessThanOrEqual(REST_PAGES_MAX);
    expect(contentOf(to).equals(contentOf(from))).toBe(true);
    expect(progress.at(-1)).toBe(1);
  });

  it('comes to an end although the VM writes faster than it copies', async () => {
    using dirtyLog = new OwnWritesLog();
    let value = 0;
    const scribble = () => {
      value = (value % 255) + 1;
      for (let at = 0; at < 50; at += 1) write(from, at, value);
      dirtyLog.mark([{ firstPage: 0, pageCount: 50 }]);
    };
    scribble();
    await copyWhileRunning({
      from,
      to,
      dirtyLog,
      restPagesMax: REST_PAGES_MAX,
      onProgress: scribble,
      signal: new AbortController().signal,
    });
    expect(countPages(dirtyLog.collect()), 'the rest is the first cut’s').toBe(50);
  });

  it('ends as soon as nobody wants it any more', async () => {
    for (let at = 0; at < PAGES; at += 1) write(from, at, 1);
    using dirtyLog = new CompareLog({ memory: from });
    const abort = new AbortController();
    let chunks = 0;
    const copy = copyWhileRunning({
      from,
      to,
      dirtyLog,
      restPagesMax: REST_PAGES_MAX,
      onProgress: () => {
        chunks += 1;
        abort.abort(new Error('the shadow is gone'));
      },
      signal: abort.signal,
    });
    await expect(copy).rejects.toThrow('the shadow is gone');
    expect(chunks).toBe(1);
  });
});
