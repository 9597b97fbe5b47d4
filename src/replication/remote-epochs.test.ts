import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { Failpoints } from '../base/failpoint.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { type EpochId, epochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { mergeRuns } from '../memory/page-runs.ts';
import type { Effort } from '../wire/page-codec.ts';
import { EpochReceiver } from './epoch-receiver.ts';
import { PageSender } from './page-sender.ts';
import { computedLink, linkWithin, type Tamper } from './peer-link-fixture.ts';
import { decodeWords, encodeWords, MESSAGE } from './peer-messages.ts';
import { RemoteImage } from './remote-image.ts';
import { ReplicationError } from './replication-error.ts';
import { ShadowImage } from './shadow-image.ts';

const PAGES = 600;
const SLOTS = 3;

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('remote')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
});

/** A VM, the way to its shadow, and that. */
class World implements AsyncDisposable {
  readonly store: RemoteImage;
  readonly image: ShadowImage;
  readonly failpoints = new Failpoints();
  readonly receiver: EpochReceiver;
  /** Ends with what the shadow's side found wrong, if anything. */
  readonly received: Promise<unknown>;
  readonly #vm: GuestMemory;
  readonly #pages = Mapping.anonymous(PAGES * PAGE_BYTES);
  readonly #owned = new AsyncDisposableStack();
  #epoch = 0;

  readonly pages: PageSender;

