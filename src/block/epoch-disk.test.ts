import fc from 'fast-check';
import { describe, expect, onTestFinished, test } from 'vitest';
import { epochId } from '../epoch/epoch-id.ts';
import { EpochDisk, type EpochDiskOptions } from './epoch-disk.ts';
import { JournaledImage } from './journaled-image.ts';
import { PowerLog } from './power-fixture.ts';
import { BLOCK_BYTES } from './write-set.ts';

/** Not a multiple of blocks: the last one is shorter. */
const DISK_BYTES = 8 * BLOCK_BYTES + 512;
const NOTHING = { image: Buffer.alloc(DISK_BYTES), journal: Buffer.alloc(0) };

async function imageOn(log: PowerLog): Promise<JournaledImage> {
  return JournaledImage.open({ device: log.device(), journal: log.journalFile() });
}

async function diskOn(log: PowerLog, options: Partial<EpochDiskOptions> = {}): Promise<EpochDisk> {
  const disk = new EpochDisk({
    image: await imageOn(log),
    mode: 'in-sync',
    token: () => 1,
    heldBytesMax: 1 << 20,
    onCutWanted: () => {},
    onFailed: () => {},
    ...options,
  });
  onTestFinished(() => disk.close().catch(() => {}));
  return disk;
}

async function contentOf(disk: EpochDisk): Promise<Buffer> {
  const bytes = Buffer.alloc(disk.sizeBytes, 0xee);
  await disk.read(0, bytes);
  return bytes;
}

/** Bytes that nobody uses again, as the disk keeps them. */
function bytes(lengthBytes: number, value: number): Buffer {
  return Buffer.alloc(lengthBytes, value);
}

/** Bytes that are used again, for something else, as soon as the disk has no more use for them. */
function lent(lengthBytes: number, value: number): [Buffer, { onFree: () => void }] {
  const memory = bytes(lengthBytes, value);
  return [memory, { onFree: () => memory.fill(~value) }];
}

const place = fc
  .tuple(fc.nat(DISK_BYTES - 1), fc.nat(3 * BLOCK_BYTES), fc.boolean())
  .map(([at, length, isAligned]) => {
    const offset = isAligned ? at - (at % BLOCK_BYTES) : at;
    return { offset, lengthBytes: Math.min(isAligned ? BLOCK_BYTES : length, DISK_BYTES - offset) };
  });

const anyStep = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('write' as const), place, value: fc.nat(255) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constantFrom('zero' as const), place, value: fc.constant(0) }) },
  {
    weight: 6,
    arbitrary: fc.record({ do: fc.constantFrom('seal', 'commit', 'abort', 'roll back', 'flush') }),
  },
);
type Step = typeof anyStep extends fc.Arbitrary<infer Found> ? Found : never;

/** A disk, a shadow's image, and what both should be. */
class Story {
  readonly disk: EpochDisk;
  readonly shadow: JournaledImage;
  readonly shadowLog: PowerLog;
  /** As of each epoch that may still be committed or was so last; the first is committed. */
  readonly #sealed: { epoch: number; content: Buffer }[] = [{ epoch: 0, content: Buffer.alloc(DISK_BYTES) }];
  /** Every content that was ever committed. */
  readonly committed: Buffer[] = [Buffer.alloc(DISK_BYTES)];
  now = Buffer.alloc(DISK_BYTES);
  #next = 1;

  constructor(disk: EpochDisk, shadow: { image: JournaledImage; log: PowerLog }) {
    this.disk = disk;
    this.shadow = shadow.image;
    this.shadowLog = shadow.log;
  }

