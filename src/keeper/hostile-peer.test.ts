import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { silentLogger as log } from '../base/logger.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { openCopyTarget } from '../block/copy-target.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { epochId } from '../epoch/epoch-id.ts';
import { GuestMemory } from '../memory/guest-memory.ts';
import { decodeWords, encodePagesHead, encodeWords, MESSAGE } from '../replication/peer-messages.ts';
import { ShadowDisks } from '../replication/shadow-disks.ts';
import { ShadowImage } from '../replication/shadow-image.ts';
import { readCredentials } from '../site/site-credentials.ts';
import { dialSecurely } from '../wire/link-opening.ts';
import { countMessage, knockMessage, RESUME_TYPE } from '../wire/resume-messages.ts';
import type { SecureLink } from '../wire/secure-link.ts';
import { ShadowDoor } from './lasting-peer.ts';
import { ShadowErrands } from './shadow-errands.ts';
import { type ShadowEnd, ShadowKeeper } from './shadow-keeper.ts';
import type { ShadowSession } from './shadow-session.ts';
import { type TwoHosts, twoHosts } from './site-fixture.ts';

const CLAIM = { stream: 7n, token: 3n };
const MEMORY_PAGES = 16;
const BODY_BYTES_MAX = 4 * MIB;
/** Whatever it may say, and more. */
const LIMITS = new Map(Array.from({ length: 240 }, (_, index) => [16 + index, BODY_BYTES_MAX]));

interface Said {
  readonly type: number;
  readonly sequence?: bigint;
  readonly body: Uint8Array;
}

/** The keeper of a shadow that holds an epoch, without the QEMU, and a host that may speak to it and does so as it likes. */
class Stage implements AsyncDisposable {
  readonly keeper: ShadowKeeper;
  readonly ended: Promise<ShadowEnd>;
  readonly image: ShadowImage;
  readonly door: ShadowDoor;
  readonly heard: string[] = [];
  readonly attacker: SecureLink;
  readonly #owned: AsyncDisposableStack;
  #sequence = 0n;

  static async set(hosts: TwoHosts): Promise<Stage> {
    await using opening = new AsyncDisposableStack();
    const directory = mkdtempSync(`/dev/shm/${marked('hostile')}-`);
    opening.defer(() => rmSync(directory, { recursive: true }));
    const failpoints = new Failpoints();
    const door = opening.use(
      await ShadowDoor.open(hosts.a, { ...{ peer: 'b', clock, failpoints }, onResumed: () => {} }),
    );
    const attacker = opening.use(await dialBadly(hosts, door.port));
    const link = await door.link;
    opening.defer(() => link.close());
    door.know({ copy: 7, rightToken: 3, presencePort: 1 });
    const memory = GuestMemory.create(join(directory, 'memory'), MEMORY_PAGES * PAGE_BYTES);
    const target = await openCopyTarget(
      { imagePath: join(directory, 'disk'), journalPath: join(directory, 'disk.journal') },
      { identity: 'ab'.repeat(16), token: 1, diskBytes: MIB },
    );
    const disks = new ShadowDisks({ failpoints, disks: [{ name: 'root', image: target.image, token: 1 }] });
    opening.use(disks);
    const image = ShadowImage.create({ memory, directory, slotCount: 2, failpoints, disks });
    opening.use(image);
    return new Stage({ door, attacker, link, image, failpoints, owned: opening.move() });
  }

  private constructor(parts: {
    door: ShadowDoor;
    attacker: SecureLink;
    link: Awaited<ShadowDoor['link']>;
    image: ShadowImage;
    failpoints: Failpoints;
    owned: AsyncDisposableStack;
  }) {
    const { link, image, failpoints } = parts;
    this.door = parts.door;
    this.attacker = parts.attacker;
    this.image = image;
    this.#owned = parts.owned;
    const exited = new Promise<void>(() => {});
    const standby = { number: 1, machine: { process: { exited } } };
    const session = { image, standby, takeFirmware: () => {} } as unknown as ShadowSession;
    const common = { link, session, clock, log, failpoints };
    const startTest = () => Promise.reject(new Error('no QEMU here'));
    this.keeper = new ShadowKeeper({
      ...{ ...common, messages: link.messages(), hasRelic: true, heldDisks: ['root'], durable: false },
      errands: new ShadowErrands({ ...common, spec: {} as VmSpec, startTest }),
      ...{ host: 'a', pulsePorts: [1], silenceMinMs: 300, onOver: () => {} },
    });
    this.attacker.deliver(({ type, body }) => {
      this.heard.push(type === MESSAGE.words ? decodeWords(body).kind : String(type));
    });
    this.ended = this.keeper.keep();
  }

