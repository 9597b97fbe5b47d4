import { execFile } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, type TestContext, test } from 'vitest';
import { MIB } from '../../src/base/units.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { MemoryDisk, TestFolder } from '../../src/block/nbd-fixture.ts';
import { NbdServer } from '../../src/block/nbd-server.ts';
import {
  NBD_PAYLOAD_BYTES_MAX,
  NBD_REQUEST_BYTES,
  NBD_REQUEST_MAGIC,
  NBD_SIMPLE_REPLY_BYTES,
} from '../../src/block/nbd-wire.ts';
import { EagerEpochDisk } from '../kit/eager-epoch-disk.ts';
import { buildNbdTester, sourceListOf } from '../kit/nbd-tester.ts';

/** As in the script that the project nbd runs its own server with. */
const SMALL_DISK_BYTES = 4 * MIB;
const LARGE_DISK_BYTES = 50 * MIB;
const FORGOTTEN_EACH = 3;

type Built = Extract<Awaited<ReturnType<typeof buildNbdTester>>, { kind: 'built' }>;

const runFile = promisify(execFile);
const sources = new TestFolder();
let tester: Awaited<ReturnType<typeof buildNbdTester>>;
beforeAll(async () => {
  tester = await buildNbdTester(sources.path);
});
afterAll(() => sources[Symbol.dispose]());

let owned: AsyncDisposableStack;
let folder: TestFolder;
let troubles: unknown[];
beforeEach(() => {
  owned = new AsyncDisposableStack();
  folder = owned.use(new TestFolder());
  troubles = [];
});
afterEach(() => owned.disposeAsync());

/** A file of the sources: requests to be replayed. */
function inFolder(name: string): string {
  return join((tester as Built).traces, name);
}

/** Those of the sources that are of no more than so many bytes. */
function hugeTrace(lengthBytesMax: number): string {
  const all = readFileSync(inFolder('integrityhuge-test.tr'));
  const kept: Buffer[] = [];
  for (let at = 0; at < all.length; ) {
    const isRequest = all.readUInt32BE(at) === NBD_REQUEST_MAGIC;
    const end = at + (isRequest ? NBD_REQUEST_BYTES : NBD_SIMPLE_REPLY_BYTES);
    if (isRequest && all.readUInt32BE(end - 4) <= lengthBytesMax) kept.push(all.subarray(at, end));
    at = end;
  }
  const path = folder.file('trace');
  writeFileSync(path, Buffer.concat(kept));
  return path;
}

/** Serves it as `disk`, and returns what runs the tester on that. */
async function serve(context: TestContext, device: BlockDevice, { readOnly = false } = {}) {
  if (tester.kind === 'missing') context.skip(`nbd-tester-client cannot be built here: ${tester.why}`);
  const { program } = tester as Built;
  const socketPath = folder.file('nbd.sock');
  owned.use(
    await NbdServer.listen({
      socketPath,
      exports: [{ name: 'disk', device, readOnly }],
      onTrouble: (thrown) => troubles.push(thrown),
    }),
  );
  return async (...words: readonly string[]): Promise<string> => {
    // Of two options of one kind it takes the last one.
    const options = ['-N', 'disk', '-u', socketPath, ...words];
    const { stdout, stderr } = await runFile(program, options, { timeout: 120_000, maxBuffer: 64 * MIB });
    return stdout + stderr;
  };
}

async function rawDisk(path: string): Promise<BlockDevice> {
  return owned.use(await closing(await FileDevice.open(path))).device;
}

async function epochDisk(path: string): Promise<BlockDevice> {
  return owned.use(await EagerEpochDisk.open(path, (failure) => troubles.push(failure))).disk;
}

async function closing(device: BlockDevice): Promise<AsyncDisposable & { device: BlockDevice }> {
  return { device, [Symbol.asyncDispose]: () => device.close() };
}