  async take(step: Step): Promise<void> {
    switch (step.do) {
      case 'write':
        this.now.fill(step.value, step.place.offset, step.place.offset + step.place.lengthBytes);
        return await this.disk.write(step.place.offset, ...lent(step.place.lengthBytes, step.value));
      case 'zero':
        this.now.fill(0, step.place.offset, step.place.offset + step.place.lengthBytes);
        return await this.disk.zero(step.place.offset, step.place.lengthBytes, { mayPunch: true });
      case 'flush':
        return await this.disk.flush();
      case 'seal':
        this.disk.seal(epochId(this.#next));
        this.#sealed.push({ epoch: this.#next++, content: Buffer.from(this.now) });
        return;
      case 'commit':
        return await this.#commit();
      case 'abort':
        if (this.#sealed.length > 1) this.disk.abort(epochId(this.#sealed.pop()?.epoch ?? 0));
        return;
      case 'roll back': {
        const epoch = this.#sealed[1]?.epoch ?? this.#next;
        this.disk.rollBack(epochId(epoch));
        this.#sealed.splice(1);
        this.now = Buffer.from(this.committed.at(-1) ?? []);
        return;
      }
    }
  }

  async #commit(): Promise<void> {
    const oldest = this.#sealed[1];
    if (oldest === undefined) return;
    const epoch = epochId(oldest.epoch);
    await this.shadow.apply([{ epoch, token: 1, writes: this.disk.sealedWrites(epoch) }]);
    this.disk.commit(epoch);
    this.#sealed.shift();
    this.committed.push(oldest.content);
    expect(this.shadowLog.image.equals(oldest.content), 'the shadow has exactly this epoch').toBe(true);
  }
}

async function newStory(log: PowerLog, options: Partial<EpochDiskOptions> = {}): Promise<Story> {
  const shadowLog = new PowerLog(NOTHING);
  return new Story(await diskOn(log, options), { image: await imageOn(shadowLog), log: shadowLog });
}

/** Whether the image is some committed epoch wherever the power fails. */
async function holdsEpochsOnly(log: PowerLog, committed: readonly Buffer[]): Promise<boolean> {
  for (let stepCount = 0; stepCount <= log.steps.length; stepCount++) {
    for (const luck of [() => true, () => false, () => (stepCount * 7) % 3 === 0]) {
      const after = new PowerLog(log.afterPowerLoss(stepCount, luck));
      await imageOn(after);
      if (!committed.some((content) => content.equals(after.image))) return false;
    }
  }
  return true;
}

describe('a disk that commits with the epochs', () => {
  test('gives memory back when it was written over, is in the image, or never was, and no sooner', async () => {
    const disk = await diskOn(new PowerLog(NOTHING));
    const free: string[] = [];
    const write = (name: string, blocks = 1, offset = 0) =>
      disk.write(offset, bytes(blocks * BLOCK_BYTES, 7), { onFree: () => free.push(name) });
    await write('written over', 2);
    await write('in the image', 3);
    expect(free).toEqual(['written over']);
    // A part of it is still to be read, whatever happens to the rest.
    await write('left to the collector', 1, 6 * BLOCK_BYTES + 1);
    disk.seal(epochId(1));
    await write('never was', 3);
    expect(free).toEqual(['written over']);
    disk.commit(epochId(1));
    disk.rollBack(epochId(2));
    expect(free).toEqual(['written over', 'never was']);
    await disk.setMode('alone');
    expect(free).toEqual(['written over', 'never was', 'in the image']);
  });

  test('reads as what was written, and gives image and shadow exactly what was committed', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(anyStep, { maxLength: 40 }), async (steps) => {
        const log = new PowerLog(NOTHING);
        const story = await newStory(log);
        for (const step of steps) {
          await story.take(step);
          expect((await contentOf(story.disk)).equals(story.now)).toBe(true);
        }
        await story.disk.close();
        expect(log.image.equals(story.committed.at(-1) ?? Buffer.alloc(0))).toBe(true);
        expect(await holdsEpochsOnly(log, story.committed)).toBe(true);
      }),
      { numRuns: 150 },
    );
  });

  test('would not, if a flush were a real one while output waits for the shadow (control of the test above)', async () => {
    const log = new PowerLog(NOTHING);
    const story = await newStory(log, { mode: 'asynchronous' });
    await story.take({ do: 'write', place: { offset: 0, lengthBytes: BLOCK_BYTES }, value: 7 });
    await story.take({ do: 'flush' });
    expect(await holdsEpochsOnly(log, story.committed)).toBe(false);
    expect(() => story.disk.rollBack(epochId(1))).toThrow(
      expect.objectContaining({ code: 'BLOCK_ROLLBACK_TOO_LATE' }),
    );
  });

  test('keeps parts of one block that are written at the same time', async () => {
    const log = new PowerLog({ ...NOTHING, image: bytes(DISK_BYTES, 9) });
    const disk = await diskOn(log);
    await Promise.all([0, 1, 2, 3].map((part) => disk.write(part * 512, bytes(512, part + 1))));
    const expected = bytes(DISK_BYTES, 9);
    for (const part of [0, 1, 2, 3]) expected.fill(part + 1, part * 512, part * 512 + 512);
    expect((await contentOf(disk)).equals(expected)).toBe(true);
  });

