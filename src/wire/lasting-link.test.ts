import fc from 'fast-check';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { HostCertificates } from '../../test/kit/host-certificates.ts';
import { UnsteadyNetwork } from '../../test/kit/unsteady-network.ts';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { KIB } from '../base/units.ts';
import type { HostCredentials } from './host-identity.ts';
import { type Carrier, LastingLink, type Reach, type Resumed } from './lasting-link.ts';
import { dialSecurely, listenSecurely, type SecureListener } from './link-opening.ts';
import { type LinkClaim, RESUME_TYPE, withResumeLimits } from './resume-messages.ts';

const DATA = 16;
const BODY_BYTES = 32 * KIB;
const SILENCE_MS = 5000;
const CLAIM: LinkClaim = { stream: 77n, token: 5n };
const OPTIONS = {
  clock,
  limits: withResumeLimits(new Map([[DATA, BODY_BYTES]])),
  windowBytes: 128 * KIB,
  keepaliveMs: 50,
};

let alpha: HostCredentials;
let beta: HostCredentials;
let owned: AsyncDisposableStack;

beforeAll(async () => {
  [alpha, beta] = await HostCertificates.ofTwo();
});

beforeEach(() => {
  owned = new AsyncDisposableStack();
});

afterEach(async () => {
  await owned[Symbol.asyncDispose]();
});

interface Wishes {
  readonly silenceMs?: number;
  /** What the side that dials shows. */
  readonly claim?: () => LinkClaim;
  readonly change?: (link: Carrier) => Carrier;
  /** What the side that is dialled does about a message. */
  readonly handle?: () => Promise<void>;
}

/** Both ends of a lasting link, between them a network that can be cut. */
class Pair {
  readonly network: UnsteadyNetwork;
  readonly failpoints = { near: new Failpoints(), far: new Failpoints() };
  readonly resumed: Record<'near' | 'far', Resumed[]> = { near: [], far: [] };
  readonly got: Record<'near' | 'far', number[]> = { near: [], far: [] };
  readonly near: LastingLink;
  readonly far: LastingLink;
  /** The first connection of the far end. */
  readonly taken: Carrier;
  readonly #listener: SecureListener;

  static async open(wishes: Wishes = {}): Promise<Pair> {
    const silenceMs = wishes.silenceMs ?? SILENCE_MS;
    const first = Promise.withResolvers<Carrier>();
    let onLink: (link: Carrier) => void = first.resolve;
    const listener = await listenSecurely({
      ...{ ...alpha, ...OPTIONS, silenceMs, host: '127.0.0.1', port: 0, peers: ['beta'] },
      onLink: (link) => onLink(link),
    });
    const network = owned.use(await UnsteadyNetwork.to(listener.port));
    const address = { host: '127.0.0.1', port: network.port, peer: 'alpha' };
    const dial = async (signal?: AbortSignal) =>
      await dialSecurely({ ...beta, ...OPTIONS, ...address, silenceMs, ...(signal && { signal }) });
    const dialled = await dial();
    const pair = new Pair({ network, listener, dialled, taken: await first.promise, dial, wishes });
    onLink = (link) => pair.far.offer(link);
    return pair;
  }

  private constructor(parts: {
    network: UnsteadyNetwork;
    listener: SecureListener;
    dialled: Carrier;
    taken: Carrier;
    dial: (signal?: AbortSignal) => Promise<Carrier>;
    wishes: Wishes;
  }) {
    const { network, dial, wishes } = parts;
    const { silenceMs = SILENCE_MS, claim = () => CLAIM, change = (link) => link } = wishes;
    this.network = network;
    this.taken = parts.taken;
    this.#listener = parts.listener;
    const common = { clock, silenceMs };
    const dials: Reach = { role: 'dials', dial: async (signal) => change(await dial(signal)) };
    const waits: Reach = { role: 'waits', isGone: async () => false };
    this.near = new LastingLink(parts.dialled, {
      ...{ ...common, claim, reach: dials, failpoints: this.failpoints.near },
      onResumed: (resumed) => this.resumed.near.push(resumed),
    });
    this.far = new LastingLink(parts.taken, {
      ...{ ...common, claim: () => CLAIM, reach: waits, failpoints: this.failpoints.far },
      onResumed: (resumed) => this.resumed.far.push(resumed),
    });
    for (const side of ['near', 'far'] as const)
      this[side].deliver(({ body }) => {
        this.got[side].push(new DataView(body.buffer, body.byteOffset).getUint32(0, true));
        return side === 'far' ? wishes.handle?.() : undefined;
      });
    owned.defer(async () => {
      this.#listener.close();
      await Promise.all([this.near.close(), this.far.close()]);
    });
  }

