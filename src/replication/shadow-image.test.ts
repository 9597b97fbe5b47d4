import {
  closeSync,
  copyFileSync,
  linkSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { Failpoints } from '../base/failpoint.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import type { EpochSlot } from './epoch-slot.ts';
import type { ReplicationError } from './replication-error.ts';
import { ShadowImage } from './shadow-image.ts';

const PAGES = 16;
const SLOTS = 4;
/** HEADER.appliedMark of epoch-slot.ts. */
const APPLIED_MARK_OFFSET = 112;

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('image')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
});

/** Lets the application of epochs go on step by step, or fail. */
class Turnstile {
  #steps = 0;
  #isOpen = false;
  #fails = false;
  #wake = Promise.withResolvers<void>();

  async pass(): Promise<void> {
    while (!this.#isOpen && this.#steps === 0 && !this.#fails) await this.#wake.promise;
    if (this.#fails) {
      this.#fails = false;
      throw new Error('the application is cut short here');
    }
    if (!this.#isOpen) this.#steps -= 1;
  }

  let(steps: number): void {
    this.#steps += steps;
    this.#wakeUp();
  }

  failOnce(): void {
    this.#fails = true;
    this.#wakeUp();
  }

  open(): void {
    this.#isOpen = true;
    this.#wakeUp();
  }

  #wakeUp(): void {
    this.#wake.resolve();
    this.#wake = Promise.withResolvers();
  }
}

/** A VM of a few pages and its shadow, with what the shadow's memory has to be at every epoch. */
class World implements Disposable {
  readonly turnstile = new Turnstile();
  readonly image: ShadowImage;
  readonly #vm: GuestMemory;
  readonly #slots = mkdtempSync(join(directory, 'slots-'));
  readonly #content = Mapping.anonymous(PAGES * PAGE_BYTES);
  readonly #resources = new DisposableStack();
  #pages: number[] = Array<number>(PAGES).fill(0);
  /** Written since the last epoch that did not fail. */
  #dirty = new Set<number>();
  #committed: { epoch: number; pages: readonly number[] } | undefined;
  #epoch = 0;

  constructor() {
    const id = crypto.randomUUID();
    const memoryOf = (role: string) => {
      const memory = GuestMemory.create(join(directory, `${id}-${role}.ram`), PAGES * PAGE_BYTES);
      this.#resources.defer(() => memory.remove());
      return this.#resources.use(memory);
    };
    this.#resources.use(this.#content);
    this.#vm = memoryOf('vm');
    const failpoints = new Failpoints();
    for (const place of ['apply.before', 'apply.middle', 'apply.after'])
      failpoints.arm(place, () => this.turnstile.pass());
    this.image = this.#resources.use(
      ShadowImage.create({
        memory: memoryOf('shadow'),
        directory: this.#slots,
        slotCount: SLOTS,
        failpoints,
      }),
    );
  }

  write(page: number, value: number): void {
    this.#content.bytes.fill(value, 0, PAGE_BYTES);
    this.#vm.writeRuns([{ firstPage: page, pageCount: 1 }], this.#content);
    this.#pages[page] = value;
    this.#dirty.add(page);
  }

  /** One epoch, up to its commit if it is `whole`. False when every slot is in use. */
  epoch({ whole }: { whole: boolean }): boolean {
    const slot = this.image.take();
    if (slot === undefined) return false;
    this.#epoch += 1;
    this.#stage(slot, whole);
    return true;
  }

