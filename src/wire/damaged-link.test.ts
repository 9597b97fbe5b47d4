import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { expect, it, onTestFinished } from 'vitest';
import { HostCertificates } from '../../test/kit/host-certificates.ts';
import { systemClock as clock } from '../base/clock.ts';
import { KIB } from '../base/units.ts';
import { dialSecurely, listenSecurely } from './link-opening.ts';
import type { LinkOptions, SecureLink } from './secure-link.ts';

const DATA = 16;
const BODY_BYTES = 16 * KIB;
const MESSAGES = 60;
const OPTIONS: LinkOptions = { clock, limits: new Map([[DATA, BODY_BYTES]]) };
/** After the handshake, which ends in another way. */
const HANDSHAKE_BYTES = 8 * KIB;

function bodyOf(number: number): Buffer {
  return Buffer.alloc(BODY_BYTES, number + 1);
}

/** TCP to `port` that flips one bit of what goes there, `atByte` bytes from the beginning; none if that is too far. */
async function damagedWay(port: number, atByte: number): Promise<number> {
  const server = createServer((near) => {
    const far = connect(port, '127.0.0.1');
    let passedBytes = 0;
    near.on('data', (chunk) => {
      const at = atByte - passedBytes;
      passedBytes += chunk.length;
      const byte = chunk[at];
      if (byte !== undefined) chunk[at] = byte ^ (1 << (atByte % 8));
      far.write(chunk);
    });
    far.on('data', (chunk) => near.write(chunk));
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      one.on('error', () => {});
      one.on('close', () => other.destroy());
    }
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}

/** Sends all messages that way, as far as that goes, and returns what was handed out at its end, and how it ended there. */
async function sent(atByte: number) {
  const [alpha, beta] = await HostCertificates.ofTwo();
  const came = Promise.withResolvers<SecureLink>();
  const address = { host: '127.0.0.1', port: 0 };
  const listener = await listenSecurely({
    ...{ ...alpha, ...OPTIONS, ...address, peers: ['beta'], onLink: came.resolve },
  });
  onTestFinished(() => listener.close());
  const port = await damagedWay(listener.port, atByte);
  const sender = await dialSecurely({ ...beta, ...OPTIONS, ...address, port, peer: 'alpha' });
  onTestFinished(() => sender.close());
  const receiver = await came.promise;
  onTestFinished(() => receiver.close());
  const bodies: Uint8Array[] = [];
  const all = Promise.withResolvers<void>();
  receiver.deliver(({ body }) => {
    bodies.push(Buffer.from(body));
    if (bodies.length === MESSAGES) all.resolve();
  });
  for (let number = 0; number < MESSAGES; number += 1)
    sender.send({ type: DATA, body: bodyOf(number) }).catch(() => {});
  const end = await Promise.race([receiver.closed, all.promise]);
  return { bodies, end };
}

it.each([9, 37, 301, 5_009, 16_411, 16_500, 100_003, 700_001].map((bytes) => HANDSHAKE_BYTES + bytes))(
  'a link on which a bit is flipped %i bytes from its beginning is lost, and hands out nothing but what was sent before',
  async (atByte) => {
    const { bodies, end } = await sent(atByte);
    expect(end).toMatchObject({ kind: 'lost' });
    expect(bodies.length).toBeLessThanOrEqual(Math.floor(atByte / BODY_BYTES));
    for (const [number, body] of bodies.entries()) expect(bodyOf(number).equals(body)).toBe(true);
  },
);

it('a link on which none is flipped brings all of it over (control)', async () => {
  const { bodies, end } = await sent(Number.POSITIVE_INFINITY);
  expect(end).toBeUndefined();
  expect(bodies.every((body, number) => bodyOf(number).equals(body))).toBe(true);
});
