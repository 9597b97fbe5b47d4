import { execFile, execFileSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, type TestContext, test } from 'vitest';
import { MIB } from '../../src/base/units.ts';
import type { BlockDevice } from '../../src/block/block-device.ts';
import { FileDevice } from '../../src/block/file-device.ts';
import { TestFolder } from '../../src/block/nbd-fixture.ts';
import { NbdServer } from '../../src/block/nbd-server.ts';
import { EagerEpochDisk } from '../kit/eager-epoch-disk.ts';

const run = promisify(execFile);
const DISK_BYTES = 64 * MIB;

let folder: TestFolder;
let server: NbdServer;
let device: BlockDevice;
let uri: string;
let image: string;
let troubles: unknown[];
/** The disk of that kind. */
let eager: EagerEpochDisk | undefined;

async function tool(context: TestContext, ...[program, ...words]: [string, ...string[]]): Promise<string> {
  try {
    execFileSync('which', [program], { stdio: 'ignore' });
  } catch {
    context.skip(`${program} is not installed: see the list in ./run`);
  }
  const { stdout } = await run(program, words, { cwd: folder.path, maxBuffer: 64 * MIB });
  return stdout;
}

function hashOf(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}

async function epochDisk(path: string): Promise<BlockDevice> {
  eager = await EagerEpochDisk.open(path, (failure) => troubles.push(failure));
  return eager.disk;
}

