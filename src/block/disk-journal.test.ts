import { describe, expect, test } from 'vitest';
import { epochId } from '../epoch/epoch-id.ts';
import type { DiskWrite } from './disk-write.ts';
import type { JournalEntry } from './journal-entry.ts';
import { JournaledImage } from './journaled-image.ts';
import { type Contents, type Luck, PowerLog } from './power-fixture.ts';
import { BLOCK_BYTES } from './write-set.ts';

const DISK_BYTES = 10 * BLOCK_BYTES;
const EMPTY: Contents = { image: Buffer.alloc(DISK_BYTES), journal: Buffer.alloc(0) };

/** The same numbers in each run: a failure can be looked at again. */
function dice(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return Math.floor((state / 0x80000000) * below);
  };
}

/** Writes of one epoch, with bytes of their own: blocks, stretches of them, and zeros. */
function entryOf(epoch: number, roll: (below: number) => number): JournalEntry {
  const writes: DiskWrite[] = [];
  for (let block = 0; block < DISK_BYTES / BLOCK_BYTES; block++) {
    const offset = block * BLOCK_BYTES;
    const fate = roll(4);
    if (fate === 0)
      writes.push({ kind: 'data', offset, bytes: Buffer.alloc(BLOCK_BYTES, (epoch * 16 + block) % 251) });
    if (fate === 1 && roll(2) === 0)
      writes.push({ kind: 'zero', offset, lengthBytes: BLOCK_BYTES, mayPunch: true });
  }
  return { epoch: epochId(epoch), token: 1, writes };
}

function applied(image: Buffer, { writes }: JournalEntry): Buffer {
  const after = Buffer.from(image);
  for (const write of writes) {
    if (write.kind === 'data') after.set(write.bytes, write.offset);
    else after.fill(0, write.offset, write.offset + write.lengthBytes);
  }
  return after;
}

interface Story {
  readonly log: PowerLog;
  /** The disk as of each epoch. */
  readonly states: ReadonlyMap<number, Buffer>;
  /** After how many steps which epoch and token were said to be safe. */
  readonly promises: readonly Promised[];
}

interface Promised {
  readonly stepCount: number;
  readonly epoch: number;
  readonly token: number;
}

/** Epochs, one to three at a time, until `count` are in the image; between them the token grows, and is noted. */
async function story(log: PowerLog, options: { first: number; count: number; seed: number }): Promise<Story> {
  const roll = dice(options.seed);
  const promises: Promised[] = [];
  const image = await JournaledImage.open({ device: log.device(), journal: log.journalFile() });
  let state: Buffer = Buffer.from(log.image);
  const states = new Map([[image.position.epoch as number, state]]);
  let { token } = image.position;
  promises.push({ stepCount: log.steps.length, epoch: image.position.epoch, token });
  for (let epoch = options.first; epoch < options.first + options.count; ) {
    const entries = Array.from({ length: 1 + roll(3) }, () => ({ ...entryOf(epoch++, roll), token }));
    for (const entry of entries) {
      state = applied(state, entry);
      states.set(entry.epoch, state);
    }
    const last = entries.at(-1)?.epoch ?? 0;
    const onDurable = () => {
      promises.push({ stepCount: log.steps.length, epoch: last, token });
      return undefined;
    };
    await image.apply(entries, { onDurable });
    token += 1;
    await image.noteToken(token);
    promises.push({ stepCount: log.steps.length, epoch: last, token });
  }
  return { log, states, promises };
}

/** What is wrong with what is left after a loss of power, as a sentence; undefined: it is an epoch, and new enough. */
async function judge(left: Contents, told: Story, stepCount: number): Promise<string | undefined> {
  const log = new PowerLog(left);
  let [epoch, token] = [0, 0];
  try {
    const image = await JournaledImage.open({ device: log.device(), journal: log.journalFile() });
    ({ epoch, token } = image.position);
  } catch (thrown) {
    return `after ${stepCount} steps it cannot be opened: ${thrown}`;
  }
  const promises = told.promises.filter((one) => one.stepCount <= stepCount);
  const promised = Math.max(...promises.map((one) => one.epoch), 0);
  if (epoch < promised) return `after ${stepCount} steps epoch ${promised} was safe, and it holds ${epoch}`;
  const noted = Math.max(...promises.map((one) => one.token), 0);
  if (token < noted) return `after ${stepCount} steps token ${noted} was safe, and it holds ${token}`;
  const state = told.states.get(epoch);
  if (state === undefined || !log.image.equals(state))
    return `after ${stepCount} steps it is not epoch ${epoch}`;
  return undefined;
}

