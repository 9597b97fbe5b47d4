import { describe, expect, onTestFinished, test } from 'vitest';
import { epochId } from '../epoch/epoch-id.ts';
import { EpochDisk } from './epoch-disk.ts';
import { JournaledImage } from './journaled-image.ts';
import { PowerLog } from './power-fixture.ts';
import { BLOCK_BYTES } from './write-set.ts';

const DISK_BYTES = 8 * BLOCK_BYTES;
const NOTHING = { image: Buffer.alloc(DISK_BYTES), journal: Buffer.alloc(0) };

async function diskOn(log: PowerLog, token = () => 1): Promise<EpochDisk> {
  const image = await JournaledImage.open({ device: log.device(), journal: log.journalFile() });
  const disk = new EpochDisk({
    ...{ image, mode: 'in-sync', heldBytesMax: 1 << 20 },
    ...{ token, onCutWanted: () => {}, onFailed: () => {} },
  });
  onTestFinished(() => disk.close().catch(() => {}));
  return disk;
}

/** An epoch, then a write of a disk that is alone, which is made durable by `how`. What a loss of power right after it leaves. */
async function firstByteAfter(how: 'flush' | 'fua' | 'nothing'): Promise<number | undefined> {
  const log = new PowerLog(NOTHING);
  const disk = await diskOn(log);
  await disk.write(0, Buffer.alloc(BLOCK_BYTES, 1));
  disk.seal(epochId(1));
  disk.commit(epochId(1));
  await disk.setMode('alone');
  await disk.write(0, Buffer.alloc(BLOCK_BYTES, 2), { fua: how === 'fua' });
  if (how === 'flush') await disk.flush();
  const after = new PowerLog(log.afterPowerLoss(log.steps.length, () => false));
  await JournaledImage.open({ device: after.device(), journal: after.journalFile() });
  return after.image[0];
}

describe('a disk that is alone', () => {
  test.each(['flush', 'fua'] as const)(
    'keeps what was made durable with %s, and no older epoch comes back over it',
    async (how) => {
      expect(await firstByteAfter(how)).toBe(2);
    },
  );

  test('may lose what was not made durable (control)', async () => {
    expect(await firstByteAfter('nothing')).toBe(1);
  });

  test('notes its token between all that it writes, and refuses an older one after a loss of power', async () => {
    const log = new PowerLog(NOTHING);
    let token = 1;
    const disk = await diskOn(log, () => token);
    await disk.write(0, Buffer.alloc(BLOCK_BYTES, 1));
    disk.seal(epochId(1));
    disk.commit(epochId(1));
    token = 4;
    const noting = disk.noteToken();
    await disk.write(BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 2));
    disk.seal(epochId(2));
    disk.commit(epochId(2));
    await noting;
    await disk.written(epochId(2));
    const after = new PowerLog(log.afterPowerLoss(log.steps.length, () => false));
    const image = await JournaledImage.open({ device: after.device(), journal: after.journalFile() });
    expect(image.position).toEqual({ epoch: 2, token: 4 });
    expect([after.image[0], after.image[BLOCK_BYTES]]).toEqual([1, 2]);
    const entry = { epoch: epochId(3), token: 3, writes: [] };
    await expect(image.apply([entry])).rejects.toMatchObject({ code: 'BLOCK_TOKEN_STALE' });
    expect(await image.apply([{ ...entry, token: 4 }])).toBe(true);
  });

  test('that begins to keep epochs has told of every write that the open epoch lacks', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await diskOn(log);
    await disk.setMode('alone');
    const told = new Set<number>();
    disk.watch((offset, lengthBytes) => {
      for (let at = offset; at < offset + lengthBytes; at += BLOCK_BYTES) told.add(at / BLOCK_BYTES);
    });
    // Begun while it is alone, and on their way when it is no more; edges of blocks too.
    const writes = [0, 1, 2, 3].map((block) => disk.write(block * BLOCK_BYTES, Buffer.alloc(100, 7)));
    await disk.setMode('asynchronous');
    const before = new Set(told);
    writes.push(disk.write(5 * BLOCK_BYTES, Buffer.alloc(BLOCK_BYTES, 7)));
    await Promise.all(writes);
    disk.seal(epochId(1));
    const inEpoch = disk.sealedWrites(epochId(1)).map(({ offset }) => offset / BLOCK_BYTES);
    expect([...new Set([...before, ...inEpoch])].sort()).toEqual([0, 1, 2, 3, 5]);
    expect(inEpoch).toContain(5);
  });
});
