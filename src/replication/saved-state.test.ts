import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { Failpoints } from '../base/failpoint.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { discardSavedState, SavedState, type SavedStateFacts } from './saved-state.ts';

const PAGES = (3 * MIB) / PAGE_BYTES;

let folder: string;
let place: string;
let memory: GuestMemory;

beforeEach(() => {
  folder = mkdtempSync(`/dev/shm/${marked('saved')}-`);
  place = join(folder, 'states/vm');
  memory = newMemory('vm');
  onTestFinished(() => rmSync(folder, { recursive: true }));
});

function newMemory(name: string): GuestMemory {
  const made = GuestMemory.create(join(folder, `${name}.ram`), PAGES * PAGE_BYTES);
  onTestFinished(() => made[Symbol.dispose]());
  return made;
}

/** Pages of one value each; 0 is a page that is there and holds zeros. */
function write(values: ReadonlyMap<number, number>): void {
  using page = Mapping.anonymous(PAGE_BYTES);
  for (const [firstPage, value] of values) {
    page.bytes.fill(value);
    memory.writeRuns([{ firstPage, pageCount: 1 }], page);
  }
}

const contentOf = ({ path }: GuestMemory) => readFileSync(path);

const FACTS: SavedStateFacts = {
  vm: 'vm',
  kind: 'suspended',
  savedAtMs: 1,
  epoch: 7,
  qemuVersion: '7.2.22',
  accel: 'tcg',
  machineHash: 'a'.repeat(64),
  memoryBytes: PAGES * PAGE_BYTES,
};

function save(changes: Partial<Parameters<typeof SavedState.save>[1]> = {}): Promise<SavedState> {
  return SavedState.save(place, {
    facts: FACTS,
    memory,
    deviceState: Buffer.from('devices'),
    firmware: Buffer.from('firmware'),
    signal: new AbortController().signal,
    failpoints: new Failpoints(),
    onProgress: () => {},
    ...changes,
  });
}

describe('the state of a VM on disk', () => {
  it('holds all that was saved, whatever the memory looks like', async () => {
    const pages = fc.array(fc.tuple(fc.nat(PAGES - 1), fc.nat(2)), { maxLength: 40 });
    await fc.assert(
      fc.asyncProperty(pages, async (written) => {
        memory.discardAll();
        write(new Map(written));
        await save();
        const found = SavedState.find(place);
        await found?.verify();
        const loaded = newMemory(`loaded-${Math.random()}`);
        await found?.loadMemory(loaded);
        expect(contentOf(loaded).equals(contentOf(memory))).toBe(true);
        expect(found?.deviceState.toString()).toBe('devices');
        expect(found?.firmware.toString()).toBe('firmware');
        expect(found?.facts).toEqual(FACTS);
        loaded.remove();
      }),
      { numRuns: 25 },
    );
  });

  it('takes no room for pages of zeros', async () => {
    write(new Map(Array.from({ length: PAGES }, (_, page) => [page, 0])));
    expect((await save()).sizeBytes).toBeLessThan(1000);
  });

  it('tells how far it has come, up to all of it', async () => {
    write(new Map([...Array(PAGES).keys()].map((page) => [page, 1])));
    const shares: number[] = [];
    await save({ onProgress: (share) => shares.push(share) });
    expect(shares.length).toBeGreaterThan(2);
    expect(shares).toEqual(shares.toSorted((a, b) => a - b));
    expect(shares.at(-1)).toBe(1);
  });

  it('is noticed to be damaged, wherever a bit of it is flipped', async () => {
    write(new Map([[1, 1]]));
    await save();
    for (const name of readdirSync(place)) {
      const path = join(place, name);
      const whole = readFileSync(path);
      for (const at of new Set([0, Math.floor(whole.length / 2), whole.length - 2])) {
        const flipped = Buffer.from(whole);
        flipped[at] = (flipped[at] ?? 0) ^ 1;
        writeFileSync(path, flipped);
        const verified = async () => SavedState.find(place)?.verify();
        await expect(verified()).rejects.toMatchObject({ code: 'REPLICATION_STATE_DAMAGED' });
      }
      writeFileSync(path, whole);
    }
    await SavedState.find(place)?.verify();
  });

  it('is the one before or the new one, at whatever step the writer ends', async () => {
    write(new Map([[1, 1]]));
    await save();
    for (const step of ['save.before-header', 'save.after-header']) {
      const failpoints = new Failpoints();
      let seen: string | undefined;
      failpoints.arm(step, async () => {
        // What a process that is killed here leaves.
        seen = SavedState.find(place)?.deviceState.toString();
        await SavedState.find(place)?.verify();
      });
      await save({ failpoints, deviceState: Buffer.from(`after ${step}`) });
      expect(seen).toBe(step === 'save.before-header' ? 'devices' : `after ${step}`);
    }
    expect(readdirSync(place)).toHaveLength(4);
  });

  it('is not there when its writing was given up, and nothing of the attempt is', async () => {
    write(new Map([[1, 1]]));
    const abort = new AbortController();
    const failpoints = new Failpoints();
    failpoints.arm('save.before-header', () => abort.abort(new Error('given up')));
    await expect(save({ signal: abort.signal, failpoints })).rejects.toThrow('given up');
    expect(readdirSync(place)).toEqual([]);
  });

  it('leaves the one before in place when there is no room for it', async () => {
    using tmpfs = new SmallTmpfs(MIB);
    place = join(tmpfs.path, 'vm');
    await save();
    await expect(SavedState.assertRoom(place, memory)).rejects.toMatchObject({
      code: 'REPLICATION_STATE_NO_ROOM',
    });
    const noise = Buffer.alloc(2 * MIB).map(() => Math.random() * 256);
    await expect(save({ firmware: noise })).rejects.toMatchObject({ code: 'REPLICATION_STATE_NO_ROOM' });
    expect(SavedState.find(place)?.firmware.toString()).toBe('firmware');
    expect(readdirSync(place)).toHaveLength(4);
  });

  it('is gone once it is removed, and so is a damaged one that is discarded', async () => {
    await (await save()).remove();
    expect(SavedState.find(place)).toBeUndefined();
    await save();
    writeFileSync(join(place, 'header.json'), 'nonsense');
    expect(() => SavedState.find(place)).toThrow(
      expect.objectContaining({ code: 'REPLICATION_STATE_DAMAGED' }),
    );
    discardSavedState(place);
    expect(SavedState.find(place)).toBeUndefined();
  });
});
