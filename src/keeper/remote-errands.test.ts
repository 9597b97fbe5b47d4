import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import { PAGE_BYTES } from '../base/units.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { linkWithin } from '../replication/peer-link-fixture.ts';
import { MESSAGE } from '../replication/peer-messages.ts';
import { ShadowImage } from '../replication/shadow-image.ts';
import { restoreAll } from '../snapshot/full-restore.ts';
import { SnapshotFile } from '../snapshot/snapshot-file.ts';
import { FIXTURE_FACTS, FIXTURE_PAGES } from '../snapshot/snapshot-fixture.ts';
import { snapshotReadOut } from '../snapshot/snapshot-writer.ts';
import { READ_AHEAD_PAGES } from './errand-messages.ts';
import { RemoteErrands } from './remote-errands.ts';
import { ERRANDS_MAX, ShadowErrands } from './shadow-errands.ts';
import type { ShadowSession } from './shadow-session.ts';

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('errands')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
});

/** The keepers of a VM and of its shadow on another host, as far as errands go, and what the shadow holds. */
class World implements AsyncDisposable {
  readonly failpoints = new Failpoints();
  readonly image: ShadowImage;
  /** The VM's memory as of each epoch. */
  readonly history = new Map<number, Buffer>();
  readonly there: ShadowErrands;
  readonly here: RemoteErrands;
  readonly #vm: GuestMemory;
  readonly #link: ReturnType<typeof linkWithin>;
  #epoch = 0;

  constructor() {
    const { memoryBytes } = FIXTURE_FACTS;
    const { failpoints } = this;
    this.#vm = GuestMemory.create(join(directory, 'vm'), memoryBytes);
    const memory = GuestMemory.create(join(directory, 'shadow'), memoryBytes);
    this.image = ShadowImage.create({ ...{ memory, directory, slotCount: 6, failpoints } });
    this.#link = linkWithin();
    const { near, far } = this.#link;
    this.here = new RemoteErrands({ link: near, host: 'b', memoryBytes, clock });
    this.there = new ShadowErrands({
      ...{ link: far, spec: {} as VmSpec, clock, log, failpoints },
      session: { image: this.image } as ShadowSession,
      startTest: () => Promise.reject(new Error('no QEMU here')),
    });
    void this.#listen();
    void this.#listenThere();
    for (let epoch = 1; epoch <= 3; epoch += 1) this.commit(ALL_PAGES.filter((page) => page % 5 !== 0));
  }

