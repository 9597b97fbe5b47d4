import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { journalPathOf, openJournalFile } from '../block/journal-file.ts';
import { JournaledImage } from '../block/journaled-image.ts';
import { NbdClientDevice } from '../block/nbd-client-device.ts';
import { disksOf, type SpecDisk } from '../config/spec-disks.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { DisksWorld, type DisksWorldOptions, type TargetOf } from '../replication/remote-disks-fixture.ts';
import { openLower } from './lower-device.ts';
import { openCopies } from './shadow-disk-opening.ts';
import { VmDisks } from './vm-disks.ts';

const DISK_BYTES = 4 * MIB + 512;
const ID = 'disk0';

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('qcow2')}-`);
  for (const host of ['a', 'b']) mkdirSync(join(directory, host));
  onTestFinished(() => {
    // Of whatever became of a disk: its processes have ended with it.
    expect(processesAt(directory)).toEqual([]);
    rmSync(directory, { recursive: true });
  });
});

type Host = 'a' | 'b';

const pathOf = (host: Host) => join(directory, host, 'disk.qcow2');
const optionsOf = (host: Host) => ({ runDirectory: join(directory, host), user: undefined, clock });

function specOf(host: Host) {
  const yaml = `name: a\nmemory: 64M\nboot: {kernel: k}\ndisks: [{path: ${pathOf(host)}, format: qcow2}]\n`;
  return parseVmSpec(yaml, { source: 'a.yaml' });
}

function diskOf(host: Host): SpecDisk {
  const [disk] = disksOf(specOf(host));
  if (disk === undefined) throw new Error('it has a disk');
  return disk;
}

async function openCopy(host: Host, { diskBytes: sizeBytes, ...of }: TargetOf) {
  const disks = [{ name: ID, sizeBytes, usedBytes: 0, ...of }];
  const [copy] = await openCopies(specOf(host), { disks }, optionsOf(host));
  if (copy === undefined) throw new Error('it has a copy');
  return { ...copy, isNew: !copy.isHeld };
}

/** The disk acts on this host, and is copied to the other one. */
function world(from: Host, more: Partial<DisksWorldOptions> = {}): Promise<DisksWorld> {
  const to = from === 'a' ? 'b' : 'a';
  return DisksWorld.open({
    ...{ directory, imagePath: pathOf(from), copyPath: pathOf(to) },
    openSource: () => openLower({ ...optionsOf(from), disk: diskOf(from) }),
    openTarget: (of) => openCopy(to, of),
    ...more,
  });
}

function processesAt(path: string): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(path);
      } catch {
        return false;
      }
    });
}

/** Of the process that has the image of this host. */
const layerOf = (host: Host) => Number(readFileSync(join(directory, host, `lower-${ID}`, 'pid'), 'utf8'));

const qemuImg = (...words: string[]) => execFileSync('qemu-img', words, { encoding: 'utf8', stdio: 'pipe' });

async function openAsDisk(host: Host): Promise<JournaledImage> {
  const device = await openLower({ ...optionsOf(host), disk: diskOf(host) });
  const journal = await openJournalFile(journalPathOf(pathOf(host)));
  try {
    return await JournaledImage.open({ device, journal });
  } catch (thrown) {
    await journal.close();
    await device.close();
    throw thrown;
  }
}

async function contentOf(host: Host): Promise<Buffer> {
  await using image = await openAsDisk(host);
  const bytes = Buffer.alloc(DISK_BYTES);
  await image.device.read(0, bytes);
  return bytes;
}

async function synchronise(disks: DisksWorld): Promise<Buffer> {
  await disks.copy.copy();
  const { content } = await disks.epoch();
  await disks.image.settle();
  return content;
}

describe('the copy of a qcow2 image on another host', () => {
  it('is made there, receives epochs, and goes back by what differs', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', pathOf('a'), String(DISK_BYTES));
    {
      await using disks = await world('a');
      await disks.disk.write(70_000, Buffer.alloc(MIB, 1));
      await disks.disk.write(3 * MIB, Buffer.alloc(300_000));
      let isWritten = false;
      disks.failpoints.arm('disks.copy', async () => {
        if (!isWritten) await disks.disk.write(100, Buffer.alloc(5000, 2));
        isWritten = true;
      });
      await synchronise(disks);
      for (let value = 3; value < 8; value += 1) {
        await disks.disk.write(value * 100_000, Buffer.alloc(150_000, value));
        await disks.disk.zero(value * 200_000, 70_000, { mayPunch: true });
        await disks.epoch();
      }
      await disks.image.settle();
    }
    qemuImg('compare', pathOf('a'), pathOf('b'));
    expect(JSON.parse(qemuImg('info', '--output=json', pathOf('b')))).toMatchObject({
      ...{ format: 'qcow2', 'virtual-size': DISK_BYTES },
    });
    {
      // b acts, and what lies on a is an older copy of it.
      await using disks = await world('b', { token: 2 });
      await disks.disk.write(2 * MIB, Buffer.alloc(10, 9));
      await synchronise(disks);
      expect(disks.copiedBytes).toBeLessThan(3 * 64 * 1024);
    }
    qemuImg('compare', pathOf('a'), pathOf('b'));
    for (const host of ['a', 'b'] as const) qemuImg('check', '-q', pathOf(host));
  });

  it('is not made over what is none, nor where the older one has another size', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', pathOf('a'), String(DISK_BYTES));
    qemuImg('create', '-q', '-f', 'qcow2', pathOf('b'), String(DISK_BYTES));
    const before = readFileSync(pathOf('b'));
    await expect(world('a')).rejects.toMatchObject({ code: 'BLOCK_COPY_FOREIGN' });
    expect(readFileSync(pathOf('b')).equals(before)).toBe(true);
    expect(existsSync(`${pathOf('b')}.journal`)).toBe(false);
    rmSync(pathOf('b'));
    let content: Buffer;
    {
      await using disks = await world('a');
      await disks.disk.write(0, Buffer.alloc(MIB, 5));
      content = await synchronise(disks);
    }
    const { identity } = await withImage('b');
    const larger = { identity, diskBytes: 2 * DISK_BYTES, token: 1 };
    await expect(openCopy('b', larger)).rejects.toMatchObject({ code: 'BLOCK_IMAGE_UNFIT' });
    // It is the disk that it was.
    expect((await contentOf('b')).equals(content)).toBe(true);
  });

  it('is lost to its shadow when the process that has it dies, though nothing is being written', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', pathOf('a'), String(DISK_BYTES));
    await using disks = await world('a');
    await synchronise(disks);
    process.kill(layerOf('b'), 'SIGKILL');
    expect(await disks.disks.failed).toMatchObject({ code: 'BLOCK_DISK_FAILED' });
    await expect(disks.disks.release()).rejects.toMatchObject({ code: 'BLOCK_DISK_FAILED' });
  });

  it('is used by one at a time', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', pathOf('a'), String(DISK_BYTES));
    await using disks = await world('a');
    await synchronise(disks);
    for (const host of ['a', 'b'] as const)
      expect(() => qemuImg('resize', pathOf(host), '+1M')).toThrow(/lock/);
  });
});

describe('a qcow2 disk of a VM that acts', () => {
  it('fails all requests of its guest when the process that has it dies, and leaves none behind', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', pathOf('a'), String(DISK_BYTES));
    const disks = await VmDisks.open(
      { served: [diskOf('a')], recovered: [] },
      { ...optionsOf('a'), token: () => 1, left: undefined },
    );
    const socketPath = join(directory, 'disks');
    await disks.serve({ instance: 1, socketPath, owner: undefined });
    const guest = await NbdClientDevice.connect(socketPath, { exportName: ID });
    await guest.write(0, Buffer.alloc(512, 1));
    process.kill(layerOf('a'), 'SIGKILL');
    await expect(guest.write(0, Buffer.alloc(512, 2))).rejects.toMatchObject({ errnoName: 'EIO' });
    await expect(guest.read(0, Buffer.alloc(512))).rejects.toMatchObject({ errnoName: 'EIO' });
    await guest.close();
    await disks[Symbol.asyncDispose]().catch(() => {});
    expect(processesAt(directory)).toEqual([]);
  });
});

async function withImage(host: Host): Promise<{ identity: string }> {
  await using image = await openAsDisk(host);
  return { identity: image.identity };
}

const WRITES = 12;
const PIECE_BYTES = 64 * 1024;

/** The disk as of two epochs. The process that has the copy is killed when so many writes of the second are carried out. */
async function killedAfter(writesMax: number): Promise<readonly Buffer[]> {
  qemuImg('create', '-q', '-f', 'qcow2', pathOf('a'), String(DISK_BYTES));
  let left = Number.POSITIVE_INFINITY;
  const carriedOut: Promise<void>[] = [];
  await using disks = await world('a', {
    durable: true,
    openTarget: async (of) => {
      const target = await openCopy('b', of);
      const { device } = target.image;
      const write = device.write.bind(device);
      device.write = async (...args) => {
        left -= 1;
        const isLate = left < 0;
        const isFirst = left === -1;
        if (isLate) await Promise.all(carriedOut);
        if (isFirst) process.kill(layerOf('b'), 'SIGKILL');
        const written = write(...args);
        if (!isLate) carriedOut.push(written);
        await written;
      };
      return target;
    },
  });
  await synchronise(disks);
  const states: Buffer[] = [];
  for (const value of [100, 200]) {
    for (let piece = 0; piece < WRITES; piece += 1)
      await disks.disk.write(2 * piece * PIECE_BYTES, Buffer.alloc(PIECE_BYTES, value + piece));
    // Acknowledged when it is in the journal.
    states.push((await disks.epoch()).content);
    if (value === 200) continue;
    await disks.image.settle();
    left = writesMax;
  }
  await disks.disks.failed;
  return states;
}

describe('a qcow2 copy whose process is killed while an epoch is being written', () => {
  it.each([0, WRITES / 2])('after %i writes is that epoch, once its journal was read', async (writesMax) => {
    const states = await killedAfter(writesMax);
    const found = await contentOf('b');
    expect(states.findIndex((state) => state.equals(found))).toBe(1);
    qemuImg('check', '-q', '-r', 'leaks', pathOf('b'));
  });

  it('is no epoch without its journal (control)', async () => {
    const states = await killedAfter(WRITES / 2);
    rmSync(`${pathOf('b')}.journal`);
    const found = await contentOf('b');
    expect(states.some((state) => state.equals(found))).toBe(false);
  });
});
