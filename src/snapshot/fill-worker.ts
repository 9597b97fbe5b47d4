/**
 * The thread that answers a guest's faults from a snapshot, and brings the rest of its memory in meanwhile. It does
 * nothing else, so that no other work of the keeper makes a guest wait. When it fails or ends early, nothing more is
 * answered: a guest that asks stands still then, and never reads what is not its memory.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import { pollReadable } from '../linux/poll.ts';
import { UserfaultAnswers } from '../linux/userfault-answers.ts';
import { type FillBegin, type FillReport, type FillWork, SHARED } from './fill-messages.ts';
import { SnapshotFile } from './snapshot-file.ts';
import { CHUNK_BYTES, CHUNK_PAGES, locationOf } from './snapshot-format.ts';
import { readWorkingSet } from './working-set.ts';

/** Looks so often whether it is to stop, or may fill in the background. */
const LOOK_MS = 10;

class MemoryFill {
  readonly #file: SnapshotFile;
  readonly #shared: Int32Array;
  /** Pages by chunk: those of chunk n are `#pages[#firstOf[n]]` up to `#pages[#firstOf[n + 1]]`. */
  readonly #pages: Uint32Array;
  readonly #firstOf: Uint32Array;
  readonly #isFilled: Uint8Array;
  readonly #order: readonly number[];
  readonly #asked: number[] = [];
  readonly #buffer = Mapping.anonymous(CHUNK_BYTES);
  #next = 0;

  constructor({ path, key, shared }: FillWork) {
    this.#file = SnapshotFile.open(path, { key });
    this.#shared = new Int32Array(shared);
    const { places, chunks } = this.#file.index;
    this.#isFilled = new Uint8Array(chunks.length);
    this.#firstOf = new Uint32Array(chunks.length + 1);
    for (const place of places) {
      if (place === 0) continue;
      const next = locationOf(place).chunk + 1;
      this.#firstOf[next] = (this.#firstOf[next] ?? 0) + 1;
    }
    for (let chunk = 0; chunk < chunks.length; chunk += 1)
      this.#firstOf[chunk + 1] = (this.#firstOf[chunk + 1] ?? 0) + (this.#firstOf[chunk] ?? 0);
    this.#pages = new Uint32Array(this.#firstOf[chunks.length] ?? 0);
    const nextOf = this.#firstOf.slice();
    for (const [page, place] of places.entries()) {
      if (place === 0) continue;
      const { chunk } = locationOf(place);
      const at = nextOf[chunk] ?? 0;
      this.#pages[at] = page;
      nextOf[chunk] = at + 1;
    }
    const { snapshotHash } = this.#file;
    const known = readWorkingSet(path, { snapshotHash, chunkCount: chunks.length });
    this.#order = [...new Set([...known, ...chunks.keys()])];
  }

  run({ userfaultfd, startAddress }: FillBegin): FillReport {
    const answers = new UserfaultAnswers(userfaultfd);
    const start = startAddress;
    for (;;) {
      if (Atomics.load(this.#shared, SHARED.stop) !== 0) return { kind: 'stopped' };
      if (Atomics.load(this.#shared, SHARED.held) !== 0) {
        Atomics.wait(this.#shared, SHARED.held, 1, LOOK_MS);
        continue;
      }
      for (const address of answers.takeFaults())
        if (!this.#answer(answers, { address, start })) return { kind: 'stopped' };
      const chunk = this.#order[this.#next];
      if (chunk === undefined) return { kind: 'done', asked: this.#asked };
      if (Atomics.load(this.#shared, SHARED.background) === 0) {
        pollReadable([userfaultfd], LOOK_MS);
        continue;
      }
      this.#next += 1;
      if (!this.#fill(chunk, { answers, start })) return { kind: 'stopped' };
    }
  }

  #answer(answers: UserfaultAnswers, { address, start }: { address: number; start: number }): boolean {
    Atomics.add(this.#shared, SHARED.faults, 1);
    const page = Math.floor((address - start) / PAGE_BYTES);
    const place = this.#file.index.places[page];
    assert(place !== undefined, 'faults are in guest memory');
    if (place !== 0) {
      const { chunk } = locationOf(place);
      if (this.#isFilled[chunk] === 0) {
        this.#asked.push(chunk);
        return this.#fill(chunk, { answers, start });
      }
    }
    // Of zeros, or filled before the fault was read. What is there stays as it is, and its waiter is woken.
    return answers.placeZeros({ address: start + page * PAGE_BYTES, lengthBytes: PAGE_BYTES });
  }

  /** Returns false when the process has ended. */
  #fill(chunk: number, { answers, start }: { answers: UserfaultAnswers; start: number }): boolean {
    const from = this.#firstOf[chunk] ?? 0;
    const to = this.#firstOf[chunk + 1] ?? 0;
    if (this.#isFilled[chunk] === 1) return true;
    if (from < to) this.#buffer.bytes.set(this.#file.chunk(chunk));
    for (let at = from; at < to; ) {
      const page = this.#pages[at] ?? 0;
      const slot = this.#slotOf(page);
      let pageCount = 1;
      while (at + pageCount < to && this.#follows(at + pageCount, { page, slot, by: pageCount }))
        pageCount += 1;
      const source = {
        address: this.#buffer.address + slot * PAGE_BYTES,
        lengthBytes: pageCount * PAGE_BYTES,
      };
      if (!answers.place(start + page * PAGE_BYTES, source)) return false;
      at += pageCount;
    }
    this.#isFilled[chunk] = 1;
    Atomics.add(this.#shared, SHARED.filledChunks, 1);
    return true;
  }

  #slotOf(page: number): number {
    return ((this.#file.index.places[page] ?? 0) - 1) % CHUNK_PAGES;
  }

  #follows(at: number, { page, slot, by }: { page: number; slot: number; by: number }): boolean {
    const next = this.#pages[at] ?? 0;
    return next === page + by && this.#slotOf(next) === slot + by;
  }
}

const port = parentPort;
assert(port !== null, 'it is a thread of a keeper');
const report = (message: FillReport) => port.postMessage(message);

function attempt(work: () => FillReport): void {
  try {
    report(work());
  } catch (thrown) {
    const code = thrown instanceof UnderstudyError ? thrown.code : undefined;
    report({ kind: 'failed', code, message: messageOf(thrown) });
  }
}

attempt(() => {
  const fill = new MemoryFill(workerData as FillWork);
  port.once('message', (begin: FillBegin) => {
    attempt(() => fill.run(begin));
    port.close();
  });
  return { kind: 'ready' };
});
