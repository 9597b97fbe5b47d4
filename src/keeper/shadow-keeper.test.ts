import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
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
import type { PeerLink, PeerMessage } from '../replication/peer-link.ts';
import { linkWithin } from '../replication/peer-link-fixture.ts';
import { decodeWords, encodeWords, MESSAGE, type PeerWords } from '../replication/peer-messages.ts';
import { ShadowImage } from '../replication/shadow-image.ts';
import { ShadowErrands } from './shadow-errands.ts';
import { type ShadowEnd, ShadowKeeper } from './shadow-keeper.ts';
import type { ShadowSession } from './shadow-session.ts';

let directory: string;

beforeEach(() => {
  directory = mkdtempSync(`/dev/shm/${marked('shadow-keeper')}-`);
  onTestFinished(() => rmSync(directory, { recursive: true }));
});

/** The keeper of a shadow that holds an epoch, without the QEMU, and what it says to that of the VM. */
class World implements AsyncDisposable {
  readonly memory: GuestMemory;
  readonly keeper: ShadowKeeper;
  readonly ended: Promise<ShadowEnd>;
  readonly heard: PeerWords['kind'][] = [];
  /** From then on the keeper of the VM is not told any more that it is heard. */
  isOver = false;
  /** Resolves when nothing that the keeper of the VM says is looked at any more. */
  readonly heardOut: Promise<void>;
  readonly #image: ShadowImage;
  readonly #vm: PeerLink;
  readonly #listening: Promise<void>;

  constructor() {
    const failpoints = new Failpoints();
    this.memory = GuestMemory.create(join(directory, 'memory'), PAGE_BYTES);
    const { memory } = this;
    this.#image = ShadowImage.create({ memory, directory, slotCount: 2, failpoints });
    const slot = this.#image.take();
    if (slot === undefined) throw new Error('a new image has room');
    slot.begin(epochId(1));
    slot.finish({ deviceState: Buffer.from('state'), outputs: [] });
    this.#image.acknowledge(slot, epochId(1));
    const { near, far } = linkWithin();
    this.#vm = near;
    const exited = new Promise<void>(() => {});
    const standby = { number: 1, machine: { process: { exited } } };
    const session = { image: this.#image, standby } as unknown as ShadowSession;
    const common = { link: far, session, clock, log, failpoints };
    const startTest = () => Promise.reject(new Error('no QEMU here'));
    const { promise, resolve } = Promise.withResolvers<void>();
    this.heardOut = promise;
    this.keeper = new ShadowKeeper({
      ...{ ...common, messages: until(far, resolve), hasRelic: false, heldDisks: [], durable: false },
      errands: new ShadowErrands({ ...common, spec: {} as VmSpec, startTest }),
      ...{ host: 'b', pulsePorts: [1], silenceMinMs: 300, onOver: () => this.#noteOver() },
    });
    this.#listening = this.#listen();
    this.ended = this.keeper.keep();
  }

  #noteOver(): void {
    this.isOver = true;
  }

  async say(words: PeerWords): Promise<void> {
    await this.#vm.send(MESSAGE.words, [encodeWords(words)]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#vm.close();
    await this.#listening;
    await this.#image[Symbol.asyncDispose]();
  }

  async #listen(): Promise<void> {
    for await (const { body } of this.#vm.messages()) this.heard.push(decodeWords(body).kind);
  }
}

async function* until(link: PeerLink, onEnd: () => void): AsyncGenerator<PeerMessage> {
  try {
    yield* link.messages();
  } finally {
    onEnd();
  }
}

describe('the keeper of a shadow whose VM acts on another host', () => {
  it('promises not to act when it is dismissed', async () => {
    await using world = new World();
    await world.say({ kind: 'dismiss' });
    expect(await world.ended).toEqual({ kind: 'dismissed' });
    await expect.poll(() => world.heard).toEqual(['welcome', 'dismissed']);
  });

  it('does not throw the memory of an epoch away, whatever it is told', async () => {
    await using world = new World();
    using page = Mapping.anonymous(PAGE_BYTES);
    page.bytes.fill(7);
    world.memory.writeRuns([{ firstPage: 0, pageCount: 1 }], page);
    await world.say({ kind: 'discard' });
    // Which would be the end if it had gone on.
    await world.say({ kind: 'dismiss' });
    expect(await world.ended).toMatchObject({ kind: 'useless' });
    expect(readFileSync(world.memory.path)[0]).toBe(7);
  });

  it('promises nothing once it is about to ask for the right, though the other side still comes through', async () => {
    const world = new World();
    await expect.poll(() => world.heard).toEqual(['welcome']);
    expect(world.isOver).toBe(false);
    world.keeper.fallSilent(1000);
    // At once: what is heard from now on keeps nobody from acting.
    expect(world.isOver).toBe(true);
    expect(await world.ended).toMatchObject({ kind: 'alone' });
    await world.say({ kind: 'dismiss' });
    await world.heardOut;
    await world[Symbol.asyncDispose]();
    expect(world.heard).toEqual(['welcome']);
  });
});