  test('does not bring an older state back where a block is written, committed and applied while a part is added', async () => {
    const log = new PowerLog(NOTHING);
    const image = await imageOn(log);
    const gate = Promise.withResolvers<void>();
    const slow = image.device.read;
    const started = Promise.withResolvers<void>();
    image.device.read = async (offset, into) => {
      image.device.read = slow;
      await slow(offset, into);
      started.resolve();
      await gate.promise;
    };
    const disk = await diskOn(log, { image });
    const patched = disk.write(100, bytes(10, 2));
    await started.promise;
    await disk.write(0, bytes(BLOCK_BYTES, 1));
    disk.seal(epochId(1));
    disk.commit(epochId(1));
    await disk.durable(epochId(1));
    while (disk.heldBytes > 0) await new Promise((resolve) => setImmediate(resolve));
    gate.resolve();
    await patched;
    const expected = bytes(BLOCK_BYTES, 1).fill(2, 100, 110);
    expect((await contentOf(disk)).subarray(0, BLOCK_BYTES).equals(expected)).toBe(true);
  });
});

describe('a flush', () => {
  test('writes nothing while output waits for the shadow, and all of it when nothing does any more', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await diskOn(log);
    await disk.write(0, bytes(BLOCK_BYTES, 1), { fua: true });
    await disk.flush();
    disk.seal(epochId(1));
    await disk.write(BLOCK_BYTES, bytes(10, 2));
    expect(log.image.equals(NOTHING.image)).toBe(true);
    // The shadow is lost. Whatever was answered is durable before anybody can see it.
    await disk.setMode('alone');
    const durable = log.afterPowerLoss(log.steps.length, () => false).image;
    expect([durable[0], durable[BLOCK_BYTES]]).toEqual([1, 2]);
    disk.abort(epochId(1));
    await disk.write(0, bytes(BLOCK_BYTES, 3));
    await disk.flush();
    expect(log.afterPowerLoss(log.steps.length, () => false).image[0]).toBe(3);
    expect(disk.heldBytes).toBe(0);
  });

  test('is not undone by an older epoch that is committed after it', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await diskOn(log, { mode: 'asynchronous' });
    await disk.write(0, bytes(BLOCK_BYTES, 1));
    disk.seal(epochId(1));
    await disk.write(0, bytes(BLOCK_BYTES, 2));
    await disk.flush();
    const { length } = log.steps;
    disk.commit(epochId(1));
    await disk.durable(epochId(1));
    disk.seal(epochId(2));
    expect(disk.sealedWrites(epochId(2))).toEqual([
      { kind: 'data', offset: 0, bytes: bytes(BLOCK_BYTES, 2) },
    ]);
    disk.commit(epochId(2));
    await disk.durable(epochId(2));
    expect(log.steps).toHaveLength(length);
    expect(log.image[0]).toBe(2);
  });
});

