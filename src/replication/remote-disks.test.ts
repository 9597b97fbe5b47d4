import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { MIB } from '../base/units.ts';
import { FileDevice } from '../block/file-device.ts';
import { openJournalFile } from '../block/journal-file.ts';
import { JournaledImage } from '../block/journaled-image.ts';
import { MESSAGE } from './peer-messages.ts';
import { DisksWorld, type DisksWorldOptions } from './remote-disks-fixture.ts';
import { ReplicationError } from './replication-error.ts';

/** Some regions, and an end that is neither a region nor a block. */
const DISK_BYTES = 2 * MIB + 4096 + 512;

let directory: string;
let options: DisksWorldOptions;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('disks')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
  options = { directory, imagePath: join(directory, 'root.img'), copyPath: join(directory, 'copy.img') };
  makeDisk(options.imagePath, DISK_BYTES);
});

/** Data at the beginning and in the middle, holes elsewhere. */
function makeDisk(path: string, sizeBytes: number): void {
  const fd = openSync(path, 'wx');
  ftruncateSync(fd, sizeBytes);
  writeSync(fd, Buffer.alloc(70_000, 1), 0, 70_000, 0);
  writeSync(fd, Buffer.alloc(200_000, 2), 0, 200_000, MIB);
  closeSync(fd);
}

/** The first copy and the epoch that completes it. */
async function synchronise(world: DisksWorld): Promise<Buffer> {
  await world.copy.copy();
  const { content } = await world.epoch();
  await world.image.settle();
  return content;
}

async function openAsDisk(path: string): Promise<JournaledImage> {
  const journal = await openJournalFile(`${path}.journal`);
  try {
    return await JournaledImage.open({ device: await FileDevice.open(path), journal });
  } catch (cause) {
    await journal.close();
    throw cause;
  }
}

const place = fc
  .tuple(fc.nat(DISK_BYTES - 1), fc.integer({ min: 1, max: 100_000 }), fc.boolean())
  .map(([at, lengthBytes, isAligned]) => {
    const offset = isAligned ? at - (at % 4096) : at;
    return { offset, lengthBytes: Math.min(lengthBytes, DISK_BYTES - offset) };
  });
const guestWrite = fc.record({ place, value: fc.nat(3) });
type GuestWrite = typeof guestWrite extends fc.Arbitrary<infer Found> ? Found : never;

function carryOut(world: DisksWorld, { place: { offset, lengthBytes }, value }: GuestWrite): Promise<void> {
  return value === 0
    ? world.disk.zero(offset, lengthBytes, { mayPunch: true })
    : world.disk.write(offset, Buffer.alloc(lengthBytes, value));
}

describe('the copy of a disk on another host', () => {
  it('is the disk as of each epoch, whatever is written while it is made, anew or from an older copy', async () => {
    const writes = fc.array(guestWrite, { maxLength: 12 });
    await fc.assert(
      fc.asyncProperty(writes, fc.array(writes, { minLength: 1, maxLength: 4 }), async (during, epochs) => {
        // The second time it finds what the first one left.
        for (let round = 0; round < 2; round += 1) {
          await using world = await DisksWorld.open(options);
          const left = [...during];
          const written: Promise<void>[] = [];
          world.failpoints.arm('disks.copy', () => {
            const next = left.pop();
            if (next !== undefined) written.push(carryOut(world, next));
          });
          await world.copy.copy();
          for (const write of left.splice(0)) written.push(carryOut(world, write));
          await world.copy.catchUp();
          await Promise.all(written);
          for (const writesOfEpoch of epochs) {
            for (const write of writesOfEpoch) await carryOut(world, write);
            const { content, epoch } = await world.epoch();
            expect((await world.image.settle()).epoch).toBe(epoch);
            expect(world.copied().equals(content), `as of epoch ${epoch}`).toBe(true);
          }
        }
      }),
      { numRuns: 8 },
    );
  });

  it('lacks what is written while it is made where nobody marks that (control)', async () => {
    await using world = await DisksWorld.open(options);
    world.copy[Symbol.dispose]();
    let isWritten = false;
    world.failpoints.arm('disks.copy', async () => {
      if (!isWritten) await world.disk.write(0, Buffer.alloc(4096, 9));
      isWritten = true;
    });
    const content = await synchronise(world);
    expect(world.copied().equals(content)).toBe(false);
  });

  it('takes neither holes nor zeros over the wire, and keeps them as holes', async () => {
    await using world = await DisksWorld.open(options);
    await world.disk.write(512 * 1024, Buffer.alloc(300_000));
    await synchronise(world);
    expect(world.copiedBytes).toBeLessThan(6 * 64 * 1024 + 1000);
    expect(statSync(options.copyPath).blocks * 512).toBeLessThan(6 * 64 * 1024 + 1000);
  });

  it('takes only what differs where an older copy is there, in both directions', async () => {
    {
      await using world = await DisksWorld.open(options);
      await synchronise(world);
    }
    {
      await using world = await DisksWorld.open(options);
      await world.disk.write(MIB + 5000, Buffer.alloc(10, 77));
      await world.disk.zero(MIB + 128 * 1024, 64 * 1024, { mayPunch: true });
      await synchronise(world);
      expect(world.copiedBytes).toBeLessThan(3 * 64 * 1024);
    }
    // The host of the copy acts, and its disk comes back over the old one.
    const back = { ...options, imagePath: options.copyPath, copyPath: options.imagePath, token: 2 };
    await using world = await DisksWorld.open(back);
    await world.disk.write(0, Buffer.alloc(10, 78));
    const content = await synchronise(world);
    expect(world.copiedBytes).toBeLessThan(3 * 64 * 1024);
    expect(world.copied().equals(content)).toBe(true);
  });

  it('is no disk to anybody before an epoch has completed it', async () => {
    {
      await using world = await DisksWorld.open(options);
      await world.copy.copy();
    }
    await expect(openAsDisk(options.copyPath)).rejects.toThrow(
      expect.objectContaining({ code: 'BLOCK_COPY_PARTIAL' }),
    );
    {
      await using world = await DisksWorld.open(options);
      await synchronise(world);
    }
    await (await openAsDisk(options.copyPath)).close();
  });

  it('is not made over an image of something else, nor by a side that was superseded', async () => {
    const foreign = expect.objectContaining({ code: 'BLOCK_COPY_FOREIGN' });
    makeDisk(options.copyPath, DISK_BYTES);
    const before = statSync(options.copyPath).mtimeMs;
    await expect(DisksWorld.open(options)).rejects.toThrow(foreign);
    // As a disk of its own, with a journal of its own.
    await (await openAsDisk(options.copyPath)).close();
    await expect(DisksWorld.open(options)).rejects.toThrow(foreign);
    expect(statSync(options.copyPath).mtimeMs).toBe(before);
    rmSync(options.copyPath);
    rmSync(`${options.copyPath}.journal`);
    mkdirSync(options.copyPath);
    await expect(DisksWorld.open(options)).rejects.toThrow(foreign);
    rmSync(options.copyPath, { recursive: true });
    {
      await using world = await DisksWorld.open({ ...options, token: 3 });
      await synchronise(world);
    }
    await expect(DisksWorld.open({ ...options, token: 2 })).rejects.toThrow(
      expect.objectContaining({ code: 'BLOCK_TOKEN_STALE' }),
    );
  });
});

