import { connect as connectTls, type TLSSocket } from 'node:tls';
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { HostCertificates } from '../../test/kit/host-certificates.ts';
import { UnsteadyNetwork } from '../../test/kit/unsteady-network.ts';
import { systemClock } from '../base/clock.ts';
import { KIB, MIB } from '../base/units.ts';
import type { HostCredentials } from './host-identity.ts';
import { helloMessage } from './link-messages.ts';
import { dialSecurely, listenSecurely } from './link-opening.ts';
import { encodeMessage, HEADER_BYTES } from './message-framing.ts';
import type { LinkOptions, SecureLink } from './secure-link.ts';

const DATA = 16;
const BODY_BYTES = 64 * KIB;
const WINDOW_BYTES = 256 * KIB;
const MESSAGES = 200;
const OPTIONS: LinkOptions = {
  clock: systemClock,
  limits: new Map([[DATA, BODY_BYTES]]),
  windowBytes: WINDOW_BYTES,
};
/** Short enough for a test, and with many keepalives in it. */
const NERVOUS = { keepaliveMs: 20, silenceMs: 400 };

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

interface Pair {
  readonly sender: SecureLink;
  readonly receiver: SecureLink;
  readonly network: UnsteadyNetwork;
}

async function listen(change: Partial<LinkOptions> = {}) {
  const came = Promise.withResolvers<SecureLink>();
  const listener = await listenSecurely({
    ...alpha,
    ...OPTIONS,
    ...change,
    host: '127.0.0.1',
    port: 0,
    peers: ['beta'],
    onLink: came.resolve,
  });
  owned.defer(() => listener.close());
  return { port: listener.port, came: came.promise };
}

async function pair(change: Partial<LinkOptions> = {}): Promise<Pair> {
  const { port, came } = await listen(change);
  const network = owned.use(await UnsteadyNetwork.to(port));
  const address = { host: '127.0.0.1', port: network.port, peer: 'alpha' };
  const sender = owned.use(await dialSecurely({ ...beta, ...OPTIONS, ...change, ...address }));
  const receiver = owned.use(await came);
  return { sender, receiver, network };
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setImmediate(resolve));
}

function numbered(index: number, bodyBytes = BODY_BYTES) {
  const body = Buffer.alloc(bodyBytes, index);
  return { type: DATA, flags: index & 1, sequence: BigInt(index), body };
}

/** Sends all, as one who waits for each to leave. Resolves with how many it could send. */
async function sendAll(link: SecureLink, seen: { mostBytes: number }, count = MESSAGES): Promise<number> {
  let sent = 0;
  try {
    for (; sent < count; sent += 1) {
      await link.send(numbered(sent));
      seen.mostBytes = Math.max(seen.mostBytes, link.inFlightBytes);
    }
  } catch (thrown) {
    expect(thrown).toMatchObject({ code: 'WIRE_CLOSED' });
  }
  return sent;
}

describe('a link between hosts', () => {
  it('brings messages over in both directions, whole, in order and once', async () => {
    const { sender, receiver } = await pair();
    const got: Record<'there' | 'here', number[]> = { there: [], here: [] };
    receiver.deliver(({ sequence, flags, type, body }) => {
      expect([type, flags]).toEqual([DATA, Number(sequence) & 1]);
      expect(body.every((byte) => byte === (Number(sequence) & 255))).toBe(true);
      got.there.push(Number(sequence));
    });
    sender.deliver(({ sequence }) => void got.here.push(Number(sequence)));
    const seen = { mostBytes: 0 };
    expect(await Promise.all([sendAll(sender, seen), sendAll(receiver, seen)])).toEqual([MESSAGES, MESSAGES]);
    await until(() => got.there.length + got.here.length === 2 * MESSAGES);
    const all = Array.from({ length: MESSAGES }, (_, index) => index);
    expect(got).toEqual({ there: all, here: all });
  });

  it('makes its sender wait for a slow reader, with bounded memory on both sides, and loses nothing', async () => {
    const { sender, receiver } = await pair();
    const gate = Promise.withResolvers<void>();
    const got: number[] = [];
    receiver.deliver(async ({ sequence }) => {
      await gate.promise;
      got.push(Number(sequence));
    });
    const seen = { mostBytes: 0 };
    const sending = sendAll(sender, seen);
    const boundBytes = WINDOW_BYTES + BODY_BYTES + HEADER_BYTES;
    await until(() => receiver.heldBytes >= WINDOW_BYTES);
    // All that it may send is there: it can only wait now.
    expect(receiver.heldBytes).toBe(sender.inFlightBytes);
    expect(sender.inFlightBytes).toBeLessThan(boundBytes);
    expect(got).toEqual([]);
    gate.resolve();
    expect(await sending).toBe(MESSAGES);
    await until(() => got.length === MESSAGES);
    expect(seen.mostBytes).toBeLessThan(boundBytes);
    expect(got).toEqual(Array.from({ length: MESSAGES }, (_, index) => index));
  });

  it('would take all of it without the window (control of the test above)', async () => {
    const { sender, receiver } = await pair({ windowBytes: 64 * MIB });
    const gate = Promise.withResolvers<void>();
    receiver.deliver(() => gate.promise);
    const seen = { mostBytes: 0 };
    expect(await sendAll(sender, seen)).toBe(MESSAGES);
    expect(seen.mostBytes).toBe(MESSAGES * (BODY_BYTES + HEADER_BYTES));
    gate.resolve();
  });

  it('ends when its peer sends more than it was allowed', async () => {
    const { port, came } = await listen();
    const socket = byHand(port);
    const received = owned.use(await came);
    for (let index = 0; index < 10; index += 1) socket.write(encodeMessage(numbered(index)));
    expect(await received.closed).toMatchObject({ kind: 'lost', error: { code: 'WIRE_OVERRUN' } });
  });

  it.each([
    ['a type that is not agreed', encodeMessage({ type: 99 })],
    ['a second hello', encodeMessage(helloMessage(MIB))],
    ['credit for what was never sent', encodeMessage({ type: 2, body: Buffer.alloc(8, 1) })],
    ['a damaged message', encodeMessage(numbered(1, 100)).fill(7, 60, 61)],
  ])('ends when its peer sends %s, and hands nothing of it out', async (_, bytes) => {
    const { port, came } = await listen();
    const socket = byHand(port);
    const received = owned.use(await came);
    const got: bigint[] = [];
    received.deliver(({ sequence }) => void got.push(sequence));
    socket.write(encodeMessage(numbered(5, 10)));
    await until(() => got.length === 1);
    socket.write(bytes);
    expect(await received.closed).toMatchObject({ kind: 'lost', error: { code: 'WIRE_GARBLED' } });
    expect(got).toEqual([5n]);
  });

  it('ends with what its handler throws', async () => {
    const { sender, receiver } = await pair();
    receiver.deliver(() => Promise.reject(new Error('no room for this')));
    await sender.send(numbered(1));
    expect(await receiver.closed).toMatchObject({ kind: 'lost', error: { code: 'WIRE_LOST' } });
    expect(await sender.closed).toMatchObject({ kind: 'lost', error: { code: 'WIRE_LOST' } });
  });
});