function lucks(seed: number): Luck[] {
  const rolls = [2, 2, 2, 5, 5].map((below, index) => {
    const roll = dice(seed + index);
    return () => roll(below) === 0;
  });
  return [() => true, () => false, ...rolls];
}

async function firstFault(told: Story): Promise<string | undefined> {
  for (let stepCount = 0; stepCount <= told.log.steps.length; stepCount++) {
    for (const luck of lucks(stepCount)) {
      const fault = await judge(told.log.afterPowerLoss(stepCount, luck), told, stepCount);
      if (fault !== undefined) return fault;
    }
  }
  return undefined;
}

describe('an image whose power fails', () => {
  test('after any step, with any part of what was not synced, is an epoch again that is as new as was promised', async () => {
    for (const seed of [1, 2]) {
      const told = await story(new PowerLog(EMPTY), { first: 1, count: 10, seed });
      expect(await firstFault(told)).toBeUndefined();
    }
  });

  test('again while it recovers, or soon after it, is the same epoch or a later one', async () => {
    const told = await story(new PowerLog(EMPTY), { first: 1, count: 6, seed: 7 });
    for (let stepCount = 0; stepCount <= told.log.steps.length; stepCount++) {
      const roll = dice(stepCount);
      const left = told.log.afterPowerLoss(stepCount, () => roll(2) === 0);
      // It recovers, and goes on with other epochs of the same numbers as those that may be left of its first life.
      const second = new PowerLog(left);
      const image = await JournaledImage.open({ device: second.device(), journal: second.journalFile() });
      const found = image.position.epoch;
      const recovered = second.steps.length;
      const again = await story(new PowerLog(left), { first: found + 1, count: 3, seed: 1000 + stepCount });
      for (let later = 0; later <= again.log.steps.length; later++) {
        const luck = dice(later * 31 + stepCount);
        const fault = await judge(
          again.log.afterPowerLoss(later, () => luck(2) === 0),
          again,
          later,
        );
        expect(fault, `first life ${stepCount} steps, recovery ${recovered}`).toBeUndefined();
      }
    }
  });

  test.each([{ file: 'journal' as const }, { file: 'image' as const }])(
    'is none any more where the $file is not really synced (control of the tests above)',
    async ({ file }) => {
      const told = await story(new PowerLog(EMPTY, [file]), { first: 1, count: 12, seed: 1 });
      expect(await firstFault(told)).toMatch(/it is not epoch|was safe|cannot be opened/);
    },
  );
});

describe('a journal', () => {
  async function opened(contents: Contents): Promise<JournaledImage> {
    const log = new PowerLog(contents);
    return JournaledImage.open({ device: log.device(), journal: log.journalFile() });
  }

  test('of another disk, or something else in its place, is not used', async () => {
    const log = new PowerLog(EMPTY);
    await opened({ image: EMPTY.image, journal: EMPTY.journal });
    await JournaledImage.open({ device: log.device(), journal: log.journalFile() });
    const { journal } = log.afterPowerLoss(log.steps.length, () => true);
    await expect(opened({ image: Buffer.alloc(BLOCK_BYTES), journal })).rejects.toMatchObject({
      code: 'BLOCK_JOURNAL_UNFIT',
    });
    for (const other of [Buffer.from('notes'), Buffer.alloc(8192, 7)]) {
      await expect(opened({ image: EMPTY.image, journal: other })).rejects.toMatchObject({
        code: 'BLOCK_JOURNAL_UNFIT',
      });
    }
  });

  test('refuses an older token and an older epoch, and writes nothing then', async () => {
    const log = new PowerLog(EMPTY);
    const image = await JournaledImage.open({ device: log.device(), journal: log.journalFile() });
    const entry = { ...entryOf(5, dice(1)), token: 3 };
    await image.apply([entry]);
    const { length } = log.steps;
    await expect(image.apply([{ ...entry, epoch: epochId(6), token: 2 }])).rejects.toMatchObject({
      code: 'BLOCK_TOKEN_STALE',
    });
    await image.noteToken(2);
    await expect(image.apply([{ ...entry, epoch: epochId(4) }])).rejects.toMatchObject({
      code: 'BLOCK_EPOCH_ORDER',
    });
    expect(log.steps).toHaveLength(length);
    // Nor after the power was lost: the journal remembers both.
    const left = log.afterPowerLoss(length, () => false);
    expect((await opened(left)).position).toEqual({ epoch: 5, token: 3 });
  });
});