describe('a disk whose memory is full', () => {
  test('asks for a cut and makes writes wait until an epoch is in the image', async () => {
    let cutsWanted = 0;
    const disk = await diskOn(new PowerLog(NOTHING), {
      heldBytesMax: 3 * BLOCK_BYTES,
      onCutWanted: () => cutsWanted++,
    });
    await disk.write(0, bytes(2 * BLOCK_BYTES, 1));
    await disk.write(2 * BLOCK_BYTES, bytes(BLOCK_BYTES, 1));
    expect(cutsWanted).toBe(1);
    let isWritten = false;
    const waiting = disk.write(3 * BLOCK_BYTES, bytes(BLOCK_BYTES, 1)).then(() => {
      isWritten = true;
    });
    disk.seal(epochId(1));
    await new Promise((resolve) => setImmediate(resolve));
    expect([cutsWanted, isWritten]).toEqual([2, false]);
    disk.commit(epochId(1));
    await waiting;
    expect(disk.heldBytes).toBeLessThan(2 * BLOCK_BYTES);
  });

  test('lets writes through before a cut, which else would wait for them for ever', async () => {
    const disk = await diskOn(new PowerLog(NOTHING), { heldBytesMax: BLOCK_BYTES });
    await disk.write(0, bytes(BLOCK_BYTES, 1));
    const waiting = disk.write(0, bytes(BLOCK_BYTES, 2));
    disk.letThrough();
    await waiting;
    disk.seal(epochId(1));
    let isWritten = false;
    void disk.write(0, bytes(BLOCK_BYTES, 3)).then(() => {
      isWritten = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    expect(isWritten).toBe(false);
    disk.commit(epochId(1));
    while (!isWritten) await new Promise((resolve) => setImmediate(resolve));
  });

  test('writes by itself where nobody cuts', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await diskOn(log, { mode: 'alone', heldBytesMax: 2 * BLOCK_BYTES });
    for (let round = 0; round < 20; round++)
      await disk.write((round % 8) * BLOCK_BYTES, bytes(BLOCK_BYTES, round));
    await disk.flush();
    expect((await contentOf(disk)).equals(log.image)).toBe(true);
  });
});

test('a small write keeps no more memory than it counts for', async () => {
  const disk = await diskOn(new PowerLog(NOTHING));
  const all = Buffer.alloc(64 * BLOCK_BYTES, 5);
  await disk.write(0, all.subarray(0, BLOCK_BYTES));
  disk.seal(epochId(1));
  const [write] = disk.sealedWrites(epochId(1));
  expect(write?.kind === 'data' && write.bytes.buffer.byteLength).toBe(BLOCK_BYTES);
});

test('a disk whose image cannot be written fails all that follows, and says so once', async () => {
  const log = new PowerLog(NOTHING);
  const image = await imageOn(log);
  image.device.write = () => Promise.reject(Object.assign(new Error('no space'), { code: 'ENOSPC' }));
  const failures: unknown[] = [];
  const disk = await diskOn(log, {
    image,
    mode: 'asynchronous',
    onFailed: (failure) => failures.push(failure),
  });
  await disk.write(0, bytes(BLOCK_BYTES, 1));
  const refused = { code: 'BLOCK_DISK_FAILED' };
  await expect(disk.flush()).rejects.toMatchObject(refused);
  await expect(disk.write(0, bytes(1, 1))).rejects.toMatchObject(refused);
  await expect(disk.durable(epochId(1))).resolves.toBeUndefined();
  expect(failures).toEqual([expect.objectContaining(refused)]);
  // The journal had it already: nothing that was answered is lost at the next start.
  const next = new PowerLog(log.afterPowerLoss(log.steps.length, () => true));
  await imageOn(next);
  expect(next.image[0]).toBe(1);
});

test('a disk whose image cannot be read says so before its guest is told, and goes on', async () => {
  const log = new PowerLog(NOTHING);
  const image = await imageOn(log);
  const read = image.device.read.bind(image.device);
  image.device.read = () => Promise.reject(Object.assign(new Error('bad sector'), { code: 'EIO' }));
  const story: unknown[] = [];
  const disk = await diskOn(log, { image, onUnreadable: ({ code }) => story.push(code) });
  const asking = [disk.read(0, bytes(1, 0)), disk.write(1, bytes(1, 7))];
  for (const asked of asking) await asked.catch(({ code }) => story.push(code));
  expect(story).toEqual(['BLOCK_DISK_FAILED', 'BLOCK_DISK_FAILED', 'EIO', 'EIO']);
  image.device.read = read;
  await disk.write(1, bytes(1, 7));
  const found = bytes(2, 0);
  await disk.read(0, found);
  expect([...found]).toEqual([0, 7]);
});

test('tells where it has zeros and holes, and where the image below has them', async () => {
  const disk = await diskOn(new PowerLog(NOTHING));
  await disk.write(0, bytes(10, 1));
  await disk.zero(BLOCK_BYTES, BLOCK_BYTES, { mayPunch: false });
  await disk.trim(2 * BLOCK_BYTES, BLOCK_BYTES);
  expect(await disk.extents(0, 4 * BLOCK_BYTES)).toEqual([
    { lengthBytes: BLOCK_BYTES, hole: false, zero: false },
    { lengthBytes: BLOCK_BYTES, hole: false, zero: true },
    { lengthBytes: BLOCK_BYTES, hole: true, zero: true },
    { lengthBytes: BLOCK_BYTES, hole: false, zero: false },
  ]);
});

describe('a disk without a shadow', () => {
  test('has every write in its image before it is answered, and flushes that', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await diskOn(log, { mode: 'alone' });
    const story = await newStory(log);
    const steps = fc.sample(fc.array(anyStep, { minLength: 30 }), { numRuns: 1, seed: 7 })[0] ?? [];
    for (const step of steps) {
      if (step.do !== 'write' && step.do !== 'zero') continue;
      const { offset, lengthBytes } = step.place;
      if (step.do === 'write') await disk.write(offset, bytes(lengthBytes, step.value));
      else await disk.zero(offset, lengthBytes, { mayPunch: true });
      story.now.fill(step.value, offset, offset + lengthBytes);
      expect(log.image.equals(story.now)).toBe(true);
    }
    expect(disk.heldBytes).toBe(0);
    await disk.flush();
    expect(log.afterPowerLoss(log.steps.length, () => false).image.equals(story.now)).toBe(true);
  });

  test('takes no part of a block from before a write that is on its way', async () => {
    const log = new PowerLog(NOTHING);
    const image = await imageOn(log);
    const disk = await diskOn(log, { image, mode: 'alone' });
    const { write } = image.device;
    const held = Promise.withResolvers<void>();
    image.device.write = async (...words) => {
      await held.promise;
      await write.apply(image.device, words);
    };
    const first = disk.write(0, bytes(512, 1));
    await disk.setMode('in-sync');
    const second = disk.write(512, bytes(512, 2));
    await new Promise((resolve) => setImmediate(resolve));
    held.resolve();
    await Promise.all([first, second]);
    disk.seal(epochId(1));
    disk.commit(epochId(1));
    // What is durable is in the journal, and may still be on its way to the image.
    await disk.close();
    expect([log.image[511], log.image[512], log.image[1024]]).toEqual([1, 2, 0]);
  });
});

