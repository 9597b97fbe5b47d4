import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { assert } from '../src/base/assert.ts';
import { PAGE_BYTES } from '../src/base/units.ts';
import { runPaths } from '../src/control/run-paths.ts';
import { Mapping } from '../src/linux/mapping.ts';
import { GuestMemory } from '../src/memory/guest-memory.ts';
import type { BenchRun } from './harness.ts';
import { redisBenchmark } from './redis-benchmark.ts';
import { demoGuest, RedisVm } from './redis-vm.ts';

const CLIENTS = 50;
const REQUESTS = 40_000;
/** About the age of an epoch under load. */
const GAP_MS = 40;

/** Pages of guest memory with what stood there a moment before: `pages` and `bases` have the same length. */
export interface WrittenPages {
  readonly pages: Uint8Array;
  readonly bases: Uint8Array;
  /** Their numbers. */
  readonly numbers: readonly number[];
}

/**
 * Boots the demo guest, loads its Redis, and takes what changed in its memory within a moment, `samples` times. The guest
 * runs meanwhile, so that a page may be torn: nothing goes on from these, they are only compressed. Pages that were
 * written and did not change cannot be seen in this way.
 */
export async function writtenPagesOfRedis(run: BenchRun, samples: number): Promise<WrittenPages[]> {
  const { clock, signal } = run.options;
  await using redis = await RedisVm.start(run, { guest: await demoGuest(run), isProtected: false });
  await redis.wait(redis.load.connect(1));
  run.progress(`SET by ${CLIENTS} clients, and what they change in the guest's memory`);
  const load = (requests: number) =>
    redisBenchmark(redis.network.redis, { clients: CLIENTS, requests, signal });
  await redis.wait(load(REQUESTS / 4));
  using memory = GuestMemory.open(memoryPathOf(redis.vm.name));
  using before = Mapping.anonymous(memory.sizeBytes);
  using after = Mapping.anonymous(memory.sizeBytes);
  const ended = new AbortController();
  const loading = (async () => {
    while (!ended.signal.aborted) await load(REQUESTS);
  })();
  // Its failure is seen below.
  loading.catch(() => ended.abort());
  const found: WrittenPages[] = [];
  try {
    while (found.length < samples && !ended.signal.aborted) {
      copy(memory, before);
      await clock.sleep(GAP_MS, signal);
      copy(memory, after);
      found.push(changed(before.bytes, after.bytes));
    }
  } finally {
    ended.abort();
    await redis.wait(loading);
  }
  return found;
}

function memoryPathOf(name: string): string {
  const directory = runPaths(name).memory;
  const file = readdirSync(directory).find((entry) => entry.endsWith('.ram'));
  assert(file !== undefined, 'a VM that runs has a memory file');
  return join(directory, file);
}

function copy(memory: GuestMemory, target: Mapping): void {
  for (const run of memory.dataRuns()) memory.readRuns([run], target, run.firstPage * PAGE_BYTES);
}

function changed(before: Uint8Array, after: Uint8Array): WrittenPages {
  const offsets: number[] = [];
  for (let at = 0; at < after.length; at += PAGE_BYTES)
    if (Buffer.compare(before.subarray(at, at + PAGE_BYTES), after.subarray(at, at + PAGE_BYTES)) !== 0)
      offsets.push(at);
  const pages = new Uint8Array(offsets.length * PAGE_BYTES);
  const bases = new Uint8Array(offsets.length * PAGE_BYTES);
  for (const [index, at] of offsets.entries()) {
    pages.set(after.subarray(at, at + PAGE_BYTES), index * PAGE_BYTES);
    bases.set(before.subarray(at, at + PAGE_BYTES), index * PAGE_BYTES);
  }
  return { pages, bases, numbers: offsets.map((at) => at / PAGE_BYTES) };
}
