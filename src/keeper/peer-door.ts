import { readFileSync } from 'node:fs';
import { connect, createServer, type TLSSocket } from 'node:tls';
import { messageOf } from '../base/errors.ts';
import type { SiteConfig } from '../config/site-config.ts';
import type { PeerLink, PeerMessage } from '../replication/peer-link.ts';
import { garbled, MESSAGE_BYTES_MAX } from '../replication/peer-messages.ts';
import { peerLost } from './refusals.ts';

const DIAL_DEADLINE_MS = 5_000;
const HEAD_BYTES = 5;

/** An address of site.yaml. */
export function splitAddress(address: string): { readonly host: string; readonly port: number } {
  const colon = address.lastIndexOf(':');
  return {
    host: address.slice(0, colon).replace(/^\[|\]$/g, ''),
    port: Number(address.slice(colon + 1)),
  };
}

/** A link to a host of the site, which has shown that it is that host. @throws KeeperError KEEPER_PEER_LOST */
export async function dialPeer(
  site: SiteConfig,
  name: string,
  { port, signal }: { port?: number; signal: AbortSignal },
): Promise<PeerLink> {
  const address = site.hosts[name];
  if (address === undefined) throw peerLost(name, 'site.yaml does not name it');
  const { host, port: known } = splitAddress(address);
  const socket = connect({
    ...{ host, port: port ?? known, ...credentials(site), servername: name, noDelay: true },
    minVersion: 'TLSv1.3',
  });
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const timer = setTimeout(() => reject(new Error('no answer')), DIAL_DEADLINE_MS);
  const abort = () => reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  socket.once('secureConnect', resolve);
  socket.on('error', reject);
  try {
    await promise;
    return new SocketLink(socket);
  } catch (cause) {
    socket.destroy();
    if (signal.aborted) throw signal.reason;
    throw peerLost(name, messageOf(cause));
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', abort);
  }
}

export interface PeerDoor extends Disposable {
  readonly port: number;
}

/** Listens for the other hosts of the site. Whoever cannot show that they are one gets no further. */
export async function openDoor(
  site: SiteConfig,
  { port, onLink }: { port: number; onLink: (link: PeerLink, peer: string) => void },
): Promise<PeerDoor> {
  const server = createServer(
    {
      ...credentials(site),
      requestCert: true,
      rejectUnauthorized: true,
      minVersion: 'TLSv1.3',
      noDelay: true,
    },
    (socket) => {
      const peer = Object.keys(site.hosts).find((name) => isNamed(socket, name));
      if (peer === undefined) socket.destroy();
      else onLink(new SocketLink(socket), peer);
    },
  );
  const { host } = splitAddress(site.listen);
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, resolve);
  });
  const address = server.address();
  return {
    port: address !== null && typeof address === 'object' ? address.port : port,
    // Links that were taken live on.
    [Symbol.dispose]: () => void server.close(),
  };
}

function credentials(site: SiteConfig) {
  return { ca: readFileSync(site.ca), cert: readFileSync(site.certificate), key: readFileSync(site.key) };
}

function isNamed(socket: TLSSocket, name: string): boolean {
  const { subjectaltname = '' } = socket.getPeerCertificate();
  return subjectaltname.split(', ').includes(`DNS:${name}`);
}

class SocketLink implements PeerLink {
  readonly #socket: TLSSocket;
  readonly #closed = Promise.withResolvers<Error | undefined>();
  #isClosedHere = false;

  constructor(socket: TLSSocket) {
    this.#socket = socket;
    let error: Error | undefined;
    socket.removeAllListeners('error');
    socket.on('error', (cause) => {
      error = cause;
    });
    socket.once('close', () =>
      this.#closed.resolve(this.#isClosedHere ? undefined : (error ?? new Error('the other side is gone'))),
    );
  }

  get closed(): Promise<Error | undefined> {
    return this.#closed.promise;
  }

  async send(type: number, parts: readonly Uint8Array[]): Promise<void> {
    const lengthBytes = parts.reduce((sum, part) => sum + part.length, 0);
    const head = Buffer.alloc(HEAD_BYTES);
    head.writeUInt32LE(lengthBytes, 0);
    head.writeUInt8(type, 4);
    this.#socket.cork();
    this.#socket.write(head);
    // A copy: the caller may use its bytes again.
    for (const part of parts) this.#socket.write(Buffer.from(part));
    process.nextTick(() => this.#socket.uncork());
    while (this.#socket.writableNeedDrain && !this.#socket.destroyed)
      await new Promise<void>((resolve) => {
        this.#socket.once('drain', resolve);
        this.#socket.once('close', resolve);
      });
    if (this.#socket.destroyed) throw new Error('the connection is closed');
  }

  async *messages(): AsyncGenerator<PeerMessage> {
    let pending = Buffer.alloc(0);
    try {
      for await (const chunk of this.#socket) {
        pending = pending.length === 0 ? chunk : Buffer.concat([pending, chunk]);
        while (pending.length >= HEAD_BYTES) {
          const lengthBytes = pending.readUInt32LE(0);
          if (lengthBytes > MESSAGE_BYTES_MAX) throw garbled('a message that is too long');
          if (pending.length < HEAD_BYTES + lengthBytes) break;
          const body = pending.subarray(HEAD_BYTES, HEAD_BYTES + lengthBytes);
          yield { type: pending.readUInt8(4), body };
          pending = pending.subarray(HEAD_BYTES + lengthBytes);
        }
      }
    } catch (cause) {
      if (!this.#socket.destroyed) throw cause;
    } finally {
      this.#socket.destroy();
    }
  }

  close(): void {
    this.#isClosedHere = true;
    this.#socket.end();
    setTimeout(() => this.#socket.destroy(), 1000).unref();
  }
}