function imageOf(sizeBytes: number): string {
  const path = folder.file('image');
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

describe.each([
  { what: 'a raw image', open: rawDisk },
  { what: 'a disk that commits with epochs', open: epochDisk },
])('$what satisfies the tester of the project nbd', ({ open }) => {
  afterEach(() => expect(troubles).toEqual([]));

  test('with its handshake, an option that nobody knows among it', async (context) => {
    const testing = await serve(context, await open(imageOf(SMALL_DISK_BYTES)));
    expect(await testing('-h')).toContain('Handshake test completed');
  });

  test('with requests of more than a mebibyte', async (context) => {
    const testing = await serve(context, await open(imageOf(SMALL_DISK_BYTES)));
    expect(await testing('-o')).toMatch(/(?:OK\s[\s\S]*){3}/);
  });

  test.for([
    { what: 'reads', words: [], said: 'read test (without flushes) complete' },
    { what: 'writes', words: ['-w'], said: 'write test (without flushes) complete' },
    { what: 'writes, flushes and FUA', words: ['-w', '-f'], said: 'write test (with flushes) complete' },
  ])('with $what from the first to the last byte', async ({ words, said }, context) => {
    const testing = await serve(context, await open(imageOf(SMALL_DISK_BYTES)));
    expect(await testing(...words)).toContain(said);
  });

  test('with many small writes at a time, and reads among them that are checked', async (context) => {
    const testing = await serve(context, await open(imageOf(LARGE_DISK_BYTES)));
    expect(await testing('-i', '-t', inFolder('integrity-test.tr'))).toContain('test complete');
  });

  test('with writes and reads of up to 32 MiB that overlap', async (context) => {
    const testing = await serve(context, await open(imageOf(LARGE_DISK_BYTES)));
    expect(await testing('-i', '-t', hugeTrace(NBD_PAYLOAD_BYTES_MAX))).toContain('test complete');
  });

  test('but for requests that are longer than a client may take for possible, which it refuses', async (context) => {
    const testing = await serve(context, await open(imageOf(LARGE_DISK_BYTES)));
    await expect(testing('-i', '-t', hugeTrace(LARGE_DISK_BYTES))).rejects.toMatchObject({
      stderr: expect.stringContaining('Server errored a transaction'),
    });
  });

  test('with the refusal of a write where it is only read', async (context) => {
    const testing = await serve(context, await open(imageOf(SMALL_DISK_BYTES)), { readOnly: true });
    await testing();
    await testing('-w', '-F');
    await expect(testing('-w')).rejects.toMatchObject({ code: 1 });
  });

  test('with the refusal of a name that is not served', async (context) => {
    const testing = await serve(context, await open(imageOf(SMALL_DISK_BYTES)));
    await testing('-N', 'another', '-F');
    await expect(testing('-N', 'another')).rejects.toMatchObject({ code: 1 });
  });
});

test('the tester finds a disk that forgets each third write', async (context) => {
  const disk = new MemoryDisk(LARGE_DISK_BYTES);
  let writes = 0;
  const write = disk.write.bind(disk);
  disk.write = async (...words) => {
    writes += 1;
    if (writes % FORGOTTEN_EACH !== 0) await write(...words);
  };
  const testing = await serve(context, disk);
  await expect(testing('-i', '-t', hugeTrace(NBD_PAYLOAD_BYTES_MAX))).rejects.toMatchObject({
    code: 1,
    stderr: expect.stringContaining('Bad reply data'),
  });
});

test('the sources of packages are looked for where the packages are', () => {
  const lines = '# deb none\ndeb [signed-by=k] file:/d stable main\ndeb-src file:/d stable main\n';
  expect(sourceListOf(lines)).toBe(lines.replace('\ndeb [', '\ndeb-src ['));
  expect(sourceListOf('Types: deb\nURIs: file:/d\n')).toBe('Types: deb-src\nURIs: file:/d\n');
});