describe('writes to disks on their way to another host', () => {
  it('are not acknowledged, nor carried out, when a bit of them was flipped or a message lost', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(), fc.boolean(), async (at, isLost) => {
        let isTampered = false;
        await using world = await DisksWorld.open({
          ...options,
          tamper: (message) => {
            if (message.type !== MESSAGE.writes || !isTampered) return message;
            if (isLost) return undefined;
            const body = Buffer.from(message.body);
            body.writeUInt8(body.readUInt8(at % body.length) ^ 4, at % body.length);
            return { ...message, body };
          },
        });
        const content = await synchronise(world);
        isTampered = true;
        await world.disk.write(0, Buffer.alloc(20_000, 5));
        const epoch = world.epoch().then(() => 'acknowledged');
        epoch.catch(() => {});
        const before = world.image.committed;
        expect(await Promise.race([epoch, world.received])).toBeInstanceOf(ReplicationError);
        expect((await world.image.settle()).epoch).toBe(before);
        expect(world.copied().equals(content)).toBe(true);
      }),
      { numRuns: 10 },
    );
  });

  it.each([true, false])(
    'are acknowledged when they are safe in the journal, if that is asked for: %s',
    async (durable) => {
      await using world = await DisksWorld.open({ ...options, durable });
      await synchronise(world);
      const reached = Promise.withResolvers<void>();
      const mayGoOn = Promise.withResolvers<void>();
      world.failpoints.arm('disks.before-journal', async () => {
        reached.resolve();
        await mayGoOn.promise;
      });
      // Whatever becomes of this: the world cannot end before.
      using _ = { [Symbol.dispose]: () => mayGoOn.resolve() };
      await world.disk.write(0, Buffer.alloc(4096, 3));
      let isHeld = false;
      const epoch = world.epoch().then(() => {
        isHeld = true;
      });
      await reached.promise;
      if (!durable) await epoch;
      for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
      expect(isHeld).toBe(!durable);
      mayGoOn.resolve();
      await epoch;
    },
  );

  it('of more epochs than there are slots wait for a disk that is slow', async () => {
    await using world = await DisksWorld.open(options);
    await synchronise(world);
    const mayGoOn = Promise.withResolvers<void>();
    world.failpoints.arm('disks.before-journal', () => mayGoOn.promise);
    let acknowledged = 0;
    const epochs = (async () => {
      for (let value = 1; value <= 10; value += 1) {
        await world.disk.write(value * 4096, Buffer.alloc(4096, value));
        await world.epoch();
        acknowledged += 1;
      }
    })();
    for (let turn = 0; turn < 100; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    expect(acknowledged).toBeLessThanOrEqual(3);
    mayGoOn.resolve();
    await epochs;
    await world.image.settle();
    expect(world.copied().equals(await world.content())).toBe(true);
  });

  it('for which the disk has no room lose the shadow, and say why', async () => {
    using tmpfs = new SmallTmpfs(2 * MIB);
    await using world = await DisksWorld.open({ ...options, copyPath: join(tmpfs.path, 'copy.img') });
    await synchronise(world);
    await world.disk.write(0, Buffer.alloc(DISK_BYTES - 512, 3));
    await world.epoch();
    const failure = await world.disks.failed;
    expect(failure.code).toBe('BLOCK_DISK_FAILED');
    expect(failure.message).toContain('ENOSPC');
    await expect(world.image.settle()).rejects.toThrow(failure);
    await expect(world.disks.release()).rejects.toThrow(failure);
  });

  it('are carried on by whoever takes over, without the image being opened again', async () => {
    await using world = await DisksWorld.open(options);
    await synchronise(world);
    await world.disk.write(4096, Buffer.alloc(4096, 8));
    const { content, epoch } = await world.epoch();
    await world.disk.write(0, Buffer.alloc(4096, 9));
    await world.image.settle();
    const image = (await world.disks.release()).get('root');
    expect(image?.position).toEqual({ epoch, token: 1 });
    const bytes = Buffer.alloc(DISK_BYTES);
    await image?.device.read(0, bytes);
    expect(bytes.equals(content)).toBe(true);
    await image?.close();
  });
});
