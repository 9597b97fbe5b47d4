import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { systemClock } from '../base/clock.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { DirtyLog } from './dirty-log.ts';
import { openDirtyLog } from './dirty-log-choice.ts';
import { GuestMemory } from './guest-memory.ts';
import { MemoryError } from './memory-error.ts';
import { MemoryWriter, type WriterCommand } from './memory-writer.ts';
import { countPages, type PageRun } from './page-runs.ts';
import { PreloadChannel } from './preload-channel.ts';

/**
 * What every dirty log has to keep, checked against a real process that writes. Needs no test runner, so that
 * it also runs inside a guest with another kernel: `node dirty-log-contract.ts METHOD LIBRARY WRITER DIRECTORY`.
 */
interface ContractCheck {
  readonly title: string;
  run(bench: DirtyLogBench): Promise<void>;
}

export interface ContractOptions {
  readonly method: DirtyLog['method'];
  readonly libraryPath: string;
  readonly writerPath: string;
  /** Where the memory file is made: a tmpfs. */
  readonly directory: string;
}

const PAGES = 600;
const ROUNDS = 30;

/** A memory file, a process that has mapped it, and the log that watches. */
export class DirtyLogBench implements AsyncDisposable {
  readonly #resources = new AsyncDisposableStack();
  readonly memory: GuestMemory;
  readonly channel: PreloadChannel;
  readonly writer: MemoryWriter;
  #log: DirtyLog | undefined;
  readonly #before: Mapping;
  readonly #after: Mapping;

  private constructor(options: ContractOptions) {
    const { libraryPath, writerPath } = options;
    const memoryPath = `${options.directory}/dirty-log-${process.pid}-${crypto.randomUUID()}.ram`;
    const sizeBytes = PAGES * PAGE_BYTES;
    this.#before = this.#resources.use(Mapping.anonymous(sizeBytes));
    this.#after = this.#resources.use(Mapping.anonymous(sizeBytes));
    this.#resources.defer(() => rmSync(memoryPath, { force: true }));
    this.memory = this.#resources.use(GuestMemory.create(memoryPath, sizeBytes));
    this.channel = this.#resources.use(new PreloadChannel());
    const writer = { writerPath, memoryPath, sizeBytes, libraryPath, channel: this.channel };
    this.writer = this.#resources.use(new MemoryWriter(writer));
  }

