import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { MIB } from '../base/units.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { openCopyTarget } from './copy-target.ts';
import { FileDevice } from './file-device.ts';
import { openJournalFile } from './journal-file.ts';
import { JournaledImage } from './journaled-image.ts';

const IDENTITY = 'ab'.repeat(16);
const OF = { identity: IDENTITY, token: 3, diskBytes: MIB };

let paths: { readonly imagePath: string; readonly journalPath: string };

beforeEach(() => {
  const folder = mkdtempSync(join(tmpdir(), 'us-copy-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  paths = { imagePath: join(folder, 'disk'), journalPath: join(folder, 'disk.journal') };
});

/** A whole copy, of one epoch. */
async function makeCopy(): Promise<void> {
  const { image } = await openCopyTarget(paths, OF);
  const write = { kind: 'data', offset: 0, bytes: Buffer.alloc(4096, 7) } as const;
  await image.apply([{ epoch: epochId(5), token: 3, writes: [write] }]);
  await image.close();
}

async function fate(): Promise<{ isPartial: boolean; isNew: boolean }> {
  const { image, isNew } = await openCopyTarget(paths, OF);
  const { isPartial } = image;
  await image.close();
  return { isPartial, isNew };
}

describe('an image that becomes a copy of a disk', () => {
  it('is not marked as unfinished while somebody uses it', async () => {
    await makeCopy();
    const [image, journal] = [readFileSync(paths.imagePath), readFileSync(paths.journalPath)];
    const user = await FileDevice.open(paths.imagePath);
    expect(user.tryLock()).toBe(true);
    await expect(openCopyTarget(paths, OF)).rejects.toMatchObject({ code: 'BLOCK_COPY_FOREIGN' });
    expect(readFileSync(paths.imagePath).equals(image)).toBe(true);
    expect(readFileSync(paths.journalPath).equals(journal)).toBe(true);
    await user.close();
    // By nobody now (control).
    expect(await fate()).toEqual({ isPartial: true, isNew: false });
    expect(readFileSync(paths.journalPath).equals(journal)).toBe(false);
  });

  it('is used by one at a time, also while it is new', async () => {
    const { image } = await openCopyTarget(paths, OF);
    await expect(openCopyTarget(paths, OF)).rejects.toMatchObject({ code: 'BLOCK_COPY_FOREIGN' });
    await image.close();
    // Where it is not there yet its journal tells.
    rmSync(paths.imagePath);
    const making = await openJournalFile(paths.journalPath);
    expect(making.tryLock()).toBe(true);
    const before = readFileSync(paths.journalPath);
    await expect(openCopyTarget(paths, OF)).rejects.toMatchObject({ code: 'BLOCK_COPY_FOREIGN' });
    expect(readFileSync(paths.journalPath).equals(before)).toBe(true);
    await making.close();
    expect(await fate()).toEqual({ isPartial: true, isNew: true });
    expect(statSync(paths.imagePath).size).toBe(MIB);
  });

  it('takes the token of who copies, and nothing of anybody whose token is older, whatever he has written', async () => {
    await makeCopy();
    const before = readFileSync(paths.imagePath);
    await expect(openCopyTarget(paths, { ...OF, token: 2 })).rejects.toMatchObject({
      code: 'BLOCK_TOKEN_STALE',
      facts: { token: 2, known: 3 },
    });
    // One that acted here, and wrote nothing, has said so.
    const acting = await JournaledImage.open({
      device: await FileDevice.open(paths.imagePath),
      journal: await openJournalFile(paths.journalPath),
    });
    await acting.noteToken(4);
    await acting.close();
    await expect(openCopyTarget(paths, OF)).rejects.toMatchObject({ code: 'BLOCK_TOKEN_STALE' });
    expect(readFileSync(paths.imagePath).equals(before)).toBe(true);
    const { image } = await openCopyTarget(paths, { ...OF, token: 4 });
    expect(image.position.token).toBe(4);
    await image.close();
  });

  it('gets the size of the disk, where that has another one by now', async () => {
    await makeCopy();
    const { image } = await openCopyTarget(paths, { ...OF, diskBytes: 2 * MIB });
    expect(image.device.sizeBytes).toBe(2 * MIB);
    await image.device.write(2 * MIB - 4096, Buffer.alloc(4096, 9));
    await image.close();
    expect(statSync(paths.imagePath).size).toBe(2 * MIB);
  });
});
