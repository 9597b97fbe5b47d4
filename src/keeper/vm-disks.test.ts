import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { MIB } from '../base/units.ts';
import { NbdClientDevice } from '../block/nbd-client-device.ts';
import { servedDisks } from '../config/spec-disks.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { epochId, nextEpoch } from '../epoch/epoch-id.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { freeSlot } from '../replication/epoch-store.ts';
import type { EpochDiskSource } from '../replication/epoch-writes.ts';
import { type LeftWrites, leftWrites } from '../replication/left-writes.ts';
import { ShadowImage } from '../replication/shadow-image.ts';
import { VmDisks } from './vm-disks.ts';

const DISK_BYTES = MIB;
const BLOCK_BYTES = 4096;
const SLOTS = 3;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(`/dev/shm/${marked('disks')}-`);
  onTestFinished(() => rmSync(folder, { recursive: true }));
});

function open(image: string, left?: LeftWrites, token = 1): Promise<VmDisks> {
  const yaml = `name: a\nmemory: 64M\nboot: {kernel: k}\ndisks: [{path: ${image}, format: raw}]\n`;
  const served = servedDisks(parseVmSpec(yaml, { source: 'a.yaml' }));
  return VmDisks.open(
    { served, recovered: [] },
    { runDirectory: folder, clock, user: undefined, token: () => token, left },
  );
}

/** What the next keeper would find at some moment, and what it has to make of it. */
interface Moment {
  readonly place: string;
  readonly left: LeftWrites | undefined;
  readonly wanted: Buffer;
}

/** A VM with one disk and a shadow, without the QEMUs: what is written, when epochs are cut, and what the record says. */
class World implements AsyncDisposable {
  readonly moments: Moment[] = [];
  disks!: VmDisks;
  #qemu!: NbdClientDevice;
  #sources: EpochDiskSource[] = [];
  #shadow!: ShadowImage;
  /** What the guest has been told is written, and what it was at each cut. */
  readonly #told = Buffer.alloc(DISK_BYTES);
  readonly #cuts = new Map<number, Buffer>();
  #record: 'acting' | 'shadow' = 'acting';
  #epoch = epochId(0);

  async begin(): Promise<void> {
    writeFileSync(this.#image, Buffer.alloc(DISK_BYTES));
    this.disks = await open(this.#image);
    const socketPath = join(folder, 'disks');
    await this.disks.serve({ instance: 1, socketPath, owner: undefined });
    this.#qemu = await NbdClientDevice.connect(socketPath, { exportName: 'disk0' });
    this.#shadow = ShadowImage.create({
      memory: GuestMemory.create(join(folder, 'memory'), BLOCK_BYTES),
      directory: this.#slots,
      slotCount: SLOTS,
      failpoints: new Failpoints(),
      kept: (epoch) => this.disks.kept(epoch),
    });
    this.#sources = this.disks.beginEpochs(() => {}, {});
  }

  async write(block: number, value: number): Promise<void> {
    const bytes = Buffer.alloc(BLOCK_BYTES, value);
    await this.#qemu.write(block * BLOCK_BYTES, bytes);
    this.#told.set(bytes, block * BLOCK_BYTES);
    this.note(`${value} was written`);
  }