  #stage(slot: EpochSlot, whole: boolean): void {
    slot.begin(epochId(this.#epoch));
    slot.capture(
      this.#vm,
      [...this.#dirty].sort((a, b) => a - b).map((firstPage) => ({ firstPage, pageCount: 1 })),
    );
    if (!whole) {
      this.image.giveBack(slot);
      return;
    }
    slot.finish({ deviceState: Buffer.from(`state ${this.#epoch}`), outputs: [] });
    this.image.acknowledge(slot, epochId(this.#epoch));
    this.#dirty.clear();
    this.#committed = { epoch: this.#epoch, pages: [...this.#pages] };
  }

  /** After this the shadow has to be what the VM was at the last committed epoch. */
  async check(): Promise<void> {
    if (this.#committed === undefined) {
      await expect(this.image.settle()).rejects.toMatchObject({ code: 'REPLICATION_NOTHING_COMMITTED' });
      return;
    }
    const staged = await this.image.settle();
    expect(staged.epoch).toBe(this.#committed.epoch);
    expect(staged.deviceState.toString()).toBe(`state ${this.#committed.epoch}`);
    expect(this.shadowPages()).toEqual(this.#committed.pages);
  }

  /** What the next process makes of the files if this one is killed now. Ends this world: it shares the slots. */
  async recovered(): Promise<{ epoch: number; pages: readonly number[] } | undefined> {
    const copy = `${this.image.memory.path}.copy`;
    copyFileSync(this.image.memory.path, copy);
    // Other names for the same files: the recovered image takes its own away.
    const slots = mkdtempSync(join(directory, 'links-'));
    for (const name of readdirSync(this.#slots)) linkSync(join(this.#slots, name), join(slots, name));
    using memory = GuestMemory.open(copy);
    try {
      using image = ShadowImage.recover({ memory, directory: slots, failpoints: new Failpoints() });
      const { epoch } = await image.settle();
      return { epoch, pages: this.shadowPages(memory) };
    } catch (thrown) {
      if ((thrown as ReplicationError).code === 'REPLICATION_NOTHING_COMMITTED') return undefined;
      throw thrown;
    } finally {
      memory.remove();
    }
  }

  get committed() {
    return this.#committed;
  }

  /** As if nobody wrote down which epochs are applied. */
  forgetApplied(): void {
    for (const name of readdirSync(this.#slots)) {
      const file = openSync(join(this.#slots, name), 'r+');
      writeSync(file, Buffer.alloc(8), 0, 8, APPLIED_MARK_OFFSET);
      closeSync(file);
    }
  }

  /** The value that fills each page of the shadow's memory. */
  shadowPages(memory = this.image.memory): number[] {
    memory.readRuns([{ firstPage: 0, pageCount: PAGES }], this.#content);
    return this.#pages.map((_, page) => {
      const bytes = this.#content.bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
      expect(bytes.every((byte) => byte === bytes[0])).toBe(true);
      return bytes[0] ?? 0;
    });
  }

  [Symbol.dispose](): void {
    this.#resources[Symbol.dispose]();
  }
}

type Step =
  | { kind: 'write'; page: number; value: number }
  | { kind: 'epoch'; whole: boolean }
  | { kind: 'apply'; steps: number }
  | { kind: 'cutShort' | 'turn' };

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constant('write'), page: fc.nat(PAGES - 1), value: fc.nat(255) }),
  fc.record({ kind: fc.constant('epoch'), whole: fc.boolean() }),
  fc.record({ kind: fc.constant('apply'), steps: fc.integer({ min: 1, max: 12 }) }),
  fc.record({ kind: fc.constantFrom('cutShort', 'turn') }),
);

async function perform(world: World, todo: Step): Promise<void> {
  if (todo.kind === 'write') world.write(todo.page, todo.value);
  else if (todo.kind === 'epoch') world.epoch(todo);
  else if (todo.kind === 'apply') world.turnstile.let(todo.steps);
  else if (todo.kind === 'cutShort') world.turnstile.failOnce();
  else await new Promise<void>((resolve) => setImmediate(resolve));
}

describe('a state that was left', () => {
  it('is found as an epoch without pages: the memory as it is, and the device state', async () => {
    using memory = GuestMemory.create(join(directory, 'left.ram'), PAGES * PAGE_BYTES);
    using content = Mapping.anonymous(PAGES * PAGE_BYTES);
    content.bytes.fill(7);
    memory.writeRuns([{ firstPage: 0, pageCount: PAGES }], content);
    const slots = mkdtempSync(join(directory, 'left-'));
    const deviceState = Buffer.from('device state');
    ShadowImage.leave(slots, { epoch: epochId(41), memoryBytes: memory.sizeBytes, deviceState });
    using image = ShadowImage.recover({ memory, directory: slots, failpoints: new Failpoints() });
    expect(await image.settle()).toMatchObject({ epoch: 41, runs: [], deviceState, outputs: [] });
    memory.readRuns([{ firstPage: 0, pageCount: PAGES }], content);
    expect(content.bytes.every((byte) => byte === 7)).toBe(true);
  });
});

describe('the image of a shadow', () => {
  it('is the last committed epoch once it settles, however commits, applications and failures fall together', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 80 }), fc.nat(2), async (steps, observers) => {
        using world = new World();
        for (const todo of steps) await perform(world, todo);
        world.turnstile.open();
        // Whoever else settles at the same time must not get in the way. A failure left over may hit one of them.
        for (let other = 0; other < observers; other += 1) world.image.settle().catch(() => {});
        await world.image.settle().catch(() => {});
        await world.check();
      }),
      { numRuns: 150 },
    );
  });

  it('is the last committed epoch for the next process too, wherever this one was killed', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 80 }), async (steps) => {
        using world = new World();
        for (const todo of steps) await perform(world, todo);
        expect(await world.recovered()).toEqual(world.committed);
        world.turnstile.open();
      }),
      { numRuns: 150 },
    );
  });

  it('brings old pages back for the next process when nobody writes down which epochs are applied', async () => {
    using world = new World();
    for (const value of [1, 2]) {
      world.write(0, value);
      world.epoch({ whole: true });
    }
    world.write(1, 3);
    world.epoch({ whole: true });
    world.turnstile.open();
    await world.check();
    // Takes the slot of the second epoch, the only one that knows page 0 as it is now; that of the first is still there.
    world.write(1, 4);
    world.epoch({ whole: true });
    await world.check();
    expect(await world.recovered()).toEqual(world.committed);
    world.forgetApplied();
    expect((await world.recovered())?.pages[0]).toBe(1);
  });

  it('that was cut short in the middle of an epoch is the same after the application is repeated', async () => {
    using world = new World();
    for (let page = 0; page < PAGES; page += 1) world.write(page, 100 + page);
    world.epoch({ whole: true });
    // Past `apply.before` and a few pages, then it fails.
    world.turnstile.let(6);
    await new Promise<void>((resolve) => setImmediate(resolve));
    world.turnstile.failOnce();
    await new Promise<void>((resolve) => setImmediate(resolve));
    const torn = world.shadowPages();
    expect([torn[0], torn.at(-1)], 'it stands in the middle of the epoch').toEqual([100, 0]);
    world.turnstile.open();
    await world.check();
    await world.check();
  });

  it('never holds pages of an epoch that was not committed', async () => {
    using world = new World();
    world.write(3, 1);
    world.epoch({ whole: true });
    world.write(3, 2);
    world.epoch({ whole: false });
    world.turnstile.open();
    await world.check();
    expect(world.shadowPages()[3]).toBe(1);
  });

  it('lets the VM wait when all slots hold epochs that are not applied', () => {
    using world = new World();
    for (let count = 0; count < SLOTS; count += 1) expect(world.epoch({ whole: true })).toBe(true);
    expect(world.epoch({ whole: true })).toBe(false);
  });

  it('is never promoted from when a staged epoch was damaged', async () => {
    using world = new World();
    world.write(1, 1);
    const slot = world.image.take();
    if (slot === undefined) throw new Error('there is a free slot');
    slot.begin(epochId(1));
    slot.capture(world.image.memory, [{ firstPage: 1, pageCount: 1 }]);
    slot.finish({ deviceState: Buffer.from('state'), outputs: [] });
    world.image.acknowledge(slot, epochId(1));
    slot.mapping.bytes[2 * PAGE_BYTES] = 77;
    world.turnstile.open();
    await expect(world.image.settle()).rejects.toMatchObject({ code: 'REPLICATION_EPOCH_CORRUPT' });
    await expect(world.image.settle()).rejects.toMatchObject({ code: 'REPLICATION_EPOCH_CORRUPT' });
  });

  it('for which there is no room leaves no slot behind', () => {
    using tmpfs = new SmallTmpfs(3 * MIB);
    using memory = GuestMemory.create(join(directory, 'vm.ram'), PAGES * PAGE_BYTES);
    const options = { memory, directory: tmpfs.path, slotCount: 4, failpoints: new Failpoints() };
    expect(() => ShadowImage.create(options)).toThrow(/ENOSPC/);
    expect(readdirSync(tmpfs.path)).toEqual([]);
  });
});