  /** Commits an epoch that writes these pages, unless all slots wait to be applied. */
  commit(pages: readonly number[]): void {
    const slot = this.image.take();
    if (slot === undefined) return;
    this.#epoch += 1;
    const epoch = epochId(this.#epoch);
    using page = Mapping.anonymous(PAGE_BYTES);
    slot.begin(epoch);
    for (const firstPage of pages) {
      page.bytes.fill(1 + ((this.#epoch * 31 + firstPage) % 255));
      this.#vm.writeRuns([{ firstPage, pageCount: 1 }], page);
      slot.capture(this.#vm, [{ firstPage, pageCount: 1 }]);
    }
    slot.finish({ deviceState: Buffer.from(`devices of ${epoch}`), outputs: [] });
    this.history.set(epoch, readFileSync(this.#vm.path));
    this.image.acknowledge(slot, epoch);
  }

  snapshot(path: string, signal = new AbortController().signal) {
    const { epoch: _, ...facts } = FIXTURE_FACTS;
    return snapshotReadOut({
      ...{ path, key: undefined, facts, spec: Buffer.alloc(0), firmware: Buffer.from('bios'), signal },
      onProgress: () => {},
      readOut: (sink) => this.here.readOut(sink, { signal, onProgress: () => {} }),
    });
  }

  /** The connection ends. */
  cut(): void {
    this.#link.near.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await this.there.callOff();
    await this.there.ended();
    await this.image[Symbol.asyncDispose]();
  }

  async #listen(): Promise<void> {
    for await (const message of this.#link.near.messages()) this.here.take(message);
    this.here.fail(new Error('the link is closed'));
  }

  async #listenThere(): Promise<void> {
    for await (const { body } of this.#link.far.messages()) this.there.take(body);
  }
}

const ALL_PAGES = [...Array(FIXTURE_PAGES).keys()];

async function memoryIn(path: string): Promise<Buffer> {
  using file = SnapshotFile.open(path);
  using memory = GuestMemory.create(join(directory, 'restored'), FIXTURE_FACTS.memoryBytes);
  await restoreAll(file, { memory, signal: undefined });
  const bytes = readFileSync(memory.path);
  memory.remove();
  return bytes;
}

describe('what a shadow on another host holds', () => {
  it('is read out as of one epoch, while others are committed there, and written here', async () => {
    await using world = new World();
    const path = join(directory, 'one.usnap');
    let isWritten = false;
    const committing = (async () => {
      for (let round = 0; !isWritten; round += 1) {
        world.commit([round % FIXTURE_PAGES, (round * 7) % FIXTURE_PAGES]);
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
    })();
    const { epoch } = await world.snapshot(path);
    isWritten = true;
    await committing;
    expect((await memoryIn(path)).equals(world.history.get(epoch) ?? Buffer.alloc(0))).toBe(true);
    using file = SnapshotFile.open(path);
    expect(String(file.blob('deviceState'))).toBe(`devices of ${epoch}`);
    expect(String(file.blob('firmware'))).toBe('bios');
  });

  it('is not read further by one that waits than it was asked for, so that acknowledgements find their way', async () => {
    await using world = new World();
    const taken = Promise.withResolvers<void>();
    const abort = new AbortController();
    let pages = 0;
    const sink = {
      writePages: async (_: number, bytes: Uint8Array) => {
        pages += bytes.length / PAGE_BYTES;
        await taken.promise;
      },
    };
    const reading = world.here.readOut(sink, { signal: abort.signal, onProgress: () => {} });
    for (let turn = 0; turn < 200; turn += 1) await new Promise<void>((resolve) => setImmediate(resolve));
    expect(pages).toBeGreaterThan(0);
    taken.resolve();
    await reading;
    expect(pages).toBeGreaterThan(READ_AHEAD_PAGES);
  });

  it.each(['read-out.begun', 'read-out.held', 'read-out.before-end'])(
    'is not read any more by the time that it is needed there, at %s, and no file is left here',
    async (name) => {
      await using world = new World();
      const path = join(directory, 'store', 'one.usnap');
      const reached = Promise.withResolvers<void>();
      const release = Promise.withResolvers<void>();
      world.failpoints.arm(name, async () => {
        reached.resolve();
        await release.promise;
      });
      const taking = world.snapshot(path).catch((cause: unknown) => cause);
      await reached.promise;
      const off = world.there.callOff();
      release.resolve();
      await off;
      // Whoever takes over goes on from what is there.
      await world.image.settle();
      expect(await taking).toMatchObject({ facts: { reason: 'KEEPER_TEST_CUT_SHORT' } });
      expect(existsSync(path)).toBe(false);
      expect(readdirSync(join(directory, 'store'))).toEqual([]);
    },
  );

  it('may be read out again after somebody gave up, and fails when the connection is lost', async () => {
    await using world = new World();
    const abort = new AbortController();
    world.failpoints.arm('read-out.held', () => abort.abort(new Error('enough')));
    await expect(world.snapshot(join(directory, 'one.usnap'), abort.signal)).rejects.toThrow('enough');
    world.failpoints.arm('read-out.held', () => {});
    const path = join(directory, 'two.usnap');
    const { epoch } = await world.snapshot(path);
    expect((await memoryIn(path)).equals(world.history.get(epoch) ?? Buffer.alloc(0))).toBe(true);
    world.failpoints.arm('read-out.held', () => world.cut());
    await expect(world.snapshot(join(directory, 'three.usnap'))).rejects.toThrow('the link is closed');
  });

  it('is not believed when it is more than was asked for, or when nobody asked', async () => {
    await using world = new World();
    const piece = { type: MESSAGE.read, body: Buffer.alloc(8) };
    piece.body.writeBigUInt64LE(9n);
    expect(() => world.here.take(piece)).toThrow('nobody asked for');
    const sink = { writePages: () => Promise.withResolvers<void>().promise };
    const reading = world.here.readOut(sink, { signal: new AbortController().signal, onProgress: () => {} });
    reading.catch(() => {});
    const head = Buffer.alloc(8 + 4 + 8);
    head.writeBigUInt64LE(1n);
    head.writeUInt16LE(1, 8);
    head.writeUInt32LE(0, 12);
    head.writeUInt32LE(100, 16);
    const most = () => world.here.take({ type: MESSAGE.read, body: head });
    expect(() => [most(), most()]).toThrow('more pages than were asked for');
    world.cut();
  });

  it('is looked at by so many at a time, and who is one too many is told, and nothing ends', async () => {
    await using world = new World();
    const held = Promise.withResolvers<void>();
    world.failpoints.arm('read-out.begun', () => held.promise);
    const abort = new AbortController();
    const ask = () => world.here.test({ expectsAgent: false, signal: abort.signal });
    const sink = { writePages: async () => {} };
    const waiting = [
      world.here.readOut(sink, { signal: abort.signal, onProgress: () => {} }),
    ] as Promise<unknown>[];
    while (waiting.length < ERRANDS_MAX) waiting.push(ask());
    for (const each of waiting) each.catch(() => {});
    await expect(ask()).rejects.toMatchObject({
      code: 'KEEPER_PEER_REFUSED',
      facts: { reason: 'KEEPER_ERRANDS_FULL' },
    });
    abort.abort(new Error('enough'));
    held.resolve();
    const { epoch } = await world.snapshot(join(directory, 'after.usnap'));
    expect(world.history.has(epoch)).toBe(true);
  });

  it('says why it cannot be tried out', async () => {
    await using world = new World();
    const signal = new AbortController().signal;
    await expect(world.here.test({ expectsAgent: false, signal })).rejects.toMatchObject({
      code: 'KEEPER_PEER_REFUSED',
      facts: { host: 'b' },
    });
  });
});