describe.each([
  { what: 'a raw image', open: (path: string): Promise<BlockDevice> => FileDevice.open(path) },
  { what: 'a disk that commits with epochs', open: epochDisk },
])('$what, served over NBD,', ({ what, open }) => {
  beforeEach(async () => {
    folder = new TestFolder();
    troubles = [];
    eager = undefined;
    image = folder.file('image');
    writeFileSync(image, randomBytes(8 * MIB));
    truncateSync(image, DISK_BYTES);
    device = await open(image);
    const socketPath = folder.file('nbd.sock');
    server = await NbdServer.listen({
      socketPath,
      exports: [{ name: '', description: what, device, readOnly: false }],
      onTrouble: (thrown) => troubles.push(thrown),
    });
    uri = `nbd+unix:///?socket=${socketPath}`;
  });

  afterEach(async () => {
    await server.close();
    await device.close();
    folder[Symbol.dispose]();
    expect(troubles).toEqual([]);
  });

  /** All of it in the image, so that it can be compared. */
  async function settle(): Promise<void> {
    await server.close();
    eager?.commit();
    await device.close();
  }

  test('tells nbdinfo what it is and where it has holes', async (context) => {
    const { exports } = JSON.parse(await tool(context, 'nbdinfo', '--json', uri));
    expect(exports).toEqual([
      expect.objectContaining({
        description: what,
        contexts: ['base:allocation'],
        'export-size': DISK_BYTES,
        is_read_only: false,
        can_cache: true,
        can_df: true,
        can_flush: true,
        can_fua: true,
        can_multi_conn: true,
        can_trim: true,
        can_zero: true,
        can_fast_zero: what !== 'a raw image',
      }),
    ]);
    const map: unknown = JSON.parse(await tool(context, 'nbdinfo', '--map', '--json', uri));
    expect(map).toEqual([
      { offset: 0, length: 8 * MIB, type: 0, description: 'data' },
      { offset: 8 * MIB, length: 56 * MIB, type: 3, description: 'hole,zero' },
    ]);
  });

  test('is the same after nbdcopy has copied it out and in, with many connections', async (context) => {
    await tool(context, 'nbdcopy', '--connections=4', uri, folder.file('out'));
    expect(hashOf(folder.file('out'))).toBe(hashOf(image));
    const other = randomBytes(DISK_BYTES);
    other.fill(0, 20 * MIB, 30 * MIB);
    writeFileSync(folder.file('in'), other);
    await tool(context, 'nbdcopy', '--connections=4', '--flush', folder.file('in'), uri);
    await tool(context, 'nbdcopy', uri, folder.file('back'));
    expect(hashOf(folder.file('back'))).toBe(hashOf(folder.file('in')));
    await settle();
    expect(hashOf(image)).toBe(hashOf(folder.file('in')));
    if (eager !== undefined) expect(eager.epochs).toBeGreaterThan(4);
  });

  test('is the same for qemu-img, which converts, compares and maps it', async (context) => {
    await tool(context, 'qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', uri, folder.file('copy.qcow2'));
    await tool(context, 'qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', uri, folder.file('copy.qcow2'));
    await tool(context, 'qemu-io', '-f', 'raw', '-c', 'write -P 9 30M 1000', uri);
    // It would notice a difference.
    const compare = tool(
      context,
      'qemu-img',
      'compare',
      '-f',
      'raw',
      '-F',
      'qcow2',
      uri,
      folder.file('copy.qcow2'),
    );
    await expect(compare).rejects.toMatchObject({ code: 1 });
    await tool(
      context,
      'qemu-img',
      'convert',
      '-n',
      '-f',
      'qcow2',
      '-O',
      'raw',
      folder.file('copy.qcow2'),
      uri,
    );
    await tool(context, 'qemu-img', 'compare', '-f', 'raw', '-F', 'qcow2', uri, folder.file('copy.qcow2'));
    const map = JSON.parse(await tool(context, 'qemu-img', 'map', '-f', 'raw', '--output=json', uri));
    expect(map[0]).toMatchObject({ start: 0, length: 8 * MIB, data: true });
  });

  test('holds the patterns that qemu-io writes, aligned or not, and zeros where it discards', async (context) => {
    const steps = [
      'write -P 1 0 1M',
      'write -f -P 2 4095 2',
      'write -z 8191 4098',
      'write -z -u 1M 1M',
      'discard 512k 64k',
      'writev -P 3 123456 4k 1k 512',
      'flush',
      'read -P 1 0 4095',
      'read -P 2 4095 2',
      'read -P 1 4097 4094',
      'read -P 0 8191 4098',
      'read -P 0 1M 1M',
      'read -P 0 512k 64k',
      'read -P 3 123456 5632',
    ];
    const said = await tool(context, 'qemu-io', '-f', 'raw', ...steps.flatMap((step) => ['-c', step]), uri);
    expect(said).not.toMatch(/verification failed|error/i);
    // It would notice other bytes.
    expect(
      await run('qemu-io', ['-f', 'raw', '-c', 'read -P 4 0 512', uri]).catch(({ stdout }) => ({ stdout })),
    ).toMatchObject({
      stdout: expect.stringContaining('verification failed'),
    });
    await settle();
    expect([...readFileSync(image).subarray(4094, 4098)]).toEqual([1, 2, 2, 1]);
  });

  test('serves qemu-img bench, with requests in flight and flushes', async (context) => {
    const words = ['bench', '-f', 'raw', '-c', '2000', '-d', '32', '-s', '4096'];
    expect(await tool(context, 'qemu-img', ...words, uri)).toContain('Run completed');
    expect(await tool(context, 'qemu-img', ...words, '-w', '--flush-interval=64', uri)).toContain(
      'Run completed',
    );
  });

  test('gives fio back what it wrote at random, many requests at a time', async (context) => {
    const words = [
      ...['--name=verify', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', '--bsrange=512-32k'],
      ...[
        '--size=16m',
        '--iodepth=32',
        '--verify=crc32c',
        '--verify_fatal=1',
        '--do_verify=1',
        '--randseed=7',
      ],
      ...['--output-format=json', `--output=${folder.file('fio.json')}`],
    ];
    await tool(context, 'fio', ...words);
    const { jobs } = JSON.parse(readFileSync(folder.file('fio.json'), 'utf8'));
    expect(jobs).toEqual([expect.objectContaining({ error: 0 })]);
    // All was read again to be verified.
    expect(jobs[0].read.io_bytes).toBeGreaterThan(15 * MIB);
  });
});
