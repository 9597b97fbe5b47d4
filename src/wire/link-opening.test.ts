import { once } from 'node:events';
import { type AddressInfo, connect as connectTcp, createServer, type Server, type Socket } from 'node:net';
import { type ConnectionOptions, connect as connectTls, type TLSSocket } from 'node:tls';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type CertificateWish, HostCertificates } from '../../test/kit/host-certificates.ts';
import { systemClock } from '../base/clock.ts';
import type { HostCredentials } from './host-identity.ts';
import {
  type DialOptions,
  DOOR_BOUNDS,
  dialSecurely,
  type ListenOptions,
  listenSecurely,
} from './link-opening.ts';
import { WIRE_VERSION } from './message-framing.ts';
import type { SecureLink } from './secure-link.ts';
import type { WireError } from './wire-error.ts';

const LIMITS = new Map([[16, 1000]]);

let ours: HostCertificates;
let foreign: HostCertificates;
let alpha: HostCredentials;
let beta: HostCredentials;
let owned: AsyncDisposableStack;

beforeAll(async () => {
  ours = await HostCertificates.make();
  foreign = await HostCertificates.make();
  [alpha, beta] = [await ours.host('alpha'), await ours.host('beta')];
  return () => {};
});

afterEach(async () => {
  await owned[Symbol.asyncDispose]();
});

/** `alpha`, which expects `beta`. */
async function listening(change: Partial<ListenOptions> = {}) {
  owned = new AsyncDisposableStack();
  const links: SecureLink[] = [];
  const came = Promise.withResolvers<SecureLink>();
  const refused = Promise.withResolvers<WireError>();
  const listener = await listenSecurely({
    ...alpha,
    host: '127.0.0.1',
    port: 0,
    peers: ['beta'],
    clock: systemClock,
    limits: LIMITS,
    onLink: (link) => {
      links.push(link);
      came.resolve(owned.use(link));
    },
    onRefused: (error) => refused.resolve(error),
    ...change,
  });
  owned.defer(() => listener.close());
  return { port: listener.port, links, came: came.promise, refused: refused.promise };
}

/** `beta`, which looks for `alpha`. */
async function dial(port: number, change: Partial<DialOptions> = {}): Promise<SecureLink> {
  const address = { host: '127.0.0.1', port, peer: 'alpha' };
  return owned.use(
    await dialSecurely({ ...beta, ...address, clock: systemClock, limits: LIMITS, ...change }),
  );
}