  /** With the number that follows, unless another one is given. */
  async say({ type, body, sequence = this.#sequence + 1n }: Said): Promise<void> {
    this.#sequence = sequence;
    await this.attacker.send({ type, body, sequence }).catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.attacker.close();
    await this.ended;
    await this.#owned[Symbol.asyncDispose]();
  }
}

/** With a certificate that is all right. */
async function dialBadly({ b, pki: _ }: TwoHosts, port: number): Promise<SecureLink> {
  return await dialSecurely({
    ...{ ...readCredentials(b()), name: 'b', peer: 'a', host: '127.0.0.1', port },
    ...{ clock, limits: LIMITS, silenceMs: 10_000, keepaliveMs: 100 },
  });
}

const number = fc.oneof(
  fc.nat(40),
  fc.constantFrom(2 ** 31, 2 ** 32 - 1, 2 ** 53 - 1, 2 ** 53, -1, 1.5, 1e308),
);
const json = fc.oneof(number, fc.string(), fc.constant(null), fc.array(number, { maxLength: 3 }));
const kinds = [
  ...['place', 'placed', 'hello', 'welcome', 'discard', 'compare', 'compared', 'refused', 'held', 'in-sync'],
  ...['claimed', 'take-over', 'acts', 'dismiss', 'dismissed', 'leave', 'ask-resources', 'resources'],
  ...['test', 'tested', 'read-out', 'more', 'share', 'read', 'failed', 'forget'],
];
const asWords = fc
  .record({ kind: fc.constantFrom(...kinds), rest: fc.dictionary(fc.string(), json, { maxKeys: 4 }) })
  .chain(({ kind, rest }) =>
    fc.record({ errand: number, epoch: number, token: number, pages: number, copy: number }).map((known) => ({
      type: fc.sample(fc.constantFrom(MESSAGE.words, MESSAGE.errand), 1)[0] ?? MESSAGE.words,
      body: Buffer.from(JSON.stringify({ ...rest, ...known, kind, secret: 'ab'.repeat(192) })),
    })),
  );
const anything = fc.record({
  type: fc.oneof(
    fc.constantFrom(...Object.values(MESSAGE), ...Object.values(RESUME_TYPE)),
    fc.integer({ min: 16, max: 255 }),
  ),
  body: fc.uint8Array({ maxLength: 120 }),
});
/** With a head that may be right, and numbers that may be anything. */
const binary = fc
  .record({
    type: fc.constantFrom(MESSAGE.copy, MESSAGE.pages, MESSAGE.tail, MESSAGE.seal, MESSAGE.writes),
    epoch: fc.constantFrom(0, 1, 2, 3, 2 ** 40),
    runs: fc.array(fc.record({ firstPage: fc.nat(MEMORY_PAGES + 1), pageCount: fc.nat(MEMORY_PAGES + 1) }), {
      maxLength: 3,
    }),
    continues: fc.boolean(),
    rest: fc.uint8Array({ maxLength: 200 }),
  })
  .map(({ type, epoch, runs, continues, rest }) => ({
    type,
    body: Buffer.concat([encodePagesHead(epochId(epoch), { runs, continues }), rest]),
  }));
const count = fc
  .record({
    type: fc.constantFrom(...Object.values(RESUME_TYPE)),
    at: fc.array(fc.nat(20), { minLength: 3, maxLength: 3 }),
  })
  .map(({ type, at }) => {
    const body = Buffer.alloc(type === RESUME_TYPE.knock ? 24 : 8);
    for (let word = 0; word * 8 < body.length; word += 1)
      body.writeBigUInt64LE(BigInt(at[word] ?? 0), word * 8);
    return { type, body };
  });
const messages = fc.array(
  fc.tuple(fc.oneof(anything, asWords, binary, count), fc.option(fc.bigInt(0n, 9n), { freq: 9 })),
  { minLength: 1, maxLength: 12 },
);

describe('a host of the site that does not do as it should', () => {
  it('brings a shadow to acknowledge nothing, and its keeper to an end at most, whatever it says', async () => {
    const hosts = await twoHosts(onTestFinished);
    const ends = new Set<string>();
    await fc.assert(
      fc.asyncProperty(fc.boolean(), messages, async (isTold, said) => {
        await using stage = await Stage.set(hosts);
        if (isTold) await stage.say({ type: MESSAGE.words, body: encodeWords({ kind: 'discard' }) });
        for (const [message, sequence] of said)
          await stage.say({ ...message, ...(sequence !== null && { sequence }) });
        await stage.attacker.close();
        ends.add((await stage.ended).kind);
        expect(stage.heard).not.toContain('held');
        expect(stage.image.committed).toBe(0);
      }),
      { numRuns: 12 },
    );
    expect([...ends]).toContain('useless');
  });

  it('cannot have memory compared twice, which reads all of it', async () => {
    const hosts = await twoHosts(onTestFinished);
    await using stage = await Stage.set(hosts);
    const body = encodeWords({ kind: 'compare', secret: 'ab'.repeat(192) });
    for (let times = 0; times < 2; times += 1) await stage.say({ type: MESSAGE.words, body });
    expect(await stage.ended).toMatchObject({ kind: 'useless', error: expect.stringMatching('compares') });
  });

  it.each([
    ['knocks on the connection that is the link already', knockMessage(CLAIM, 0n)],
    ['acknowledges what was never sent', countMessage(RESUME_TYPE.used, 99n)],
    ['sends a message out of its order', { type: MESSAGE.words, body: new Uint8Array(1), sequence: 9n }],
    ['sends a count of another length', { type: RESUME_TYPE.used, body: new Uint8Array(3) }],
  ])('loses the link when it %s', async (_, message) => {
    const hosts = await twoHosts(onTestFinished);
    await using stage = await Stage.set(hosts);
    await stage.attacker.send(message);
    expect((await stage.ended).kind).toBe('useless');
    expect((await stage.attacker.closed).kind).not.toBe('closed-here');
  });

  it('ends its own link when it knocks elsewhere with a position that it cannot have, and that of nobody else', async () => {
    const hosts = await twoHosts(onTestFinished);
    await using stage = await Stage.set(hosts);
    await using stranger = await dialBadly(hosts, stage.door.port);
    stranger.deliver(() => {});
    await stranger.send(knockMessage({ ...CLAIM, token: 4n }, 0n));
    expect((await stranger.closed).kind).not.toBe('closed-here');
    // Which was another one's, as far as the shadow can tell.
    expect(stage.keeper.copiedPages).toBe(0);
    await using second = await dialBadly(hosts, stage.door.port);
    await second.send(knockMessage(CLAIM, 2n ** 63n));
    expect((await stage.ended).kind).toBe('useless');
  });
});
