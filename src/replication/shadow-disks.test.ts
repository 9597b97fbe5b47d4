import { describe, expect, it } from 'vitest';
import { Failpoints } from '../base/failpoint.ts';
import type { BlockDevice } from '../block/block-device.ts';
import type { DiskWrite } from '../block/disk-write.ts';
import { JournaledImage } from '../block/journaled-image.ts';
import { type Contents, type Luck, PowerLog } from '../block/power-fixture.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { encodePiece } from './disk-messages.ts';
import { ShadowDisks } from './shadow-disks.ts';

const BLOCK_BYTES = 4096;
const DISK_BYTES = 6 * BLOCK_BYTES;
const IDENTITY = 'a5'.repeat(16);
const EPOCHS = 6;

function writesOf(epoch: number): DiskWrite[] {
  const bytes = Buffer.alloc(2 * BLOCK_BYTES, epoch);
  const offset = (epoch % 4) * BLOCK_BYTES;
  // Nothing is written in some epochs, among them the first.
  return epoch % 5 === 1 ? [] : [{ kind: 'data', offset, bytes }];
}

function applied(image: Buffer, writes: readonly DiskWrite[]): Buffer {
  const after = Buffer.from(image);
  for (const write of writes) if (write.kind === 'data') after.set(write.bytes, write.offset);
  return after;
}

async function copyOn(
  log: PowerLog,
  { isNew, device = log.device() }: { isNew: boolean; device?: BlockDevice },
): Promise<ShadowDisks> {
  const image = await JournaledImage.openCopy(
    { journal: log.journalFile(), openDevice: async () => device },
    { identity: IDENTITY, diskBytes: DISK_BYTES, token: 1, isNew },
  );
  return new ShadowDisks({ disks: [{ name: 'root', image, token: 1 }], failpoints: new Failpoints() });
}

interface Story {
  readonly log: PowerLog;
  /** The disk as of each epoch from the first one on. */
  readonly states: readonly Buffer[];
  /** What the image was before it became a copy, if it was a disk. */
  readonly former?: Buffer | undefined;
  /** After how many steps which epoch was said to be durable. */
  readonly promises: { readonly stepCount: number; readonly epoch: number }[];
}

/** A first copy with contents of its own, and the epochs after it. */
async function story(log: PowerLog, { isNew, value }: { isNew: boolean; value: number }): Promise<Story> {
  const disks = await copyOn(log, { isNew });
  const copied = Buffer.alloc(DISK_BYTES, value);
  for (let offset = 0; offset < DISK_BYTES; offset += 2 * BLOCK_BYTES) {
    const bytes = copied.subarray(offset, offset + 2 * BLOCK_BYTES);
    await disks.takeCopy(Buffer.concat(encodePiece({ disk: 0, write: { kind: 'data', offset, bytes } })));
  }
  const states: Buffer[] = [];
  const promises: { stepCount: number; epoch: number }[] = [];
  let state: Buffer = copied;
  for (let epoch = 1; epoch <= EPOCHS; epoch += 1) {
    const writes = writesOf(epoch);
    state = applied(state, writes);
    states.push(state);
    disks.offer(epochId(epoch), [{ disk: 'root', writes }]);
    // Two at a time, so that batches happen too.
    if (epoch % 2 === 0) continue;
    await disks.durable(epochId(epoch));
    promises.push({ stepCount: log.steps.length, epoch });
  }
  await disks.written(epochId(EPOCHS));
  promises.push({ stepCount: log.steps.length, epoch: EPOCHS });
  return { log, states, promises };
}

/** What is wrong with what a loss of power leaves, as a sentence; undefined: an epoch that is new enough, or no disk yet. */
async function judge(left: Contents, told: Story, stepCount: number): Promise<string | undefined> {
  const promised = told.promises.findLast((promise) => promise.stepCount <= stepCount)?.epoch ?? 0;
  const log = new PowerLog(left);
  try {
    await JournaledImage.open({ device: log.device(), journal: log.journalFile() });
  } catch (thrown) {
    const isUnfinished = (thrown as { code?: unknown }).code === 'BLOCK_COPY_PARTIAL';
    if (!isUnfinished) return `it cannot be opened: ${thrown}`;
    return promised === 0 ? undefined : `epoch ${promised} was promised, and it is an unfinished copy`;
  }
  const found = told.states.findLastIndex((state) => state.equals(log.image)) + 1;
  if (found === 0 && told.former?.equals(log.image) && promised === 0) return undefined;
  if (found === 0) return 'it is taken for a disk, and is that of no epoch';
  return found >= promised ? undefined : `epoch ${promised} was promised, and ${found} is there`;
}

async function faultsOf(told: Story, from: number): Promise<string[]> {
  const lucks: Luck[] = [() => true, () => false];
  for (const seed of [3, 5, 7, 11]) {
    let count = 0;
    lucks.push(() => (count++ * seed) % 7 < 4);
  }
  const faults: string[] = [];
  for (let stepCount = from; stepCount <= told.log.steps.length; stepCount += 1) {
    for (const luck of lucks) {
      const fault = await judge(told.log.afterPowerLoss(stepCount, luck), told, stepCount);
      if (fault !== undefined) faults.push(`after ${stepCount} steps ${fault}`);
    }
  }
  return faults;
}

const EMPTY: Contents = { image: Buffer.alloc(DISK_BYTES), journal: Buffer.alloc(0) };

describe('the disk of a shadow, wherever the power fails', () => {
  it('is an unfinished copy, or the disk as of an epoch that is no older than what was promised', async () => {
    const log = new PowerLog(EMPTY);
    // Before the journal's first sync there is no image: it is made after that.
    const told = await story(log, { isNew: true, value: 0xee });
    const firstSync = log.steps.findIndex(({ file, kind }) => file === 'journal' && kind === 'sync') + 1;
    expect(await faultsOf(told, firstSync)).toEqual([]);
  });

  it('is so too when it was a whole disk in an older state before', async () => {
    const before = await story(new PowerLog(EMPTY), { isNew: true, value: 0x11 });
    const left = before.log.afterPowerLoss(before.log.steps.length, () => true);
    const log = new PowerLog(left);
    const told = await story(log, { isNew: false, value: 0xee });
    expect(await faultsOf({ ...told, former: before.states.at(-1) }, 0)).toEqual([]);
  });

  it('is neither on a disk that only says that it has synced (control)', async () => {
    const log = new PowerLog(EMPTY, ['image']);
    const told = await story(log, { isNew: true, value: 0xee });
    expect(await faultsOf(told, 1)).not.toEqual([]);
  });
});

describe('the disk of a shadow that is full', () => {
  it('says that it has failed while it is copied, as it does afterwards', async () => {
    const log = new PowerLog(EMPTY);
    const device = log.device();
    device.write = () => Promise.reject(Object.assign(new Error('no space'), { code: 'ENOSPC' }));
    const disks = await copyOn(log, { isNew: true, device });
    const write: DiskWrite = { kind: 'data', offset: 0, bytes: Buffer.alloc(BLOCK_BYTES, 1) };
    const failed = { code: 'BLOCK_DISK_FAILED', message: expect.stringContaining('no space') };
    const piece = Buffer.concat(encodePiece({ disk: 0, write }));
    await expect(disks.takeCopy(piece)).rejects.toMatchObject(failed);
    disks.offer(epochId(1), [{ disk: 'root', writes: [write] }]);
    expect(await disks.failed).toMatchObject(failed);
    await expect(disks.written(epochId(1))).rejects.toMatchObject(failed);
  });
});
