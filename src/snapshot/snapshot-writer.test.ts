import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { Failpoints } from '../base/failpoint.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { ShadowImage } from '../replication/shadow-image.ts';
import { SnapshotFile } from './snapshot-file.ts';
import { FIXTURE_FACTS, FIXTURE_PAGES, writePages } from './snapshot-fixture.ts';
import { locationOf } from './snapshot-format.ts';
import { snapshotShadow, snapshotStill } from './snapshot-writer.ts';

let directory: string;
let path: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('snapshot')}-`);
  path = join(directory, 'snapshots', 'one.usnap');
  onTestFinished(() => rmSync(directory, { recursive: true }));
});

let made = 0;
function newMemory(): GuestMemory {
  made += 1;
  const memory = GuestMemory.create(join(directory, `${made}.ram`), FIXTURE_PAGES * PAGE_BYTES);
  onTestFinished(() => memory[Symbol.dispose]());
  return memory;
}

/** What the memory of a VM is that goes on from the file. */
function memoryIn(file: string): Buffer {
  using snapshot = SnapshotFile.open(file);
  const memory = Buffer.alloc(FIXTURE_PAGES * PAGE_BYTES);
  for (const [page, place] of snapshot.index.places.entries()) {
    if (place === 0) continue;
    const { chunk, slot } = locationOf(place);
    snapshot.chunk(chunk).copy(memory, page * PAGE_BYTES, slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES);
  }
  return memory;
}

const common = () => ({
  path,
  key: undefined,
  spec: Buffer.from('name: vm'),
  firmware: Buffer.from('firmware'),
  signal: new AbortController().signal,
  onProgress: () => {},
});

/** A VM's memory, its shadow, and what the memory was at every epoch. */
class Shadowed implements AsyncDisposable {
  readonly vm = newMemory();
  readonly image: ShadowImage;
  readonly history = new Map<number, Buffer>();
  #epoch = 0;

  constructor(failpoints = new Failpoints()) {
    this.image = ShadowImage.create({ memory: newMemory(), directory, slotCount: 6, failpoints });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.image[Symbol.asyncDispose]();
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
      this.vm.writeRuns([{ firstPage, pageCount: 1 }], page);
      slot.capture(this.vm, [{ firstPage, pageCount: 1 }]);
    }
    slot.finish({ deviceState: Buffer.from(String(epoch)), outputs: [] });
    this.history.set(epoch, readFileSync(this.vm.path));
    this.image.acknowledge(slot, epoch);
  }
}

const lending =
  (image: ShadowImage) =>
  <Result>(work: (image: ShadowImage) => Promise<Result>) =>
    work(image);

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const ALL_PAGES = [...Array(FIXTURE_PAGES).keys()];

describe('a snapshot of a VM that stands still', () => {
  it('refuses a place where the kernel takes no new names, and does not hang over it', async () => {
    const options = { memory: newMemory(), facts: FIXTURE_FACTS, deviceState: Buffer.from('devices') };
    const nowhere = { ...common(), ...options, path: '/proc/us-none/vm/one.usnap' };
    await expect(snapshotStill(nowhere)).rejects.toMatchObject({ code: 'SNAPSHOT_STORE_REFUSED' });
  });

  it('is its memory, device state, firmware and specification', async () => {
    const memory = newMemory();
    writePages(
      memory,
      new Map<number, number | 'noise'>([
        [0, 1],
        [3, 'noise'],
        [4, 0],
        [5, 1],
        [FIXTURE_PAGES - 1, 'noise'],
      ]),
    );
    const shares: number[] = [];
    const written = await snapshotStill({
      ...{ ...common(), memory, facts: FIXTURE_FACTS, deviceState: Buffer.from('devices') },
      onProgress: (share) => shares.push(share),
    });
    expect(memoryIn(path).equals(readFileSync(memory.path))).toBe(true);
    using file = SnapshotFile.open(path);
    expect(file.facts).toEqual(FIXTURE_FACTS);
    expect(written).toEqual({ epoch: 7, sizeBytes: file.sizeBytes, heldMs: 0 });
    expect(String(file.blob('deviceState'))).toBe('devices');
    expect(String(file.blob('spec'))).toBe('name: vm');
    expect(shares.at(-1)).toBe(1);
  });
});

describe('a snapshot of a VM that runs', () => {
  it('is its memory and device state as of one committed epoch, whatever is committed meanwhile', async () => {
    const epochs = fc.array(fc.array(fc.nat(FIXTURE_PAGES - 1), { minLength: 1, maxLength: 8 }), {
      minLength: 1,
      maxLength: 40,
    });
    await fc.assert(
      fc.asyncProperty(epochs, async (pages) => {
        await using shadowed = new Shadowed();
        shadowed.commit(ALL_PAGES);
        await shadowed.image.settle();
        let ended = false;
        const snapshot = snapshotShadow({
          ...{
            ...common(),
            use: lending(shadowed.image),
            facts: FIXTURE_FACTS,
            nowMs: () => performance.now(),
          },
          // Some are committed while nothing is applied.
          onHeld: () => shadowed.commit([1, 2]),
        }).finally(() => {
          ended = true;
        });
        for (const each of pages) {
          if (ended) break;
          shadowed.commit(each);
          await turn();
        }
        const { epoch } = await snapshot;
        expect(memoryIn(path).equals(shadowed.history.get(epoch) ?? Buffer.alloc(0))).toBe(true);
        using file = SnapshotFile.open(path);
        expect([file.facts.epoch, String(file.blob('deviceState'))]).toEqual([epoch, String(epoch)]);
        await shadowed.image.settle();
        expect(readFileSync(shadowed.image.memory.path).equals(readFileSync(shadowed.vm.path))).toBe(true);
      }),
      { numRuns: 15 },
    );
  });

  it('has the pages of an epoch whose application was under way when it began', async () => {
    const failpoints = new Failpoints();
    await using shadowed = new Shadowed(failpoints);
    shadowed.commit(ALL_PAGES);
    await shadowed.image.settle();
    const { promise: mayGoOn, resolve: goOn } = Promise.withResolvers<void>();
    const begun = Promise.withResolvers<void>();
    failpoints.arm('apply.before', () => {
      begun.resolve();
      return mayGoOn;
    });
    shadowed.commit([0, 400]);
    await begun.promise;
    const snapshot = snapshotShadow({
      ...{ ...common(), use: lending(shadowed.image), facts: FIXTURE_FACTS, nowMs: () => 0 },
      onProgress: (share) => {
        // Everything was read once before any of the epoch is written.
        if (share === 1) goOn();
      },
    });
    const { epoch } = await snapshot;
    expect(epoch).toBe(2);
    expect(memoryIn(path).equals(readFileSync(shadowed.vm.path))).toBe(true);
  });

  it('that is given up leaves no file, and lets epochs be applied', async () => {
    await using shadowed = new Shadowed();
    shadowed.commit(ALL_PAGES);
    await shadowed.image.settle();
    const abort = new AbortController();
    const snapshot = snapshotShadow({
      ...{
        ...common(),
        use: lending(shadowed.image),
        facts: FIXTURE_FACTS,
        nowMs: () => 0,
        signal: abort.signal,
      },
      onHeld: () => {
        shadowed.commit([2]);
        abort.abort(new Error('given up'));
      },
    });
    await expect(snapshot).rejects.toThrow('given up');
    expect(readdirSync(join(directory, 'snapshots'))).toEqual([]);
    expect((await shadowed.image.settle()).epoch).toBe(2);
  });
});
