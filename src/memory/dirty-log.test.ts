import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { kernelKeepsSoftDirty } from '../linux/pagemap.ts';
import { CompiledWriter } from './compiled-writer.ts';
import { openDirtyLog } from './dirty-log-choice.ts';
import { DirtyLogBench, dirtyLogContract } from './dirty-log-contract.ts';

const directory = '/dev/shm';

let compiled: CompiledWriter;

beforeAll(async () => {
  compiled = await CompiledWriter.make();
});
afterAll(() => compiled[Symbol.dispose]());

for (const method of ['pagemap-scan', 'compare'] as const) {
  describe(`the dirty log ${method}`, () => {
    test.each(dirtyLogContract)('$title', async (check) => {
      await using bench = await DirtyLogBench.open({ method, directory, ...compiledPaths() });
      await check.run(bench);
    });
  });
}

/** Where this is skipped, the same checks run inside a guest with a kernel that has it. */
describe.skipIf(!kernelKeepsSoftDirty())(
  'the dirty log soft-dirty, on a kernel with CONFIG_MEM_SOFT_DIRTY',
  () => {
    test.each(dirtyLogContract)('$title', async (check) => {
      await using bench = await DirtyLogBench.open({ method: 'soft-dirty', directory, ...compiledPaths() });
      await check.run(bench);
    });
  },
);

test('a scan alone does not see a discard: the preload library has to report it', async () => {
  await using bench = await DirtyLogBench.open({ method: 'pagemap-scan', directory, ...compiledPaths() });
  await bench.changedBy([{ kind: 'write', page: 3, byte: 1 }]);
  await bench.writer.do([{ kind: 'remove', page: 3, pageCount: 1 }]);
  expect(bench.channel.takeDiscards()).toEqual([{ firstPage: 3, pageCount: 1 }]);
  expect(bench.log.collect()).toEqual([]);
});

test('the best method that works is chosen, and the others say why not', async () => {
  await using bench = await DirtyLogBench.open({ method: 'compare', directory, ...compiledPaths() });
  const { log, passedOver } = openDirtyLog({ memory: bench.memory, channel: bench.channel, method: 'auto' });
  using _ = log;
  expect(log.method).toBe('pagemap-scan');
  expect(passedOver).toEqual([]);

  const blind = openDirtyLog({ memory: bench.memory, method: 'auto' });
  using __ = blind.log;
  expect(blind.log.method).toBe('compare');
  expect(blind.passedOver.map((error) => error.facts.method)).toEqual(['pagemap-scan', 'soft-dirty']);
});

test('a method that was asked for and does not work is an error with the reason', async () => {
  await using bench = await DirtyLogBench.open({ method: 'compare', directory, ...compiledPaths() });
  const open = () => openDirtyLog({ memory: bench.memory, method: 'pagemap-scan' });
  expect(open).toThrow(
    expect.objectContaining({
      code: 'MEMORY_LOG_UNAVAILABLE',
      message: expect.stringContaining('handshake'),
    }),
  );
});

function compiledPaths() {
  const { libraryPath, writerPath } = compiled;
  return { libraryPath, writerPath };
}