async function plainServer(onConnection: (socket: Socket) => void): Promise<number> {
  owned = new AsyncDisposableStack();
  const sockets: Socket[] = [];
  const server: Server = createServer((socket) => {
    sockets.push(socket.on('error', () => {}));
    onConnection(socket);
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  owned.defer(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return (server.address() as AddressInfo).port;
}

/** TLS by hand, to behave as no host of ours does. */
function byHand(port: number, options: ConnectionOptions): TLSSocket {
  const socket = connectTls({ host: '127.0.0.1', port, rejectUnauthorized: false, ...options });
  owned.defer(() => void socket.destroy());
  socket.on('error', () => {});
  socket.resume();
  return socket;
}

describe('two hosts', () => {
  it('that show each other who they are get a link, with the names of their certificates', async () => {
    const { port, came } = await listening();
    const dialled = await dial(port);
    expect(dialled.peer).toBe('alpha');
    expect((await came).peer).toBe('beta');
  });

  it.each<[string, () => Promise<HostCredentials>, string]>([
    [
      'of a foreign CA',
      async () => ({ ...(await foreign.host('beta')), ca: ours.ca }),
      'WIRE_PEER_UNTRUSTED',
    ],
    ['that has expired', () => ours.host('beta', { issuedYearsAgo: 3 }), 'WIRE_PEER_EXPIRED'],
    ['that is not valid yet', () => ours.host('beta', { issuedYearsAgo: -1 }), 'WIRE_PEER_EXPIRED'],
    ['of another host', () => ours.host('gamma'), 'WIRE_PEER_NAME'],
    ['for its own and our name', () => ours.host('beta', { dns: ['beta', 'alpha'] }), 'WIRE_PEER_NAME'],
    ['of a client', () => ours.host('beta', { isServer: false }), 'WIRE_PEER_NOT_A_HOST'],
    ['of a host with a role', () => ours.host('beta', { unit: 'admin' }), 'WIRE_PEER_NOT_A_HOST'],
  ])('get none when the one that comes has a certificate %s, and it is told why', async (_, wrong, code) => {
    const { port, links, refused } = await listening();
    await expect(dial(port, await wrong())).rejects.toMatchObject({
      code: 'WIRE_REFUSED',
      facts: { reason: code },
    });
    expect((await refused).code).toBe(code);
    expect(links).toEqual([]);
    // The right one is let in at the same place (control).
    expect((await dial(port)).peer).toBe('alpha');
  });

  it.each<[string, () => Promise<HostCredentials>, string]>([
    [
      'of a foreign CA',
      async () => ({ ...(await foreign.host('alpha')), ca: ours.ca }),
      'WIRE_PEER_UNTRUSTED',
    ],
    ['that has expired', () => ours.host('alpha', { issuedYearsAgo: 3 }), 'WIRE_PEER_EXPIRED'],
    ['of another host', () => ours.host('gamma'), 'WIRE_PEER_NAME'],
    ['for its own and our name', () => ours.host('alpha', { dns: ['alpha', 'beta'] }), 'WIRE_PEER_NAME'],
    ['of a client', () => ours.host('alpha', { isServer: false }), 'WIRE_PEER_NOT_A_HOST'],
    ['of a host with a role', () => ours.host('alpha', { unit: 'admin' }), 'WIRE_PEER_NOT_A_HOST'],
  ])('get none when the one that listens has a certificate %s', async (_, wrong, code) => {
    const { port, links, refused } = await listening(await wrong());
    await expect(dial(port)).rejects.toMatchObject({ code });
    expect(await refused).toMatchObject({ code: 'WIRE_REFUSED', facts: { reason: code } });
    expect(links).toEqual([]);
  });

  it('get none without a certificate, or with TLS 1.2', async () => {
    const without = await listening();
    byHand(without.port, {});
    expect((await without.refused).code).toBe('WIRE_PEER_UNTRUSTED');
    const old = await listening();
    byHand(old.port, { cert: beta.certificate, key: beta.key, maxVersion: 'TLSv1.2' });
    expect((await old.refused).code).toBe('WIRE_HANDSHAKE_FAILED');
    expect([...without.links, ...old.links]).toEqual([]);
  });

  it('of different versions both learn of it, and of both versions', async () => {
    const { port, links, refused } = await listening();
    const [ourVersion, theirVersion] = [WIRE_VERSION + 1, WIRE_VERSION];
    await expect(dial(port, { version: ourVersion })).rejects.toMatchObject({
      code: 'WIRE_VERSION',
      facts: { ourVersion, theirVersion },
    });
    expect(await refused).toMatchObject({
      code: 'WIRE_VERSION',
      facts: { ourVersion: theirVersion, theirVersion: ourVersion },
    });
    expect(links).toEqual([]);
  });
});

describe('a host that is dialled', () => {
  it('is let go of when that is not wanted any more, before and while it is dialled', async () => {
    const closed = Promise.withResolvers<void>();
    const mute = await plainServer((socket) => socket.resume().on('close', () => closed.resolve()));
    const stop = new AbortController();
    const dialling = dial(mute, { signal: stop.signal });
    stop.abort(new Error('shutting down'));
    await expect(dialling).rejects.toThrow('shutting down');
    await expect(dial(mute, { signal: stop.signal })).rejects.toThrow('shutting down');
    const later = new AbortController();
    const connected = await plainServer((socket) => {
      socket.resume().on('close', () => closed.resolve());
      socket.once('data', () => later.abort(new Error('changed my mind')));
    });
    await expect(dial(connected, { signal: later.signal })).rejects.toThrow('changed my mind');
    await closed.promise;
  });

  it('and does not listen is told apart from one that speaks something else', async () => {
    const { port } = await listening();
    await owned[Symbol.asyncDispose]();
    owned = new AsyncDisposableStack();
    await expect(dial(port)).rejects.toMatchObject({ code: 'WIRE_DIAL_FAILED' });
    const echo = await plainServer((socket) => socket.end('SSH-2.0-something\r\n'));
    await expect(dial(echo)).rejects.toMatchObject({ code: 'WIRE_HANDSHAKE_FAILED' });
  });

  it('and says nothing is given up after the deadline', async () => {
    const mute = await plainServer(() => {});
    await expect(dial(mute, { handshakeDeadlineMs: 50 })).rejects.toMatchObject({ code: 'WIRE_TIMEOUT' });
  });
});

describe('a host that listens', () => {
  it('gives up who shows a certificate and says nothing, and who does not even speak TLS', async () => {
    const mute = await listening({ handshakeDeadlineMs: 100 });
    byHand(mute.port, { cert: beta.certificate, key: beta.key });
    expect((await mute.refused).code).toBe('WIRE_TIMEOUT');
    const stranger = await listening({ handshakeDeadlineMs: 100 });
    const socket = connectTcp(stranger.port, '127.0.0.1').on('error', () => {});
    owned.defer(() => void socket.destroy());
    expect((await stranger.refused).code).toBe('WIRE_HANDSHAKE_FAILED');
    expect([...mute.links, ...stranger.links]).toEqual([]);
  });

  it('shows a renewed certificate from then on, and none that is not its own', async () => {
    owned = new AsyncDisposableStack();
    const expired = await ours.host('alpha', { issuedYearsAgo: 3 });
    const options = { host: '127.0.0.1', port: 0, peers: ['beta'], clock: systemClock, limits: LIMITS };
    const listener = await listenSecurely({ ...expired, ...options, onLink: (link) => void owned.use(link) });
    owned.defer(() => listener.close());
    await expect(dial(listener.port)).rejects.toMatchObject({ code: 'WIRE_PEER_EXPIRED' });
    expect(() => listener.renew(beta)).toThrow(
      expect.objectContaining({ code: 'WIRE_CERTIFICATE_UNUSABLE' }),
    );
    listener.renew(alpha);
    expect((await dial(listener.port)).peer).toBe('alpha');
  });

  it('looks for a renewed certificate when somebody comes, and keeps its own where that is of no use', async () => {
    const renewals = [beta, alpha];
    const expired = await ours.host('alpha', { issuedYearsAgo: 3 });
    const { port } = await listening({ ...expired, renewed: () => renewals.shift(), onRefused: () => {} });
    await expect(dial(port)).rejects.toMatchObject({ code: 'WIRE_PEER_EXPIRED' });
    expect((await dial(port)).peer).toBe('alpha');
    expect((await dial(port)).peer).toBe('alpha');
  });

  it('lets others in beside somebody who only connects, and sends away who is one too many', async () => {
    const { port, refused } = await listening();
    const { strangersPerAddress: count } = DOOR_BOUNDS;
    const strangers = Array.from({ length: count }, () => connectTcp({ port, host: '127.0.0.1' }));
    for (const stranger of strangers) owned.defer(() => void stranger.on('error', () => {}).destroy());
    await Promise.all(strangers.map((stranger) => once(stranger, 'connect')));
    await expect(dial(port)).rejects.toMatchObject({ code: 'WIRE_HANDSHAKE_FAILED' });
    expect((await refused).code).toBe('WIRE_CROWDED');
    const socket = connectTcp({ port, host: '127.0.0.1', localAddress: '127.0.0.2' });
    const elsewhere = byHand(port, { cert: beta.certificate, key: beta.key, socket });
    await once(elsewhere, 'secureConnect');
    strangers[0]?.destroy();
    await expect.poll(() => dial(port).then((link) => link.peer, String)).toBe('alpha');
  });

  it('has so many links of one host, and room for those of another one', async () => {
    const { port } = await listening({ peers: ['beta', 'gamma'] });
    const links: SecureLink[] = [];
    for (let count = 0; count < DOOR_BOUNDS.linksPerPeer; count += 1) links.push(await dial(port));
    const crowded = { code: 'WIRE_REFUSED', facts: { reason: 'WIRE_CROWDED' } };
    await expect(dial(port)).rejects.toMatchObject(crowded);
    expect((await dial(port, await ours.host('gamma'))).peer).toBe('alpha');
    await links[0]?.close();
    await expect.poll(() => dial(port).then((link) => link.peer, String)).toBe('alpha');
  });

  it('takes nobody by a session of before: who they were may not be who they are', async () => {
    const { port, refused } = await listening();
    const first = byHand(port, { cert: beta.certificate, key: beta.key, ca: ours.ca });
    const [session] = (await once(first, 'session')) as [Buffer];
    const again = byHand(port, { cert: beta.certificate, key: beta.key, ca: ours.ca, session });
    await once(again, 'secureConnect');
    expect(again.isSessionReused()).toBe(true);
    expect(await refused).toMatchObject({
      code: 'WIRE_PEER_UNTRUSTED',
      facts: { reason: 'it goes on with an old session' },
    });
  });

  it('is told when its address cannot be used', async () => {
    const { port } = await listening();
    await expect(listening({ port })).rejects.toMatchObject({ code: 'WIRE_LISTEN_FAILED' });
  });

  it('leaves the links that it gave out as they are when it is closed', async () => {
    owned = new AsyncDisposableStack();
    const came = Promise.withResolvers<SecureLink>();
    const options = { host: '127.0.0.1', port: 0, peers: ['beta'], clock: systemClock, limits: LIMITS };
    const listener = await listenSecurely({ ...alpha, ...options, onLink: came.resolve });
    const dialled = await dial(listener.port);
    const accepted = owned.use(await came.promise);
    listener.close();
    const got = Promise.withResolvers<number>();
    accepted.deliver((message) => got.resolve(message.body.length));
    await dialled.send({ type: 16, body: new Uint8Array(5) });
    expect(await got.promise).toBe(5);
  });
});

describe('credentials', () => {
  it.each<[string, () => Promise<HostCredentials>]>([
    ['of which the key is another’s', async () => ({ ...beta, key: alpha.key })],
    ['with a CA that is a key', async () => ({ ...beta, ca: alpha.key })],
    ['that are no PEM', async () => ({ ...beta, certificate: 'nonsense' })],
    ['for another name than the host’s', async () => ({ ...beta, name: 'delta' })],
    [
      'of a client, which have no name of a host',
      () => ours.host('beta', { dns: [] } satisfies CertificateWish),
    ],
    ['for a name that every host has', async () => ({ ...beta, name: 'localhost' })],
  ])('%s are refused before anything is sent', async (_, credentials) => {
    owned = new AsyncDisposableStack();
    await expect(dial(1, await credentials())).rejects.toMatchObject({ code: 'WIRE_CERTIFICATE_UNUSABLE' });
  });

  it.each(['localhost', '127.0.0.1', 'beta', 'BETA', ''])('are not accepted for %j', async (peer) => {
    owned = new AsyncDisposableStack();
    await expect(dial(1, { peer })).rejects.toMatchObject({ code: 'WIRE_PEER_NAME' });
  });
});