  constructor(
    tamper?: Tamper,
    {
      bytesPerSecond = Number.POSITIVE_INFINITY,
      fixedEffort,
    }: { bytesPerSecond?: number; fixedEffort?: Effort } = {},
  ) {
    const id = crypto.randomUUID();
    const memoryBytes = PAGES * PAGE_BYTES;
    const memoryOf = (role: string) =>
      this.#owned.use(GuestMemory.create(join(directory, `${id}-${role}`), memoryBytes));
    this.#owned.use(this.#pages);
    this.#vm = memoryOf('vm');
    const slotsOf = mkdtempSync(join(directory, 'slots-'));
    const { failpoints } = this;
    const options = { memory: memoryOf('shadow'), directory: slotsOf, slotCount: SLOTS, failpoints };
    this.image = this.#owned.use(ShadowImage.create(options));
    const { nowMs, toll } = computedLink(bytesPerSecond);
    const { near, far } = linkWithin(tamper, toll);
    const pages = this.#owned.use(new PageSender(near, { nowMs, fixedEffort }));
    this.pages = pages;
    const store = RemoteImage.create({
      pages,
      ...{ link: near, directory: join(directory, `out-${id}`), memoryBytes, slotCount: SLOTS },
    });
    this.store = store;
    const receiver = this.#owned.use(
      new EpochReceiver({
        ...{ image: this.image, failpoints, onCopied: () => {}, onAnswer: () => {} },
        onHeld: (epoch) =>
          void far.send(MESSAGE.words, [encodeWords({ kind: 'held', epoch })]).catch(() => {}),
      }),
    );
    this.receiver = receiver;
    this.received = (async () => {
      try {
        for await (const message of far.messages()) await receiver.take(message);
        return undefined;
      } catch (thrown) {
        return thrown;
      } finally {
        far.close();
      }
    })();
    const hearing = (async () => {
      for await (const { body } of near.messages()) {
        const words = decodeWords(body);
        if (words.kind === 'held') store.noteHeld(epochId(words.epoch));
      }
      store.fail(new Error('the link is closed'));
    })();
    this.#owned.defer(async () => {
      near.close();
      await store[Symbol.asyncDispose]();
      await Promise.all([hearing, this.received]);
    });
  }

  /** The VM writes pages and an epoch of them is sent. Resolves when it is acknowledged. */
  async epoch(written: readonly number[], value: number | ((page: number) => Uint8Array)): Promise<EpochId> {
    this.#epoch += 1;
    const epoch = epochId(this.#epoch);
    await this.store.room();
    const slot = this.store.take();
    if (slot === undefined) throw new Error('there is room');
    slot.begin(epoch);
    const runs = mergeRuns(written.map((firstPage) => ({ firstPage, pageCount: 1 })));
    for (const page of written) {
      if (typeof value === 'number')
        this.#pages.bytes.fill(value, page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
      else this.#pages.bytes.set(value(page), page * PAGE_BYTES);
      this.#vm.writeRuns([{ firstPage: page, pageCount: 1 }], this.#pages, page * PAGE_BYTES);
    }
    slot.capture(this.#vm, runs);
    // As in a cut that scans twice: some pages change again and stand in the epoch twice.
    const again = written.slice(0, 3);
    for (const page of again) {
      this.#pages.bytes.fill(this.#epoch + 1, page * PAGE_BYTES, page * PAGE_BYTES + 100);
      this.#vm.writeRuns([{ firstPage: page, pageCount: 1 }], this.#pages, page * PAGE_BYTES);
    }
    slot.capture(this.#vm, mergeRuns(again.map((firstPage) => ({ firstPage, pageCount: 1 }))));
    slot.finish({
      deviceState: Buffer.from(`device state ${epoch}`),
      outputs: [{ link: 'nic0', items: [Uint8Array.of(this.#epoch)] }],
    });
    this.store.offer(slot, epoch);
    await this.store.acknowledge(slot, epoch);
    return epoch;
  }

  contents(memory: GuestMemory = this.#vm): Buffer {
    using read = Mapping.anonymous(PAGES * PAGE_BYTES);
    memory.readRuns([{ firstPage: 0, pageCount: PAGES }], read);
    return Buffer.from(read.bytes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}

/** Single pages all over, or many in a row. */
const pagesWritten = fc.oneof(
  fc.uniqueArray(fc.nat(PAGES - 1), { minLength: 1, maxLength: 400 }),
  fc
    .tuple(fc.nat(PAGES - 1), fc.integer({ min: 1, max: PAGES }))
    .map(([first, count]) =>
      Array.from({ length: Math.min(count, PAGES - first) }, (_, index) => first + index),
    ),
);

const writes = fc.array(
  fc.record({
    pages: pagesWritten,
    value: fc.nat(255),
  }),
  { minLength: 1, maxLength: 6 },
);

describe('epochs on their way to another host', () => {
  it('are the memory, device state and output of the VM when they are acknowledged', async () => {
    await fc.assert(
      fc.asyncProperty(writes, async (epochs) => {
        await using world = new World();
        for (const { pages, value } of epochs) {
          const epoch = await world.epoch(pages, value);
          const staged = await world.image.settle();
          expect(staged.epoch).toBe(epoch);
          expect(staged.deviceState.toString()).toBe(`device state ${epoch}`);
          expect(staged.outputs).toEqual([{ link: 'nic0', items: [Uint8Array.of(epoch)] }]);
          expect(world.contents(world.image.memory).equals(world.contents())).toBe(true);
        }
      }),
      { numRuns: 25 },
    );
  });

  it('are not acknowledged, nor gone on from, when a bit of them was flipped or a message lost', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(3), fc.nat(), fc.boolean(), async (index, at, isLost) => {
        let seen = 0;
        await using world = new World((message) => {
          seen += 1;
          // The first epoch consists of three messages, the second of four: pages, pages, tail and seal.
          if (seen !== 4 + index) return message;
          if (isLost) return undefined;
          const body = Buffer.from(message.body);
          const byte = at % body.length;
          body.writeUInt8(body.readUInt8(byte) ^ 0x10, byte);
          return { ...message, body };
        });
        await world.epoch([1, 2, 3], 7);
        const before = world.contents();
        const pages = Array.from({ length: 500 }, (_, page) => page);
        // A message that was lost shows with the epoch after it.
        const later = [world.epoch(pages, 9), world.epoch([5], 11)];
        for (const epoch of later) epoch.catch(() => {});
        const acknowledged = Promise.race(later.map((epoch) => epoch.then(() => 'acknowledged')));
        expect(await Promise.race([acknowledged, world.received])).toBeInstanceOf(ReplicationError);
        expect((await world.image.settle()).epoch).toBe(1);
        expect(world.contents(world.image.memory).equals(before)).toBe(true);
      }),
      { numRuns: 40 },
    );
  });

  it('are taken no more once the receiver is closed, wherever one has come to', async () => {
    for (const failpoint of ['receive.before-finish', 'receive.before-acknowledge'] as const) {
      await using world = new World();
      await world.epoch([1], 1);
      world.failpoints.arm(failpoint, () => world.receiver.close());
      const second = world.epoch([2], 2);
      second.catch(() => {});
      const third = world.epoch([3], 3);
      third.catch(() => {});
      await new Promise<void>((resolve) => setImmediate(resolve));
      expect((await world.image.settle()).epoch).toBe(1);
    }
  });

  it('that wait for a shadow which is lost fail, and so do later ones', async () => {
    await using world = new World((message) => (message.type === MESSAGE.seal ? undefined : message));
    const waiting = world.epoch([1], 1);
    world.store.fail(new Error('the link broke'));
    await expect(waiting).rejects.toThrow('the link broke');
    await expect(world.epoch([2], 2)).rejects.toThrow('the link broke');
  });
});

describe('how much epochs are packed', () => {
  const MBIT = 1e6 / 8;
  const EPOCHS = 24;

  /** Words of a guest: pages have much in common, and change all over from epoch to epoch. */
  const pageOf = (epoch: number) => (page: number) => {
    const words = Array.from(
      { length: 400 },
      (_, at) => `key:${(epoch * 7919 + page * 104_729 + at * 31) % 9973} `,
    );
    return Buffer.from(words.join('').padEnd(PAGE_BYTES, '.')).subarray(0, PAGE_BYTES);
  };
  const written = Array.from({ length: 120 }, (_, page) => page);

  async function sent(bytesPerSecond: number, fixedEffort?: Effort) {
    await using world = new World(undefined, {
      bytesPerSecond,
      ...(fixedEffort !== undefined && { fixedEffort }),
    });
    const startMs = world.pages.nowMs();
    for (let epoch = 0; epoch < EPOCHS; epoch += 1) await world.epoch(written, pageOf(epoch));
    await world.image.settle();
    expect(world.contents(world.image.memory).equals(world.contents())).toBe(true);
    const { wireBytes } = world.pages.sentBytes;
    return { wireBytes, tookMs: world.pages.nowMs() - startMs, rate: world.pages.linkBytesPerSecond };
  }

  it('follows the link: on a slow one fewer bytes are sent, and epochs are held sooner', async () => {
    const slow = 10 * MBIT;
    const [least, once, fitting] = [await sent(slow, 0), await sent(slow, 1), await sent(slow)];
    expect(fitting.rate / slow).toBeGreaterThan(0.5);
    expect(fitting.rate / slow).toBeLessThan(2);
    expect(fitting.wireBytes).toBeLessThan(least.wireBytes / 2);
    expect(fitting.wireBytes).toBeLessThan(once.wireBytes * 0.9);
    // Seconds on the link, next to which the time that this machine takes for packing is little, however busy it is.
    expect(fitting.tookMs).toBeLessThan(least.tookMs);
    expect(fitting.tookMs).toBeLessThan(once.tookMs);
    // Nothing is waited for: little is packed (control).
    const unlimited = await sent(Number.POSITIVE_INFINITY);
    expect(unlimited.rate).toBeGreaterThan(slow * 5);
    expect(unlimited.wireBytes).toBeGreaterThan(fitting.wireBytes * 1.5);
  });
});
