import { execFile } from 'node:child_process';
import { copyFile, mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { systemClock as clock } from '../../src/base/clock.ts';
import { KIB, MIB } from '../../src/base/units.ts';
import { journalPathOf, openJournalFile } from '../../src/block/journal-file.ts';
import { JournaledImage } from '../../src/block/journaled-image.ts';
import { disksOf } from '../../src/config/spec-disks.ts';
import { parseVmSpec } from '../../src/config/vm-spec.ts';
import { openLower } from '../../src/keeper/lower-device.ts';
import type { DiskFormat } from './two-host-files.ts';

const run = promisify(execFile);

/** For the kernel command line of the demo guest: Redis keeps its append-only file on the first disk. */
export const DATA_ON_FIRST_DISK = 'us.data=/dev/vda';
export const DATA_DISK_BYTES = 16 * MIB;
/** What e2fsck may have to do after a loss of power; anything else is damage. */
const USUAL_REPAIRS =
  /recovering journal|Clearing orphaned inode|Setting free (?:inodes|blocks) count|: clean,|^$/;
const AOF_FOLDER = 'appendonlydir';
const AOF = 'appendonly.aof';

/** What is wrong with a disk that a guest has used, and what its Redis has in its file. */
export interface DataDiskVerdict {
  /** Empty where file system and append-only file are sound. */
  readonly complaints: readonly string[];
  /** Names in its root, in order. */
  readonly files: readonly string[];
  /** Numbers of the writes of the only client (`RedisLoad`), in the order in which they were done. */
  readonly writes: readonly number[];
}

/** An image with an empty file system. Of `mke2fs`, which never stops this process: the folder may be one that it serves. */
export async function makeDataDisk(path: string): Promise<void> {
  await writeFile(path, '');
  await truncate(path, DATA_DISK_BYTES);
  await makeExt4(path, { sizeBytes: DATA_DISK_BYTES });
}

/** The same as a qcow2 image. */
export async function makeQcowDataDisk(path: string): Promise<void> {
  const raw = `${path}.raw`;
  await makeDataDisk(raw);
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, path]);
  await rm(raw);
}

/** Nothing of it is left to the first mount, so that it is small and quick. */
export async function makeExt4(path: string, { sizeBytes }: { sizeBytes: number }): Promise<void> {
  const now = 'lazy_itable_init=0,lazy_journal_init=0,nodiscard';
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-b', '4096', '-E', now, path, `${sizeBytes / KIB}k`]);
}

/** As after a loss of power: on copies, brought up to its journal as at the next start of its VM. Nobody may use the image. */
export async function checkDataDisk(image: string, format: DiskFormat = 'raw'): Promise<DataDiskVerdict> {
  const folder = await mkdtemp(join(tmpdir(), 'us-data-disk-'));
  try {
    const kept = join(folder, `image.${format}`);
    await copyFile(image, kept);
    await copyFile(`${image}.journal`, `${kept}.journal`).catch(unlessMissing);
    await bringUp(kept, { format, folder });
    const copy = format === 'raw' ? kept : join(folder, 'content');
    if (copy !== kept) await run('qemu-img', ['convert', '-f', format, '-O', 'raw', kept, copy]);
    const complaints = await complaintsOfFileSystem(copy);
    await run('debugfs', ['-R', `rdump /${AOF_FOLDER} ${folder}`, copy]);
    const { complaints: ofRedis, writes } = await judgeAof(join(folder, AOF_FOLDER));
    return { complaints: [...complaints, ...ofRedis], files: await filesIn(copy), writes };
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** The file of this name in a file system that lost its power. @throws Error when that is damaged, or has no such file */
export async function takeOut(name: string, { from, to }: { from: string; to: string }): Promise<void> {
  const complaints = await complaintsOfFileSystem(from);
  if (complaints.length > 0) throw new Error(complaints.join('\n'));
  const { stderr } = await run('debugfs', ['-R', `dump /${name} ${to}`, from]);
  if (stderr.includes('File not found')) throw new Error(stderr);
}

/** What `start` of a VM does with each disk before its QEMU opens it. */
async function bringUp(
  path: string,
  { format, folder }: { format: DiskFormat; folder: string },
): Promise<void> {
  const yaml = `name: a\nmemory: 64M\nboot: {kernel: k}\ndisks: [{path: ${path}, format: ${format}}]\n`;
  for (const disk of disksOf(parseVmSpec(yaml, { source: path }))) {
    const device = await openLower({ disk, runDirectory: folder, user: undefined, clock });
    const journal = await openJournalFile(journalPathOf(path));
    const opened = await JournaledImage.open({ device, journal });
    await opened.close();
  }
}

/** Replays its journal, and then has every structure of it checked. */
async function complaintsOfFileSystem(image: string): Promise<string[]> {
  const repaired = await output('e2fsck', ['-p', image]);
  const unusual = repaired.text.split('\n').filter((line) => !USUAL_REPAIRS.test(line));
  const checked = await output('e2fsck', ['-f', '-n', image]);
  return [...unusual, ...(checked.exitCode === 0 ? [] : [checked.text])];
}

async function judgeAof(folder: string): Promise<Pick<DataDiskVerdict, 'complaints' | 'writes'>> {
  const checked = await output('redis-check-aof', [join(folder, `${AOF}.manifest`)]);
  const content = await readFile(join(folder, `${AOF}.1.incr.aof`), 'latin1').catch(() => '');
  const sets = content.matchAll(/\r\nSET\r\n\$\d+\r\n[0-9a-f]+:0:(\d+)\r\n\$\d+\r\n[0-9a-f]+:0=(\d+)\r\n/g);
  const writes = [...sets].map(([, key, value]) => (key === value ? Number(value) : Number.NaN));
  return { complaints: checked.exitCode === 0 ? [] : [checked.text], writes };
}

async function filesIn(image: string): Promise<string[]> {
  const { stdout } = await run('debugfs', ['-R', 'ls -p /', image]);
  // /inode/mode/user/group/name/size/
  const names = stdout.split('\n').map((line) => line.split('/')[5] ?? '');
  return names.filter((name) => !['', '.', '..'].includes(name)).toSorted();
}

async function output(
  program: string,
  words: readonly string[],
): Promise<{ exitCode: number; text: string }> {
  try {
    const { stdout } = await run(program, words);
    return { exitCode: 0, text: stdout };
  } catch (thrown) {
    const { code, stdout, stderr } = thrown as { code: unknown; stdout: string; stderr: string };
    if (typeof code !== 'number') throw thrown;
    return { exitCode: code, text: `${stdout}${stderr}` };
  }
}

function unlessMissing(thrown: NodeJS.ErrnoException): void {
  if (thrown.code !== 'ENOENT') throw thrown;
}
