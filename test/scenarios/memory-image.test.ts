import { xxh64 } from '@node-rs/xxhash';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '../../src/base/units.ts';
import { Mapping } from '../../src/linux/mapping.ts';
import { GuestMemory } from '../../src/memory/guest-memory.ts';
import { TestVm } from '../kit/test-vm.ts';

const WRITER = 'us.writer=4000:1';
/** Epochs before the one that is compared, so that most pages come from epochs and not from the first copy. */
const EPOCHS_BEFORE = 20;

/** Hashes of all pages of the guest memory in this file. */
function hashesOf(path: string): BigUint64Array {
  using memory = GuestMemory.open(path);
  using all = Mapping.anonymous(memory.sizeBytes);
  memory.readRuns([{ firstPage: 0, pageCount: memory.pageCount }], all);
  return BigUint64Array.from({ length: memory.pageCount }, (_, page) =>
    xxh64(all.bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)),
  );
}

function pagesThatDiffer(one: BigUint64Array, other: BigUint64Array): number[] {
  return [...one.keys()].filter((page) => one[page] !== other[page]);
}

/** The primary as it stands still in a cut, before that is committed. The VM stays there until `release`. */
async function standStill(vm: TestVm): Promise<{ hashes: BigUint64Array; release: () => void }> {
  let cuts = 0;
  const cut = vm.holdAt('cut.before-resume', () => {
    cuts += 1;
    return cuts > EPOCHS_BEFORE;
  });
  await cut.reached;
  return { hashes: hashesOf(vm.memoryPath(vm.status.primary)), release: cut.release };
}

describe('the memory of a shadow that takes over', () => {
  it('is the same before and after the device state is loaded', async () => {
    await using vm = await TestVm.start();
    for (let round = 0; round < 3; round += 1) {
      await vm.load.begin();
      const shadow = vm.memoryPath(vm.status.shadow);
      const [before, after] = [vm.holdAt('promote.before-load'), vm.holdAt('promote.after-load')];
      vm.signalPrimary('SIGKILL');
      await before.reached;
      const unloaded = hashesOf(shadow);
      before.release();
      await after.reached;
      expect(pagesThatDiffer(unloaded, hashesOf(shadow))).toEqual([]);
      after.release();
      // That the comparison sees what a guest does once it runs.
      await vm.nextEvent('protected');
      expect(pagesThatDiffer(unloaded, hashesOf(shadow)).length).toBeGreaterThan(0);
      expect(await vm.load.end()).toMatchObject({ errors: [] });
    }
  });

  it.each(['pagemap-scan', 'compare'])(
    'is that of the primary in its last committed cut, page by page, found by %s while the guest writes',
    async (dirtyLog) => {
      await using vm = await TestVm.start({ cmdline: WRITER, yaml: `shadow: {dirtyLog: ${dirtyLog}}` });
      expect(vm.status.dirtyLog).toBe(dirtyLog);
      let before: BigUint64Array | undefined;
      // The second takeover starts from a VM that was a shadow itself.
      for (let round = 0; round < 2; round += 1) {
        const shadow = vm.memoryPath(vm.status.shadow);
        const { hashes: primary, release } = await standStill(vm);
        const killed = vm.atNext('commit.after-acknowledge', () => {
          vm.signalPrimary('SIGKILL');
        });
        const promoting = vm.holdAt('promote.after-load');
        release();
        await killed;
        await promoting.reached;
        expect(pagesThatDiffer(primary, hashesOf(shadow))).toEqual([]);
        promoting.release();
        await vm.nextEvent('protected');
        expect(pagesThatDiffer(primary, before ?? new BigUint64Array(primary.length)).length).toBeGreaterThan(
          100,
        );
        before = primary;
      }
    },
  );

  it('differs, or cannot take over, when pages of an epoch that is not whole get into it', async () => {
    await using vm = await TestVm.start({ cmdline: WRITER });
    const [from, to] = [vm.memoryPath(vm.status.primary), vm.memoryPath(vm.status.shadow)];
    const { hashes: primary, release } = await standStill(vm);
    // The next epoch is half there when the primary dies.
    const killed = vm.atNext('cut.after-pause', () => {
      copyPages(from, to);
      vm.signalPrimary('SIGKILL');
    });
    const failed = vm.nextEvent('promote-failed').then(() => 'cannot take over');
    const promoting = vm.holdAt('promote.after-load');
    const loaded = promoting.reached.then(() => pagesThatDiffer(primary, hashesOf(to)).length);
    release();
    await killed;
    expect(await Promise.race([failed, loaded]), 'the check above would notice').not.toBe(0);
  });
});

/** What an epoch that is not atomic would do: dirty pages go straight into the shadow's memory. */
function copyPages(from: string, to: string): void {
  using source = GuestMemory.open(from);
  using target = GuestMemory.open(to);
  using page = Mapping.anonymous(source.sizeBytes);
  const all = [{ firstPage: 0, pageCount: source.pageCount }];
  source.readRuns(all, page);
  target.writeRuns(all, page);
}
