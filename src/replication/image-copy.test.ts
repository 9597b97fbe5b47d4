import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { Failpoints } from '../base/failpoint.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { copyImage } from './image-copy.ts';
import { ShadowImage } from './shadow-image.ts';

const PAGES = (3 * MIB) / PAGE_BYTES;

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('copy')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
});

let made = 0;
function newMemory(): GuestMemory {
  made += 1;
  const memory = GuestMemory.create(join(directory, `${made}.ram`), PAGES * PAGE_BYTES);
  onTestFinished(() => memory[Symbol.dispose]());
  return memory;
}

/** A VM's memory, its shadow, and what the memory was at every epoch. */
class Shadowed implements AsyncDisposable {
  readonly vm = newMemory();
  readonly image: ShadowImage;
  readonly history = new Map<number, Buffer>();
  #epoch = 0;

  constructor(failpoints: Failpoints) {
    this.image = ShadowImage.create({ memory: newMemory(), directory, slotCount: 6, failpoints });
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.image[Symbol.asyncDispose]();
  }

  /** Commits an epoch that writes these pages. False when all slots wait to be applied. */
  commit(pages: readonly number[]): boolean {
    const slot = this.image.take();
    if (slot === undefined) return false;
    this.#epoch += 1;
    const epoch = epochId(this.#epoch);
    using page = Mapping.anonymous(PAGE_BYTES);
    page.bytes.fill(1 + (this.#epoch % 255));
    slot.begin(epoch);
    for (const firstPage of pages) {
      this.vm.writeRuns([{ firstPage, pageCount: 1 }], page);
      slot.capture(this.vm, [{ firstPage, pageCount: 1 }]);
    }
    slot.finish({ deviceState: Buffer.from(String(epoch)), outputs: [] });
    this.history.set(epoch, readFileSync(this.vm.path));
    this.image.acknowledge(slot, epoch);
    return true;
  }
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

describe('a copy of an image', () => {
  it('is the memory of one committed epoch, whatever is committed meanwhile', async () => {
    const epochs = fc.array(fc.array(fc.nat(PAGES - 1), { minLength: 1, maxLength: 8 }), {
      minLength: 1,
      maxLength: 30,
    });
    await fc.assert(
      fc.asyncProperty(epochs, async (pages) => {
        await using shadowed = new Shadowed(new Failpoints());
        shadowed.commit([...Array(PAGES).keys()]);
        await shadowed.image.settle();
        let copied = false;
        const to = newMemory();
        const copy = copyImage({
          ...{ image: shadowed.image, to, signal: new AbortController().signal },
          nowMs: () => performance.now(),
          // Some are committed while nothing is applied.
          onHeld: () => void shadowed.commit([1, 2]),
        }).finally(() => {
          copied = true;
        });
        for (const each of pages) {
          if (copied) break;
          shadowed.commit(each);
          await turn();
        }
        const { staged } = await copy;
        expect(staged.deviceState.toString()).toBe(String(staged.epoch));
        expect(readFileSync(to.path).equals(shadowed.history.get(staged.epoch) ?? Buffer.alloc(0))).toBe(
          true,
        );
        await shadowed.image.settle();
        expect(readFileSync(shadowed.image.memory.path).equals(readFileSync(shadowed.vm.path))).toBe(true);
      }),
      { numRuns: 20 },
    );
  });

  it('has the pages of an epoch that is applied while the copy passes them', async () => {
    await using shadowed = new Shadowed(new Failpoints());
    shadowed.commit([...Array(PAGES).keys()]);
    await shadowed.image.settle();
    const to = newMemory();
    const copy = copyImage({
      ...{ image: shadowed.image, to, signal: new AbortController().signal },
      ...{ nowMs: () => 0, onHeld: () => {} },
    });
    // The first megabyte is copied by now; these pages are in it, and behind it.
    await turn();
    shadowed.commit([0, PAGES - 1]);
    const { staged } = await copy;
    expect(staged.epoch).toBe(2);
    expect(readFileSync(to.path).equals(readFileSync(shadowed.vm.path))).toBe(true);
  });

  it('has the pages of an epoch whose application was under way when it began', async () => {
    const failpoints = new Failpoints();
    await using shadowed = new Shadowed(failpoints);
    shadowed.commit([...Array(PAGES).keys()]);
    await shadowed.image.settle();
    const mayGoOn = Promise.withResolvers<void>();
    const begun = Promise.withResolvers<void>();
    failpoints.arm('apply.before', () => {
      begun.resolve();
      return mayGoOn.promise;
    });
    shadowed.commit([0, PAGES - 1]);
    await begun.promise;
    const to = newMemory();
    const copy = copyImage({
      ...{ image: shadowed.image, to, signal: new AbortController().signal },
      ...{ nowMs: () => 0, onHeld: () => {} },
    });
    // Everything was copied once before any of the epoch is written.
    for (let passed = 0; passed <= PAGES / 256; passed += 1) await turn();
    mayGoOn.resolve();
    await copy;
    expect(readFileSync(to.path).equals(readFileSync(shadowed.vm.path))).toBe(true);
  });

  it('lets epochs be committed and the image be settled as soon as it is given up', async () => {
    await using shadowed = new Shadowed(new Failpoints());
    shadowed.commit([1]);
    await shadowed.image.settle();
    const abort = new AbortController();
    const copy = copyImage({
      ...{ image: shadowed.image, to: newMemory(), signal: abort.signal, nowMs: () => 0 },
      onHeld: () => {
        shadowed.commit([2]);
        abort.abort(new Error('given up'));
      },
    });
    await expect(copy).rejects.toThrow('given up');
    expect((await shadowed.image.settle()).epoch).toBe(2);
    expect(readFileSync(shadowed.image.memory.path).equals(readFileSync(shadowed.vm.path))).toBe(true);
  });
});
