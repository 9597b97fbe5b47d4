import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { MIB } from '../base/units.ts';
import { epochId } from '../epoch/epoch-id.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { encodeWords, MESSAGE, PEER_PROTOCOL, type PeerWords } from '../replication/peer-messages.ts';
import type { ActingRight } from './acting-right.ts';
import { dialLasting, ShadowDoor } from './lasting-peer.ts';
import { RecordPatience } from './record-patience.ts';
import { RemoteShadow } from './remote-shadow.ts';
import { type TwoHosts, twoHosts } from './site-fixture.ts';

const WELCOME: PeerWords = {
  ...{ kind: 'welcome', host: 'a', instance: 1, hasRelic: false, pulsePorts: [1], heldDisks: [] },
  silenceMinMs: 300,
};

/** The keeper of a VM that acts, without the VM, and a host whose shadow says what it likes. */
class Stage implements AsyncDisposable {
  readonly shadow: RemoteShadow;
  readonly liar: PeerLink;
  readonly losses: string[];
  readonly #owned: AsyncDisposableStack;

  static async set(hosts: TwoHosts): Promise<Stage> {
    await using opening = new AsyncDisposableStack();
    const directory = mkdtempSync(`/dev/shm/${marked('liar')}-`);
    opening.defer(() => rmSync(directory, { recursive: true }));
    const failpoints = new Failpoints();
    const onResumed = () => {};
    const door = opening.use(await ShadowDoor.open(hosts.a, { peer: 'b', clock, failpoints, onResumed }));
    const claim = () => ({ stream: 7n, token: 3n });
    const signal = AbortSignal.timeout(20_000);
    const site = hosts.b('127.0.0.1:1');
    const { link } = await dialLasting(site, 'a', {
      ...{ port: door.port, clock, failpoints, signal, claim, onResumed },
    });
    const liar = await door.link;
    opening.defer(() => liar.close());
    const losses: string[] = [];
    const heard = (async () => {
      for await (const { type } of liar.messages())
        if (type === MESSAGE.words && losses.length === 0)
          await liar.send(MESSAGE.words, [encodeWords(WELCOME)]).catch(() => {});
    })();
    opening.defer(() => heard);
    const shadow = await RemoteShadow.open(
      {
        ...{ link, clock, failpoints, host: 'a', addresses: ['127.0.0.1'], path: () => 0, disks: [] },
        ...{ silenceMs: { min: 5000, max: 5000 }, memoryBytes: MIB, epochsInFlightMax: 1 },
        ...{ right: { token: 3, dismissed: () => {} } as unknown as ActingRight, claimed: () => ({}) },
        ...{ patience: new RecordPatience(clock), onDiskFailed: () => {} },
        ...{ directory: join(directory, 'outgoing'), onUnwelcome: () => {}, publish: () => {} },
        onLost: (error) => losses.push(error),
        hello: {
          ...{ kind: 'hello', protocol: PEER_PROTOCOL, vm: 'one', copy: 7, spec: { text: '', source: '' } },
          ...{ token: 3, rightToken: 3, presencePort: 1, epoch: 1, qemuVersion: '1', accel: 'tcg' },
          ...{ files: {}, disks: [], pulseKey: 'ab'.repeat(32) },
        },
      },
      signal,
    );
    return new Stage({ shadow, liar, losses, owned: opening.move() });
  }

  private constructor(parts: {
    shadow: RemoteShadow;
    liar: PeerLink;
    losses: string[];
    owned: AsyncDisposableStack;
  }) {
    this.shadow = parts.shadow;
    this.liar = parts.liar;
    this.losses = parts.losses;
    this.#owned = parts.owned;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.liar.close();
    await this.shadow[Symbol.asyncDispose]();
    await this.#owned[Symbol.asyncDispose]();
  }
}

const kinds = [
  'held',
  'acts',
  'welcome',
  'compared',
  'dismissed',
  'leave',
  'refused',
  'in-sync',
  'tested',
  'read',
  'share',
  'failed',
];
const number = fc.oneof(fc.nat(9), fc.constantFrom(2 ** 48, 2 ** 53, -1, 1.5));
const said = fc.oneof(
  fc.record({
    type: fc.constantFrom(MESSAGE.words, MESSAGE.errand),
    body: fc
      .record({
        kind: fc.constantFrom(...kinds),
        epoch: number,
        token: number,
        errand: number,
        share: number,
        code: fc.string(),
        message: fc.string(),
      })
      .map((words) => Buffer.from(JSON.stringify(words))),
  }),
  fc.record({ type: fc.constantFrom(...Object.values(MESSAGE)), body: fc.uint8Array({ maxLength: 60 }) }),
);

describe('the shadow of a host that does not do as it should', () => {
  it('is lost at most, once, whatever it says, and holds nothing that was not sent to it', async () => {
    const hosts = await twoHosts(onTestFinished);
    let losses = 0;
    await fc.assert(
      fc.asyncProperty(fc.array(said, { minLength: 1, maxLength: 8 }), async (messages) => {
        await using stage = await Stage.set(hosts);
        for (const { type, body } of messages) await stage.liar.send(type, [body]).catch(() => {});
        stage.liar.close();
        await expect.poll(() => stage.losses.length).toBeGreaterThan(0);
        losses += stage.losses.length;
        expect(stage.losses.filter((loss) => !loss.includes('free of it'))).toHaveLength(1);
        expect(stage.shadow.mayTakeOver).toBe(false);
      }),
      { numRuns: 6 },
    );
    expect(losses).toBeGreaterThan(0);
  });

  it('is lost when it says to hold an epoch that was not sent to it', async () => {
    await using stage = await Stage.set(await twoHosts(onTestFinished));
    await stage.liar.send(MESSAGE.words, [encodeWords({ kind: 'held', epoch: epochId(1) })]);
    await expect.poll(() => stage.losses).toHaveLength(1);
  });
});