describe('a link that is closed', () => {
  it('brings over what was sent before, and both sides know who closed it', async () => {
    const { sender, receiver } = await pair();
    const gate = Promise.withResolvers<void>();
    const got: number[] = [];
    receiver.deliver(async ({ sequence }) => {
      await gate.promise;
      got.push(Number(sequence));
    });
    for (let index = 0; index < 3; index += 1) await sender.send(numbered(index));
    await sender.close();
    expect(await sender.closed).toEqual({ kind: 'closed-here' });
    gate.resolve();
    expect(await receiver.closed).toEqual({ kind: 'closed-there' });
    expect(got).toEqual([0, 1, 2]);
    await expect(sender.send(numbered(4))).rejects.toMatchObject({ code: 'WIRE_CLOSED' });
    await expect(receiver.send(numbered(4))).rejects.toMatchObject({ code: 'WIRE_CLOSED' });
  });

  it('tells those whose messages still wait', async () => {
    const { sender, receiver } = await pair();
    const sending = sendAll(sender, { mostBytes: 0 });
    await until(() => receiver.heldBytes >= WINDOW_BYTES);
    await receiver.close();
    expect(await sending).toBeLessThan(MESSAGES);
    expect(await sender.closed).toEqual({ kind: 'closed-there' });
  });
});

describe('a link whose network fails', () => {
  it('is lost on both sides when the connection is cut, and sends that wait are told', async () => {
    const { sender, receiver, network } = await pair();
    const sending = sendAll(sender, { mostBytes: 0 });
    await until(() => receiver.heldBytes >= WINDOW_BYTES);
    network.cut();
    const lost = { kind: 'lost', error: { code: 'WIRE_LOST' } };
    expect(await Promise.all([sender.closed, receiver.closed])).toMatchObject([lost, lost]);
    expect(await sending).toBeLessThan(MESSAGES);
  });

  it('is given up by both sides when nothing passes any more', async () => {
    const { sender, receiver, network } = await pair(NERVOUS);
    network.block('forth', 'back');
    const silent = { kind: 'lost', error: { code: 'WIRE_SILENT' } };
    expect(await Promise.all([sender.closed, receiver.closed])).toMatchObject([silent, silent]);
  });

  it('is given up when one way only is cut: by who hears nothing, and then by the other', async () => {
    const { sender, receiver, network } = await pair(NERVOUS);
    network.block('forth');
    expect(await receiver.closed).toMatchObject({ kind: 'lost', error: { code: 'WIRE_SILENT' } });
    expect(await sender.closed).toMatchObject({ kind: 'lost', error: { code: 'WIRE_LOST' } });
  });

  it('is not given up as long as it is only idle (control of the tests above)', async () => {
    const { sender, receiver, network } = await pair(NERVOUS);
    // Each is at least a keepalive away from the one before: together more than the silence that is too much.
    await network.passes((2 * NERVOUS.silenceMs) / NERVOUS.keepaliveMs);
    const got = Promise.withResolvers<bigint>();
    receiver.deliver(({ sequence }) => got.resolve(sequence));
    await sender.send(numbered(7));
    expect(await got.promise).toBe(7n);
  });

  it('is not given up when this process was held up longer than silence may last', async () => {
    const { sender, receiver, network } = await pair(NERVOUS);
    // Both sides live in this process: what they said before lies unread in the kernel.
    await sender.send(numbered(1, 100));
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2 * NERVOUS.silenceMs);
    await network.passes(2);
    const got = Promise.withResolvers<bigint>();
    receiver.deliver(({ sequence }) => got.resolve(sequence));
    expect(await got.promise).toBe(1n);
  });
});

/** A host with the right certificate that does what no link of ours does, after its hello. */
function byHand(port: number): TLSSocket {
  const { certificate, key, ca } = beta;
  const socket = connectTls({ host: '127.0.0.1', port, cert: certificate, key, ca, servername: 'alpha' });
  owned.defer(() => void socket.destroy());
  socket.on('error', () => {});
  socket.resume();
  socket.write(encodeMessage(helloMessage(MIB)));
  return socket;
}
