import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import type { HeartbeatEffect } from '../lease/heartbeat.ts';
import { encodePulse, newPulseKey } from '../wire/pulse-datagram.ts';
import { PeerPulse } from './peer-pulse.ts';

const LOCAL = '127.0.0.1';
/** Long enough for a busy machine. */
const SILENCE_MIN_MS = 500;
const SILENCE_MAX_MS = 2000;
/** Of the clock that one side dates what it sends by. */
const STAMP_OFFSET_MS = 1e6;

/** One path: passes datagrams on in both directions, until it is cut. */
class Relay implements Disposable {
  isCut = false;
  /** Of each datagram, in milliseconds; negative: it is lost. */
  delayMs: () => number = () => 0;
  readonly #near: Socket;
  readonly #far: Socket;
  readonly #heard: Buffer[] = [];
  #caller: { port: number } | undefined;

  static async to(port: number): Promise<Relay> {
    const relay = new Relay(port);
    for (const socket of [relay.#near, relay.#far]) {
      socket.bind(0, LOCAL);
      await once(socket, 'listening');
    }
    return relay;
  }

  private constructor(port: number) {
    this.#near = createSocket('udp4');
    this.#far = createSocket('udp4');
    this.#near.on('message', (datagram, from) => {
      this.#caller = from;
      this.#heard.push(datagram);
      this.#pass(datagram, { by: this.#far, port });
    });
    this.#far.on('message', (datagram) => {
      if (this.#caller !== undefined) this.#pass(datagram, { by: this.#near, port: this.#caller.port });
    });
  }

  get port(): number {
    return this.#near.address().port;
  }

  get heard(): readonly Buffer[] {
    return this.#heard;
  }

  [Symbol.dispose](): void {
    this.isCut = true;
    this.#near.close();
    this.#far.close();
  }

  #pass(datagram: Buffer, { by, port }: { by: Socket; port: number }): void {
    const delayMs = this.delayMs();
    if (this.isCut || delayMs < 0) return;
    clock.after(delayMs, () => {
      if (!this.isCut) by.send(datagram, port, LOCAL, () => {});
    });
  }
}

class Side {
  readonly told: HeartbeatEffect['kind'][] = [];
  /** When that was sent which the other side says to have heard. */
  echoedMs = Number.NEGATIVE_INFINITY;
  #changed = Promise.withResolvers<void>();

  readonly onEffect = ({ kind }: HeartbeatEffect) => {
    this.told.push(kind);
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  };

  async hears(kind: HeartbeatEffect['kind']): Promise<void> {
    while (!this.told.includes(kind)) await this.#changed.promise;
  }
}

let owned: DisposableStack;
beforeEach(() => {
  owned = new DisposableStack();
});
afterEach(() => owned.dispose());

async function pair() {
  const key = newPulseKey();
  const [a, b] = [new Side(), new Side()];
  const shared = { key, clock, silenceMs: { min: SILENCE_MIN_MS, max: SILENCE_MAX_MS } };
  const shadow = owned.use(
    await PeerPulse.listen([LOCAL, LOCAL], { ...shared, side: 'shadow', onEffect: b.onEffect }),
  );
  const relays: Relay[] = [];
  for (const port of shadow.ports) relays.push(owned.use(await Relay.to(port)));
  const targets = relays.map(({ port }) => ({ host: LOCAL, port }));
  const primary = owned.use(
    await PeerPulse.dial(targets, {
      ...{ ...shared, side: 'primary', onEffect: a.onEffect, stampMs: () => clock.nowMs() + STAMP_OFFSET_MS },
      onEcho: (sentMs) => {
        a.echoedMs = Math.max(a.echoedMs, sentMs - STAMP_OFFSET_MS);
      },
    }),
  );
  const [one, other] = relays;
  if (one === undefined || other === undefined) throw new Error('there are two paths');
  await until(() => [shadow, primary].every((side) => side.status().every(({ received }) => received > 60)));
  return { a, b, primary, shadow, one, other, key };
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await clock.sleep(10);
}

describe('two hosts with two paths between them', () => {
  it('hear each other on both, and know how long that takes', async () => {
    const { a, primary, shadow } = await pair();
    const sinceMs = clock.nowMs();
    await until(() => a.echoedMs >= sinceMs);
    expect(a.echoedMs).toBeLessThanOrEqual(clock.nowMs());
    shadow.stopVouching();
    const stoppedMs = clock.nowMs();
    const [before] = primary.status();
    await until(() => (primary.status()[0]?.received ?? 0) > (before?.received ?? 0) + 10);
    expect(a.echoedMs).toBeLessThanOrEqual(stoppedMs);
    for (const side of [primary, shadow]) {
      expect(side.isThere).toBe(true);
      expect(side.status().map(({ state }) => state)).toEqual(['heard', 'heard']);
      for (const { rttMs, silenceMaxMs } of side.status()) {
        expect(rttMs.count).toBeGreaterThan(0);
        expect(silenceMaxMs).toBeLessThanOrEqual(SILENCE_MAX_MS);
      }
    }
  });

  it('lose one path, and nothing else, when it dies; and each other when the other one does as well', async () => {
    const { a, b, primary, shadow, one, other } = await pair();
    one.isCut = true;
    await Promise.all([a.hears('path-lost'), b.hears('path-lost')]);
    expect([primary.isThere, shadow.isThere]).toEqual([true, true]);
    expect(primary.isLost(0)).toBe(true);
    expect([...a.told, ...b.told]).not.toContain('peer-lost');
    one.isCut = false;
    await Promise.all([a.hears('path-back'), b.hears('path-back')]);
    one.isCut = true;
    other.isCut = true;
    await Promise.all([a.hears('peer-lost'), b.hears('peer-lost')]);
    expect([primary.isThere, shadow.isThere]).toEqual([false, false]);
  });

  it('do not lose each other for delays that come again and again, nor for datagrams that are lost', async () => {
    const { a, b, primary, one, other } = await pair();
    for (const relay of [one, other])
      relay.delayMs = () => (Math.random() < 0.1 ? -1 : Math.random() < 0.2 ? 60 * Math.random() : 2);
    const [before] = primary.status();
    await until(() => (primary.status()[0]?.received ?? 0) > (before?.received ?? 0) + 200);
    expect([...a.told, ...b.told]).not.toContain('peer-lost');
    expect(primary.status()[0]?.lost).toBeGreaterThan(0);
  });

  it('believe no datagram that is repeated, or that somebody else made', async () => {
    const { a, primary, shadow, one, other, key } = await pair();
    const heard = [...one.heard, ...other.heard];
    one.isCut = true;
    other.isCut = true;
    const intruder = owned.adopt(createSocket('udp4'), (socket) => socket.close());
    const forged = encodePulse(
      { path: 0, run: Number.MAX_SAFE_INTEGER, sequence: 1, sentMs: 0, echo: undefined },
      { key: newPulseKey(), side: 'primary' },
    );
    // Nothing is under way any more.
    await a.hears('peer-lost');
    expect(primary.isThere).toBe(false);
    const [before = 0, beforeOther] = shadow.status().map(({ received }) => received);
    const known = encodePulse(
      { path: 0, run: Number.MAX_SAFE_INTEGER, sequence: 1, sentMs: 0, echo: undefined },
      { key, side: 'primary' },
    );
    // One that has the key is heard (control), and comes last.
    for (const datagram of [...heard, forged, known]) intruder.send(datagram, shadow.ports[0] ?? 0, LOCAL);
    await until(() => (shadow.status()[0]?.received ?? 0) > before);
    expect(shadow.status().map(({ received }) => received)).toEqual([before + 1, beforeOther]);
  });
});