  static async open(options: ContractOptions): Promise<DirtyLogBench> {
    const bench = new DirtyLogBench(options);
    try {
      await bench.channel.awaitHello({ deadlineMs: 10_000, clock: systemClock });
      bench.#log = bench.#resources.use(openDirtyLog({ ...bench, method: options.method }).log);
      return bench;
    } catch (thrown) {
      await bench[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  get log(): DirtyLog {
    assert(this.#log !== undefined);
    return this.#log;
  }

  /** Lets the process work and returns the pages that the log says changed. */
  async changedBy(commands: readonly WriterCommand[]): Promise<number[]> {
    await this.writer.do(commands);
    return pagesOf(this.log.collect());
  }

  snapshot(): void {
    this.memory.readRuns([{ firstPage: 0, pageCount: PAGES }], this.#before);
  }

  /** The truth: pages whose content differs from the snapshot. */
  reallyChanged(): number[] {
    this.memory.readRuns([{ firstPage: 0, pageCount: PAGES }], this.#after);
    const contentOf = (mapping: Mapping, page: number) =>
      Buffer.from(mapping.bytes.buffer, page * PAGE_BYTES, PAGE_BYTES);
    return range(0, PAGES).filter(
      (page) => !contentOf(this.#before, page).equals(contentOf(this.#after, page)),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}

export const dirtyLogContract: readonly ContractCheck[] = [
  {
    title: 'reports the pages that were written, once',
    async run(bench) {
      assert.deepEqual(await bench.changedBy([]), []);
      assert.deepEqual(
        await bench.changedBy([write(7, 1), write(8, 1), write(599, 1), write(0, 1)]),
        [0, 7, 8, 599],
      );
      assert.deepEqual(await bench.changedBy([]), []);
      assert.deepEqual(await bench.changedBy([write(8, 2)]), [8]);
    },
  },
  {
    title: 'reports pages that the kernel wrote for the process',
    async run(bench) {
      assert.deepEqual(await bench.changedBy([{ kind: 'kernel-write', page: 5 }]), [5]);
      assert.deepEqual(await bench.changedBy([{ kind: 'kernel-write', page: 5 }]), [5]);
    },
  },
  {
    title: 'reports discarded pages, also those that were clean',
    async run(bench) {
      await bench.changedBy(range(10, 30).map((page) => write(page, 9)));
      assert.deepEqual(await bench.changedBy([discard('remove', 11, 2)]), [11, 12]);
      assert.deepEqual(await bench.changedBy([discard('punch', 20, 3)]), [20, 21, 22]);
    },
  },
  {
    title: 'reports a page that is written again after its discard was reported',
    async run(bench) {
      await bench.changedBy([write(40, 1), write(41, 1)]);
      await bench.changedBy([discard('remove', 40, 1), discard('punch', 41, 1)]);
      assert.deepEqual(await bench.changedBy([]), []);
      assert.deepEqual(await bench.changedBy([write(40, 2), write(41, 2)]), [40, 41]);
    },
  },
  {
    title: 'does not forget a written page whose page table entry was dropped',
    async run(bench) {
      assert.deepEqual(await bench.changedBy([write(50, 1), discard('dontneed', 50, 1)]), [50]);
    },
  },
  {
    title: 'never misses a change in a random history, and reports no page that nobody touched',
    async run(bench) {
      const seed = Number(process.env.DIRTY_LOG_SEED ?? Math.floor(Math.random() * 2 ** 31));
      await checkRandomHistory(bench, seed);
    },
  },
  {
    title: 'reports marked pages with the others, once',
    async run(bench) {
      await bench.changedBy([write(60, 1)]);
      bench.log.mark([{ firstPage: 60, pageCount: 2 }]);
      bench.log.mark([{ firstPage: 90, pageCount: 1 }]);
      assert.deepEqual(await bench.changedBy([write(70, 1)]), [60, 61, 70, 90]);
      assert.deepEqual(await bench.changedBy([]), []);
    },
  },
  {
    title: 'counts ahead without forgetting, where it can count cheaply',
    async run(bench) {
      await bench.writer.do([write(1, 1), write(2, 1), write(30, 1)]);
      bench.log.mark([{ firstPage: 30, pageCount: 2 }]);
      const counted = bench.log.peek(100);
      assert(counted === undefined || counted === 4, `counted ${counted}`);
      assert((bench.log.peek(2) ?? 2) === 2);
      assert.deepEqual(pagesOf(bench.log.collect()), [1, 2, 30, 31]);
      assert((bench.log.peek(100) ?? 0) === 0);
    },
  },
  {
    title: 'does not take a dead process for an idle one',
    async run(bench) {
      await bench.writer.do([write(3, 1)]);
      await bench.writer.kill();
      // By content it can still be told; by page tables it cannot.
      if (bench.log.method === 'compare') assert.deepEqual(pagesOf(bench.log.collect()), [3]);
      else assert.throws(() => bench.log.collect(), isProcessGone);
    },
  },
];

/** Writes, kernel writes and discards in any order, against the content of memory before and after. */
async function checkRandomHistory(bench: DirtyLogBench, seed: number): Promise<void> {
  const random = randomFrom(seed);
  const below = (limit: number) => Math.floor(random() * limit);
  for (let round = 0; round < ROUNDS; round++) {
    bench.snapshot();
    const commands = Array.from({ length: below(60) }, () => randomCommand(below));
    const reported = new Set(await bench.changedBy(commands));
    const touched = new Set(commands.flatMap(pagesTouchedBy));
    const missed = bench.reallyChanged().filter((page) => !reported.has(page));
    const untouched = [...reported].filter((page) => !touched.has(page));
    const story = `DIRTY_LOG_SEED=${seed} round ${round}: ${JSON.stringify(commands)}`;
    assert.deepEqual(missed, [], `missed pages, ${story}`);
    assert.deepEqual(untouched, [], `reported untouched pages, ${story}`);
  }
}

function randomCommand(below: (limit: number) => number): WriterCommand {
  const page = below(PAGES);
  const pageCount = 1 + below(Math.min(20, PAGES - page));
  switch (below(10)) {
    case 0:
      return discard('remove', page, pageCount);
    case 1:
      return discard('punch', page, pageCount);
    case 2:
      return discard('dontneed', page, pageCount);
    case 3:
      return { kind: 'kernel-write', page };
    default:
      return write(page, below(256));
  }
}

function pagesTouchedBy(command: WriterCommand): number[] {
  if (command.kind === 'map-again') return [];
  const pageCount = 'pageCount' in command ? command.pageCount : 1;
  return range(command.page, command.page + pageCount);
}

function write(page: number, byte: number): WriterCommand {
  return { kind: 'write', page, byte };
}

function discard(kind: 'remove' | 'dontneed' | 'punch', page: number, pageCount: number): WriterCommand {
  return { kind, page, pageCount };
}

function pagesOf(runs: readonly PageRun[]): number[] {
  const pages = runs.flatMap(({ firstPage, pageCount }) => range(firstPage, firstPage + pageCount));
  assert.equal(pages.length, countPages(runs));
  assert.deepEqual(
    pages,
    [...new Set(pages)].sort((a, b) => a - b),
    'runs are sorted and disjoint',
  );
  return pages;
}

function range(start: number, end: number): number[] {
  return Array.from({ length: end - start }, (_, index) => start + index);
}

function isProcessGone(thrown: unknown): boolean {
  return thrown instanceof MemoryError && thrown.code === 'MEMORY_PROCESS_GONE';
}

/** mulberry32: a small generator, so that a failure can be run again from its seed. */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

if (import.meta.main) {
  const [method, libraryPath = '', writerPath = '', directory = '/dev/shm'] = process.argv.slice(2);
  for (const check of dirtyLogContract) {
    const options = { method: method as DirtyLog['method'], libraryPath, writerPath, directory };
    await using bench = await DirtyLogBench.open(options);
    await check.run(bench);
    console.log(`${method} ${check.title}`);
  }
  console.log(`${dirtyLogContract.length} checks kept`);
}