  /** The guest stands still, and what it does next belongs to the next epoch. Returns what commits this one. */
  async cut(): Promise<() => void> {
    const epoch = nextEpoch(this.#epoch);
    this.#epoch = epoch;
    const slot = await freeSlot(this.#shadow);
    slot.begin(epoch);
    for (const source of this.#sources) source.letThrough();
    for (const source of this.#sources) source.seal(epoch);
    this.#cuts.set(epoch, Buffer.from(this.#told));
    this.note(`${epoch} is sealed`);
    const disks = this.#sources.map((source) => ({ disk: source.name, writes: source.sealedWrites(epoch) }));
    slot.finish({ deviceState: Buffer.from('state'), outputs: [], disks });
    return () => {
      this.#shadow.acknowledge(slot, epoch);
      this.note(`${epoch} is in its slot`);
      for (const source of this.#sources) source.commit(epoch);
      this.note(`${epoch} is committed`);
      if (this.#record === 'shadow') return;
      this.#record = 'shadow';
      this.note('the record names the shadow');
      this.disks.noteRecorded({ isProtected: true });
    };
  }

  async leave(): Promise<void> {
    await this.disks.leave(() => {
      this.note('all is kept');
      this.#record = 'acting';
      this.note('the record names the QEMU');
    });
    this.note('is alone');
  }

  /** The keeper could be killed here. */
  note(place: string): void {
    const left =
      this.#record === 'shadow' ? leftWrites(this.#slots, { memoryBytes: BLOCK_BYTES }) : undefined;
    const wanted = left === undefined ? this.#told : this.#cuts.get(left.committed);
    const copy = join(folder, `copy-${this.moments.length}`);
    copyFileSync(this.#image, copy);
    copyFileSync(`${this.#image}.journal`, `${copy}.journal`);
    this.moments.push({ place, left, wanted: Buffer.from(wanted ?? '') });
  }

  /** Moments at which what the next keeper opens is not what it has to be. */
  async wrong(change: (left: LeftWrites | undefined) => LeftWrites | undefined): Promise<string[]> {
    const found: string[] = [];
    for (const [index, { place, left, wanted }] of this.moments.entries()) {
      const copy = join(folder, `copy-${index}`);
      const disks = await open(copy, change(left));
      if (!readFileSync(copy).equals(wanted)) found.push(place);
      await disks[Symbol.asyncDispose]();
    }
    return found;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#qemu.close();
    await this.disks[Symbol.asyncDispose]();
    await this.#shadow[Symbol.asyncDispose]();
  }

  get #image(): string {
    return join(folder, 'disk.raw');
  }

  get #slots(): string {
    return folder;
  }
}

/** A shadow that comes into sync, some epochs, one that is not committed, and the end of the shadow. */
async function story(world: World): Promise<void> {
  await world.begin();
  await world.write(0, 1);
  (await world.cut())();
  for (let round = 2; round < 9; round += 1) {
    await world.write(round % 3, round);
    const commit = await world.cut();
    await world.write(3 + (round % 2), round);
    commit();
    await new Promise((resolve) => setTimeout(resolve, round % 4));
    world.note('a while after that');
  }
  await world.write(5, 12);
  await world.cut();
  await world.write(6, 13);
  await world.leave();
  await world.write(7, 14);
}

describe('disks in epochs whose keeper is killed', () => {
  it('are as the memory that the next keeper goes on with remembers them, wherever that was', async () => {
    await using world = new World();
    await story(world);
    expect(world.moments.length).toBeGreaterThan(40);
    expect(await world.wrong((left) => left)).toEqual([]);
  });

  it('would be older without the writes in the slots', async () => {
    await using world = new World();
    await story(world);
    const wrong = await world.wrong((left) => left && { ...left, epochs: [] });
    expect(wrong).toContain('7 is in its slot');
  });

  it('would be newer if all of the journal were used', async () => {
    await using world = new World();
    await story(world);
    expect(await world.wrong((left) => left && { ...left, committed: epochId(1000) })).toContain(
      'all is kept',
    );
  });
});

describe('a disk in epochs', () => {
  it('is of one keeper, and of no QEMU beside it', async () => {
    const image = join(folder, 'disk.raw');
    writeFileSync(image, Buffer.alloc(DISK_BYTES));
    await using _disks = await open(image);
    const other = { encoding: 'utf8', stdio: 'pipe' } as const;
    expect(() => execFileSync('qemu-io', ['-f', 'raw', '-c', 'write 0 512', image], other)).toThrow(/lock/);
  });

  it('is alone when its shadow on another host was given up, also where its copy is told to be complete after that', async () => {
    const image = join(folder, 'disk.raw');
    writeFileSync(image, Buffer.alloc(DISK_BYTES));
    await using disks = await open(image);
    const socketPath = join(folder, 'disks');
    await disks.serve({ instance: 1, socketPath, owner: undefined });
    const qemu = await NbdClientDevice.connect(socketPath, { exportName: 'disk0' });
    for (const source of disks.beginEpochs(() => {}, { remote: {} })) source.seal(epochId(1));
    const [copied] = disks.copied();
    await disks.leave(() => {});
    await copied?.completed();
    await qemu.write(0, Buffer.alloc(512, 1));
    // Whoever goes on with the QEMU after a killed keeper has nothing but the image.
    expect(readFileSync(image)[0]).toBe(1);
    await qemu.close();
  });

  it('knows every token that a copy was made with, also where nothing was written since and the next keeper counts anew', async () => {
    const image = join(folder, 'disk.raw');
    writeFileSync(image, Buffer.alloc(DISK_BYTES));
    for (const { token, isNoted } of [
      { token: 3, isNoted: true },
      { token: 5, isNoted: false },
    ]) {
      await using disks = await open(image, undefined, token);
      if (isNoted) await disks.noteToken();
    }
    await using disks = await open(image);
    // Without being noted it would be offered as older than its own copies (control).
    expect(disks.lastToken).toBe(3);
    expect(disks.copied()[0]?.token).toBe(3);
  });

  it('is served at a socket that its owner alone may open', async () => {
    const image = join(folder, 'disk.raw');
    writeFileSync(image, Buffer.alloc(DISK_BYTES));
    await using disks = await open(image);
    const socketPath = join(folder, 'disks');
    await using _served = await disks.serve({ instance: 1, socketPath, owner: undefined });
    expect(statSync(socketPath).mode & 0o777).toBe(0o600);
  });

  it('takes nothing more from a QEMU that is fenced', async () => {
    const image = join(folder, 'disk.raw');
    writeFileSync(image, Buffer.alloc(DISK_BYTES));
    await using disks = await open(image);
    const socketPath = join(folder, 'disks');
    await disks.serve({ instance: 1, socketPath, owner: undefined });
    const qemu = await NbdClientDevice.connect(socketPath, { exportName: 'disk0' });
    await qemu.write(0, Buffer.alloc(512, 1));
    const fenced = disks.fence(1);
    await expect(qemu.write(0, Buffer.alloc(512, 2))).rejects.toThrow();
    await fenced;
    expect(readFileSync(image)[0]).toBe(1);
  });
});
