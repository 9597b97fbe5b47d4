import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { WorkPace } from '../base/work-pace.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { type PageRun, piecesOf } from '../memory/page-runs.ts';
import { copyWhileRunning } from './full-copy.ts';
import { OwnWritesLog } from './own-writes-log-fixture.ts';
import { differingRuns, HASH_BYTES, hashesOf, hashPages, makeSecret, PageHashes } from './page-hashes.ts';
import { decodeHashes, encodeHashes } from './peer-messages.ts';

const PAGES = 700;
const SIGNAL = new AbortController().signal;
const pace = () => new WorkPace(clock, { share: 1 });

let from: GuestMemory;
let to: GuestMemory;
let buffer: Mapping;

beforeEach(() => {
  const directory = mkdtempSync(`/dev/shm/${marked('delta')}-`);
  from = GuestMemory.create(join(directory, 'from.ram'), PAGES * PAGE_BYTES);
  to = GuestMemory.create(join(directory, 'to.ram'), PAGES * PAGE_BYTES);
  buffer = Mapping.anonymous(PAGES * PAGE_BYTES);
  onTestFinished(() => {
    for (const resource of [buffer, from, to]) resource[Symbol.dispose]();
    rmSync(directory, { recursive: true });
  });
});

/** Value 0 is a page of zeros that takes room; a page that nobody writes is a hole. */
function write(memory: GuestMemory, page: number, value: number): void {
  buffer.bytes.fill(value, 0, PAGE_BYTES);
  // Most pages that differ do so in little.
  buffer.bytes[PAGE_BYTES - 1] = value === 0 ? 0 : value + page;
  memory.writeRuns([{ firstPage: page, pageCount: 1 }], buffer);
}

function pageOf(memory: GuestMemory, page: number): Buffer {
  memory.readRuns([{ firstPage: page, pageCount: 1 }], buffer);
  return Buffer.from(buffer.bytes.subarray(0, PAGE_BYTES));
}

function differences(): number[] {
  return Array.from({ length: PAGES }, (_, page) => page).filter(
    (page) => !pageOf(from, page).equals(pageOf(to, page)),
  );
}

interface Bringing {
  readonly writes?: readonly { page: number; value: number }[];
  readonly forge?: (theirs: PageHashes, secret: Uint8Array) => void;
}

/** Brings `to`, which holds something, to what `from` is, which is written to meanwhile. Returns how many pages were sent. */
async function bring({ writes = [], forge = () => {} }: Bringing = {}): Promise<number> {
  const secret = makeSecret();
  const theirs = new PageHashes(PAGES);
  for await (const { piece, hashes } of hashesOf(to, { runs: to.dataRuns(), secret, pace: pace() }))
    theirs.note(piece, hashes);
  forge(theirs, secret);
  const dirtyLog = new OwnWritesLog();
  const late = [...writes];
  const writeOne = () => {
    const next = late.shift();
    if (next === undefined) return;
    write(from, next.page, next.value);
    dirtyLog.mark([{ firstPage: next.page, pageCount: 1 }]);
  };
  let sent = 0;
  await copyWhileRunning({
    ...{ from, dirtyLog, restPagesMax: 2, signal: SIGNAL, onProgress: writeOne },
    firstRuns: async () => {
      writeOne();
      const runs = await differingRuns(from, { theirs, secret, pace: pace(), signal: SIGNAL });
      writeOne();
      return runs;
    },
    to: {
      discardAll: () => {},
      writeRuns: (runs: readonly PageRun[], source: Mapping) => {
        for (const { pageCount } of runs) sent += pageCount;
        to.writeRuns(runs, source);
      },
    },
  });
  while (late.length > 0) writeOne();
  for (const piece of piecesOf(dirtyLog.collect(), 1)) {
    from.readRuns([piece], buffer);
    to.writeRuns([piece], buffer);
  }
  return sent;
}

const somePages = fc.array(fc.record({ page: fc.nat(PAGES - 1), value: fc.nat(3) }), { maxLength: 60 });

describe('older memory of a VM that is brought up to date by what differs', () => {
  it('is its memory page by page, whatever both have and whatever is written meanwhile', async () => {
    await fc.assert(
      fc.asyncProperty(somePages, somePages, somePages, async (here, there, writes) => {
        for (const memory of [from, to]) memory.discardAll();
        for (const { page, value } of here) write(from, page, value);
        for (const { page, value } of there) write(to, page, value);
        await bring({ writes });
        expect(differences()).toEqual([]);
      }),
      { numRuns: 40 },
    );
  });

  it('takes only the pages that differ', async () => {
    for (let page = 0; page < 500; page += 1) {
      write(from, page, 1);
      write(to, page, 1);
    }
    for (const page of [3, 4, 499]) write(from, page, 2);
    // Zeros here, in the one way or the other, and something there; and the other way round.
    write(to, 600, 7);
    write(to, 601, 7);
    write(from, 601, 0);
    write(from, 602, 7);
    // Nothing but zeros on both sides.
    write(from, 610, 0);
    write(to, 611, 0);
    expect(differences()).toEqual([3, 4, 499, 600, 601, 602]);
    expect(await bring()).toBe(6);
    expect(differences()).toEqual([]);
  });

  it('would lack a page that is taken for the same (control)', async () => {
    write(from, 5, 1);
    write(from, 6, 1);
    await bring({
      forge: (theirs, secret) =>
        theirs.note({ firstPage: 5, pageCount: 1 }, hashPages(pageOf(from, 5), secret)),
    });
    expect(differences()).toEqual([5]);
  });

  it('is not compared with hashes of pages that it does not have', () => {
    const hashes = Buffer.alloc(2 * HASH_BYTES);
    const message = (firstPage: number, pageCount: number) => encodeHashes({ firstPage, pageCount }, hashes);
    expect(decodeHashes(message(PAGES - 2, 2), PAGES).piece).toEqual({ firstPage: PAGES - 2, pageCount: 2 });
    for (const wrong of [message(PAGES - 1, 2), message(0, 1), message(0, 3), message(0, 0), Buffer.alloc(3)])
      expect(() => decodeHashes(wrong, PAGES)).toThrow('the other host sent hashes');
  });

  it('is hashed in another way each time', () => {
    const page = new Uint8Array(PAGE_BYTES);
    expect(hashPages(page, makeSecret()).equals(hashPages(page, makeSecret()))).toBe(false);
  });
});