describe('a disk whose shadow is lost', () => {
  /** Epoch 1 is committed, epoch 2 sealed, a part of epoch 3 written; all of it is kept. */
  async function leaving(log: PowerLog): Promise<EpochDisk> {
    const disk = await diskOn(log);
    for (const epoch of [1, 2]) {
      await disk.write(0, bytes(BLOCK_BYTES, epoch));
      disk.seal(epochId(epoch));
    }
    disk.commit(epochId(1));
    await disk.write(BLOCK_BYTES, bytes(BLOCK_BYTES, 3));
    await disk.keepAll();
    return disk;
  }

  /** By the next keeper, after this one was killed. */
  async function opened(log: PowerLog, upTo?: number): Promise<PowerLog> {
    const next = new PowerLog(log.afterPowerLoss(log.steps.length, () => true));
    const upToEpoch = upTo === undefined ? undefined : epochId(upTo);
    await JournaledImage.open({ device: next.device(), journal: next.journalFile(), upTo: upToEpoch });
    return next;
  }

  test('keeps what no epoch holds apart: the next keeper has it, or has the last epoch', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await leaving(log);
    expect([log.image[0], log.image[BLOCK_BYTES]]).toEqual([1, 0]);
    const alone = await opened(log);
    expect([alone.image[0], alone.image[BLOCK_BYTES]]).toEqual([2, 3]);
    const shadow = await opened(log, 1);
    expect([shadow.image[0], shadow.image[BLOCK_BYTES]]).toEqual([1, 0]);
    await disk.setMode('alone');
    expect([log.image[0], log.image[BLOCK_BYTES]]).toEqual([2, 3]);
    await expect(opened(log, 1)).rejects.toMatchObject({ code: 'BLOCK_ROLLBACK_TOO_LATE' });
  });

  test('answers no write while it is left', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await leaving(log);
    let isAnswered = false;
    const write = disk.write(0, bytes(BLOCK_BYTES, 9)).then(() => {
      isAnswered = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(isAnswered).toBe(false);
    await disk.setMode('alone');
    await write;
    expect(log.image[0]).toBe(9);
  });

  test('goes back to its last epoch as well, if it has to after all', async () => {
    const log = new PowerLog(NOTHING);
    const disk = await leaving(log);
    await disk.withdraw();
    disk.rollBack(epochId(2));
    await disk.setMode('alone');
    expect((await contentOf(disk)).equals(log.image)).toBe(true);
    expect([log.image[0], log.image[BLOCK_BYTES]]).toEqual([1, 0]);
    const next = await opened(log);
    expect([next.image[0], next.image[BLOCK_BYTES]]).toEqual([1, 0]);
  });
});