  /** Nobody listens any more, as when the process has ended. */
  endListening(): void {
    this.#listener.close();
  }
}

function numbered(index: number, bytes: number) {
  const body = Buffer.alloc(Math.max(4, bytes), index);
  body.writeUInt32LE(index);
  return { type: DATA, body };
}

async function sendAll(link: LastingLink, sizes: readonly number[]): Promise<void> {
  for (const [index, bytes] of sizes.entries()) await link.send(numbered(index, bytes));
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}

const sizes = fc.array(fc.integer({ min: 4, max: BODY_BYTES }), { minLength: 40, maxLength: 120 });

describe('a link that outlasts its connections', () => {
  it('brings over every message once and in order, wherever its connections are cut', async () => {
    let resumptions = 0;
    await fc.assert(
      fc.asyncProperty(
        ...[sizes, sizes, fc.array(fc.integer({ min: 1, max: 400_000 }), { minLength: 1, maxLength: 6 })],
        fc.constantFrom({}, { far: false }),
        async (forth, back, cuts, whoHears) => {
          const pair = await Pair.open();
          const [first = 1, ...later] = cuts;
          pair.network.cutAfter(first);
          const cutting = (async () => {
            for (const bytes of later) {
              const before = pair.resumed.near.length;
              await until(() => pair.resumed.near.length > before || pair.got.near.length === back.length);
              pair.network.cutAfter(bytes);
            }
            pair.network.cut(whoHears);
          })();
          await Promise.all([sendAll(pair.near, forth), sendAll(pair.far, back)]);
          const all = (list: readonly number[]) => list.map((_, index) => index);
          await until(() => pair.got.far.length >= forth.length && pair.got.near.length >= back.length);
          await cutting;
          expect(pair.got).toEqual({ far: all(forth), near: all(back) });
          resumptions += pair.resumed.near.length;
          await owned[Symbol.asyncDispose]();
          owned = new AsyncDisposableStack();
        },
      ),
      { numRuns: 10 },
    );
    expect(resumptions).toBeGreaterThan(0);
  });

  it('keeps no more of what it sent than a part of a window', async () => {
    const pair = await Pair.open();
    await sendAll(pair.near, Array(400).fill(BODY_BYTES));
    await until(() => pair.got.far.length === 400);
    await pair.near.send(numbered(400, 10));
    await until(() => pair.got.far.length === 401 && pair.near.keptBytes <= 16 * BODY_BYTES);
  });

  it.each(['near', 'far'] as const)('goes on when only its %s end has noticed the loss', async (side) => {
    const pair = await Pair.open({ silenceMs: 1000 });
    await sendAll(pair.near, [10, 10]);
    await until(() => pair.got.far.length === 2);
    pair.network.cut(side === 'near' ? { far: false } : { near: false });
    await pair.near.send(numbered(2, 10));
    // Where the side that dials hears nothing of it, it is the silence that tells.
    if (side === 'near') {
      await until(() => pair.got.far.length === 3);
      expect(pair.got.far).toEqual([0, 1, 2]);
    } else expect((await pair.near.closed).kind).toBe('lost');
  });

  it.each([
    ['resume.before-knock', 'near'],
    ['resume.before-answer', 'far'],
    ['resume.after-answer', 'far'],
    ['resume.before-going-on', 'near'],
  ] as const)('goes on when the connection is lost again at %s', async (failpoint, side) => {
    const pair = await Pair.open();
    await sendAll(pair.near, [10, 20_000, 20_000]);
    const disarm = pair.failpoints[side].arm(failpoint, () => {
      disarm();
      pair.network.cut();
    });
    pair.network.cut();
    await Promise.all([pair.near.send(numbered(3, 10)), pair.far.send(numbered(0, 10))]);
    await until(() => pair.got.far.length >= 4 && pair.got.near.length >= 1);
    expect(pair.got).toEqual({ far: [0, 1, 2, 3], near: [0] });
  });

  it('is made over yet another path when that of the new connection dies before its answer', async () => {
    const pair = await Pair.open();
    const asked = Promise.withResolvers<void>();
    const unanswered = Promise.withResolvers<void>();
    owned.defer(unanswered.resolve);
    const disarm = pair.failpoints.far.arm('resume.before-answer', async () => {
      disarm();
      asked.resolve();
      await unanswered.promise;
    });
    pair.network.cut();
    await asked.promise;
    pair.near.renew();
    await pair.near.send(numbered(0, 10));
    await until(() => pair.got.far.length === 1);
    expect(pair.resumed.near).toHaveLength(1);
  });

  it('ends when it is given what no connection would ever take', async () => {
    const pair = await Pair.open();
    await expect(pair.near.send(numbered(0, BODY_BYTES + 1))).rejects.toMatchObject({ code: 'WIRE_CLOSED' });
    expect((await pair.near.closed).kind).toBe('lost');
  });

  it('is not taken up by somebody who does not know which it is, or under which right', async () => {
    for (const wrong of [{ stream: 78n }, { token: 4n }]) {
      const pair = await Pair.open({ claim: () => ({ ...CLAIM, ...wrong }) });
      await sendAll(pair.near, [10]);
      await until(() => pair.got.far.length === 1);
      pair.network.cut();
      const end = await pair.near.closed;
      expect(end).toMatchObject({ kind: 'lost', error: { facts: { reason: 'claim' } } });
      expect(pair.resumed.far).toEqual([]);
    }
  });

  it.each(['near', 'far'] as const)('is not taken up again when its %s end forwent that', async (side) => {
    const pair = await Pair.open();
    pair[side].forgo();
    // What is there is used yet.
    await sendAll(pair.near, [10]);
    await until(() => pair.got.far.length === 1);
    pair.network.cut();
    const ends = await Promise.all([pair.near.closed, side === 'far' ? pair.far.closed : undefined]);
    expect(ends[0].kind).toBe('lost');
    expect(pair.resumed).toEqual({ near: [], far: [] });
    await expect(pair.near.send(numbered(1, 10))).rejects.toMatchObject({ code: 'WIRE_CLOSED' });
  });

  it('ends at once when the other process is gone, and in good order when it takes leave', async () => {
    const gone = await Pair.open({ silenceMs: 60_000 });
    gone.endListening();
    await gone.network[Symbol.asyncDispose]();
    expect((await gone.near.closed).kind).toBe('lost');
    const left = await Pair.open({ silenceMs: 60_000 });
    await left.far.send(numbered(0, 10));
    await left.far.close();
    expect(await left.near.closed).toEqual({ kind: 'closed-there' });
    expect(left.got.near).toEqual([0]);
  });

  it('takes nothing more once the other side has taken leave, also while a message of it is being dealt with', async () => {
    const begun = Promise.withResolvers<void>();
    const refused = Promise.withResolvers<unknown>();
    const pair = await Pair.open({
      handle: async () => {
        begun.resolve();
        // Its sender waits for the end of this, and this for somebody who sends.
        await refused.promise;
      },
    });
    await pair.near.send(numbered(0, 10));
    await begun.promise;
    const closing = pair.near.close();
    await until(() => pair.taken.isLeft);
    refused.resolve(await pair.far.send(numbered(0, 10)).catch((error: unknown) => error));
    expect(await refused.promise).toMatchObject({ code: 'WIRE_CLOSED' });
    await closing;
    expect(await pair.far.closed).toEqual({ kind: 'closed-there' });
  });

  it('refuses what waits for room when the other side takes leave', async () => {
    const begun = Promise.withResolvers<void>();
    const end = Promise.withResolvers<void>();
    const pair = await Pair.open({
      handle: async () => {
        begun.resolve();
        await end.promise;
      },
    });
    // More than its window, whose reader does not come to it.
    const sends = Array.from({ length: 6 }, (_, index) => pair.near.send(numbered(index, BODY_BYTES)));
    const outcomes = Promise.allSettled(sends);
    await begun.promise;
    await pair.far.close();
    end.resolve();
    expect((await outcomes).at(-1)).toMatchObject({ status: 'rejected', reason: { code: 'WIRE_CLOSED' } });
  });

  it('is lost to a silence, as every link is', async () => {
    const pair = await Pair.open({ silenceMs: 400 });
    pair.network.block('forth');
    expect(await pair.far.closed).toMatchObject({ kind: 'lost', error: { code: 'WIRE_SILENT' } });
    expect((await pair.near.closed).kind).toBe('lost');
    expect(pair.resumed).toEqual({ near: [], far: [] });
  });

  it('is given up when a message would be missing (control: the other side believes that it was used)', async () => {
    const lie = (link: Carrier): Carrier => ({
      peer: link.peer,
      heardMs: link.heardMs,
      closed: link.closed,
      isLeft: link.isLeft,
      deliver: (handler) => link.deliver(handler),
      close: () => link.close(),
      send: (message) => {
        if (message.type === RESUME_TYPE.knock && message.body instanceof Buffer)
          message.body.writeBigUInt64LE(message.body.readBigUInt64LE(16) + 1n, 16);
        return link.send(message);
      },
    });
    const pair = await Pair.open({ change: lie });
    await sendAll(pair.far, [10]);
    await until(() => pair.got.near.length === 1);
    pair.network.cut();
    pair.far.send(numbered(1, 10)).catch(() => {});
    pair.far.send(numbered(2, 10)).catch(() => {});
    expect(await pair.near.closed).toMatchObject({ kind: 'lost' });
    expect(pair.got.near).toEqual([0]);
  });
});
