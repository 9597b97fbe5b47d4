import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { epochId } from '../epoch/epoch-id.ts';
import type { BlockDevice } from './block-device.ts';
import { EpochDisk } from './epoch-disk.ts';
import { JournaledImage } from './journaled-image.ts';
import { PowerLog } from './power-fixture.ts';
import { TrialDisk } from './trial-disk.ts';
import { BLOCK_BYTES } from './write-set.ts';

/** The last block is a part of one. */
const DISK_BYTES = 8 * BLOCK_BYTES - 512;
const MOMENT = epochId(2);
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** What is read and written takes some turns, so that others come between. */
function slow(device: BlockDevice): BlockDevice {
  return {
    ...device,
    read: async (offset, into) => {
      const half = Math.floor(into.length / 2);
      await device.read(offset, into.subarray(0, half));
      await turn();
      await device.read(offset + half, into.subarray(half));
    },
    write: async (offset, bytes, options) => {
      const half = Math.floor(bytes.length / 2);
      await device.write(offset, bytes.subarray(0, half), options);
      await turn();
      await device.write(offset + half, bytes.subarray(half), options);
    },
  };
}

async function opened({ keptBytesMax = 1 << 20, writtenBytesMax = 1 << 20 } = {}) {
  const log = new PowerLog({ image: Buffer.alloc(DISK_BYTES, 0xee), journal: Buffer.alloc(0) });
  const image = await JournaledImage.open({ device: slow(log.device()), journal: log.journalFile() });
  const disk = new EpochDisk({
    ...{ image, mode: 'in-sync', heldBytesMax: 1 << 20 },
    ...{ token: () => 1, onCutWanted: () => {}, onFailed: () => {} },
  });
  onTestFinished(() => disk.close().catch(() => {}));
  const trial = new TrialDisk({ image: image.device, writtenBytesMax });
  const begin = () => trial.begin(image.holdMoment(MOMENT, { keptBytesMax }));
  return { image, disk, trial, begin };
}

async function commit(disk: EpochDisk, epoch: number): Promise<void> {
  disk.seal(epochId(epoch));
  disk.commit(epochId(epoch));
}

async function contentOf(disk: TrialDisk): Promise<Buffer> {
  const content = Buffer.alloc(DISK_BYTES);
  await disk.read(0, content);
  return content;
}

const write = fc
  .tuple(
    fc.nat({ max: DISK_BYTES - 1 }),
    fc.integer({ min: 1, max: 3 * BLOCK_BYTES }),
    fc.integer({ min: 1, max: 255 }),
  )
  .map(([offset, length, byte]) => ({
    offset,
    bytes: Buffer.alloc(Math.min(length, DISK_BYTES - offset), byte),
  }));
const writes = fc.array(write, { maxLength: 4 });

describe('a disk that is tried out', () => {
  test('is as of its moment, with its own writes, whatever is committed to the image meanwhile', async () => {
    await fc.assert(
      fc.asyncProperty(writes, writes, fc.array(writes, { maxLength: 4 }), async (before, own, after) => {
        const { disk, trial, begin } = await opened();
        const reference = Buffer.alloc(DISK_BYTES, 0xee);
        for (const { offset, bytes } of before) {
          reference.set(bytes, offset);
          await disk.write(offset, Buffer.from(bytes));
        }
        await commit(disk, MOMENT);
        // On its way to the image still.
        begin();
        const goOn = (async () => {
          for (const [index, some] of after.entries()) {
            for (const { offset, bytes } of some) await disk.write(offset, Buffer.from(bytes));
            await commit(disk, MOMENT + 1 + index);
            await turn();
          }
        })();
        await disk.written(MOMENT);
        for (const { offset, bytes } of own) {
          await trial.write(offset, Buffer.from(bytes));
          reference.set(bytes, offset);
          expect((await contentOf(trial)).equals(reference)).toBe(true);
        }
        await goOn;
        await disk.written(epochId(MOMENT + after.length));
        expect((await contentOf(trial)).equals(reference)).toBe(true);
        trial.assertSound();
      }),
      { numRuns: 60 },
    );
  });

  test('and its own zeros and edges of blocks are seen by nobody else', async () => {
    const { disk, image, trial, begin } = await opened();
    begin();
    await trial.zero(100, 2 * BLOCK_BYTES, { mayPunch: false });
    await Promise.all([trial.write(10, Buffer.alloc(5, 1)), trial.write(20, Buffer.alloc(5, 2))]);
    const expected = Buffer.alloc(DISK_BYTES, 0xee);
    expected
      .fill(0, 100, 100 + 2 * BLOCK_BYTES)
      .fill(1, 10, 15)
      .fill(2, 20, 25);
    expect(await contentOf(trial)).toEqual(expected);
    const own = Buffer.alloc(DISK_BYTES);
    await disk.read(0, own);
    await image.device.read(0, own.subarray(0, 10));
    expect(own).toEqual(Buffer.alloc(DISK_BYTES, 0xee));
  });

  test('sees what was written past its moment where nothing was kept (control)', async () => {
    const { image, trial, begin } = await opened();
    begin();
    await image.device.write(0, Buffer.alloc(BLOCK_BYTES, 1));
    expect((await contentOf(trial))[0]).toBe(1);
  });

  test('is lost, and the image goes on, when more is overwritten than may be kept', async () => {
    const { disk, trial, begin } = await opened({ keptBytesMax: 2 * BLOCK_BYTES });
    begin();
    await disk.write(0, Buffer.alloc(3 * BLOCK_BYTES, 1));
    await commit(disk, MOMENT + 1);
    await disk.written(epochId(MOMENT + 1));
    await expect(trial.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: 'BLOCK_MOMENT_LOST' });
    expect(() => trial.assertSound()).toThrow(expect.objectContaining({ code: 'BLOCK_MOMENT_LOST' }));
  });

  test('is lost when the disk is alone and writes without epochs', async () => {
    const { disk, trial, begin } = await opened();
    begin();
    await disk.setMode('alone');
    await disk.write(0, Buffer.alloc(BLOCK_BYTES, 1));
    await expect(trial.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: 'BLOCK_MOMENT_LOST' });
  });

  test('takes no more than it was given room for, and says so', async () => {
    const { trial, begin } = await opened({ writtenBytesMax: 2 * BLOCK_BYTES });
    begin();
    await expect(trial.write(0, Buffer.alloc(3 * BLOCK_BYTES))).rejects.toMatchObject({
      code: 'BLOCK_TRIAL_FULL',
    });
    expect(() => trial.assertSound()).toThrow(expect.objectContaining({ code: 'BLOCK_TRIAL_FULL' }));
  });

  test('takes no more zeros than it can note down', async () => {
    const { trial, begin } = await opened({ writtenBytesMax: 100 });
    begin();
    await expect(trial.zero(0, DISK_BYTES, { mayPunch: true })).rejects.toMatchObject({
      code: 'BLOCK_TRIAL_FULL',
    });
  });

  test('leaves an image that can be looked at again', async () => {
    const { disk, image, trial, begin } = await opened();
    begin();
    image.forgetMoment();
    await expect(trial.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: 'BLOCK_MOMENT_LOST' });
    await commit(disk, MOMENT + 1);
    image.holdMoment(epochId(MOMENT + 1), { keptBytesMax: 1 });
  });
});
