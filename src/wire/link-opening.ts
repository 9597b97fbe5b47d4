import { once } from 'node:events';
import { type AddressInfo, connect as connectTcp, type Socket } from 'node:net';
import { connect as connectTls, createServer, type Server, type TLSSocket } from 'node:tls';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { setTcpUserTimeout } from '../linux/tcp.ts';
import { assertPeerNames, type HostCredentials, peerOf, secureContextOf } from './host-identity.ts';
import { refusalMessage } from './link-messages.ts';
import { encodeMessage } from './message-framing.ts';
import { type LinkOptions, SecureLink, SILENCE_MS } from './secure-link.ts';
import { WireError } from './wire-error.ts';

const DIAL_DEADLINE_MS = 3000;
const HANDSHAKE_DEADLINE_MS = 5000;
/**
 * What is there at a time at an address where hosts come in. Whoever is one too many is sent away, and those who are there
 * already are left alone: a host that does not do as it should is in nobody's way but its own.
 */
export const DOOR_BOUNDS = {
  /** Connections that have not shown yet who they are, each for HANDSHAKE_DEADLINE_MS at most. */
  strangers: 64,
  /** Of these, from one address: others get in beside somebody who only connects. */
  strangersPerAddress: 16,
  /** Links of one host: old ones that nobody has missed yet among them. */
  linksPerPeer: 64,
} as const;
/** How long a refusal may take to leave. */
const FAREWELL_MS = 1000;

interface Opening extends HostCredentials, LinkOptions {
  readonly host: string;
  readonly port: number;
  /** For certificates and the first message of both sides. */
  readonly handshakeDeadlineMs?: number;
}

export interface DialOptions extends Opening {
  /** Name of the host that has to be at the other end. */
  readonly peer: string;
  /** For the connection itself. */
  readonly dialDeadlineMs?: number;
  /** Gives up when it is aborted, with its reason. */
  readonly signal?: AbortSignal;
}

export interface ListenOptions extends Opening {
  /** Names of the hosts that may come. */
  readonly peers: readonly string[];
  /** Somebody has shown to be one of `peers`. The link is its receiver's to close. */
  readonly onLink: (link: SecureLink) => void;
  /** Asked when somebody comes: what is to be shown from now on; undefined where nothing has changed. */
  readonly renewed?: () => Omit<HostCredentials, 'name'> | undefined;
  /** Somebody came and was sent away. */
  readonly onRefused?: (error: WireError, from: { readonly address: string }) => void;
}

/**
 * Connects to a host and makes sure that it is `peer`. To try again is the caller's business.
 * @throws WireError WIRE_DIAL_FAILED, WIRE_TIMEOUT, WIRE_HANDSHAKE_FAILED, WIRE_CERTIFICATE_UNUSABLE, WIRE_REFUSED,
 * WIRE_VERSION, WIRE_GARBLED, WIRE_LOST, and WIRE_PEER_… for who is there instead
 */
export async function dialSecurely(options: DialOptions): Promise<SecureLink> {
  const { host, port, peer, clock, signal, dialDeadlineMs = DIAL_DEADLINE_MS } = options;
  signal?.throwIfAborted();
  const secureContext = secureContextOf(options);
  assertPeerNames([peer], options);
  const target = `${peer} at ${host} port ${port}`;
  const raw = connectTcp({ host, port, noDelay: true });
  // It is told to whoever waits for the connection.
  raw.on('error', () => {});
  const stop = () => void raw.destroy(new Error('it is not wanted any more'));
  signal?.addEventListener('abort', stop, { once: true });
  const what = `the connection to ${target}`;
  try {
    await within(once(raw, 'connect'), { clock, deadlineMs: dialDeadlineMs, what }).catch((thrown) => {
      raw.destroy();
      throw thrown;
    });
    setTcpUserTimeout(raw, options.silenceMs ?? SILENCE_MS);
    const socket = connectTls({
      socket: raw,
      secureContext,
      servername: peer,
      minVersion: 'TLSv1.3',
      // `peerOf` checks both, and says what is wrong.
      rejectUnauthorized: false,
      checkServerIdentity: () => undefined,
    });
    return await shakeHands(socket, { options, expected: [peer], target, isSecure: false });
  } catch (thrown) {
    signal?.throwIfAborted();
    throw asFailure(thrown, 'WIRE_DIAL_FAILED', what);
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}

/** Takes connections of other hosts until it is closed. @throws WireError WIRE_LISTEN_FAILED, WIRE_CERTIFICATE_UNUSABLE, WIRE_PEER_NAME */
export async function listenSecurely(options: ListenOptions): Promise<SecureListener> {
  const { host, port, peers } = options;
  assertPeerNames(peers, options);
  // `secureContextOf` finds out what is wrong with them.
  secureContextOf(options);
  const server = createServer({
    cert: options.certificate,
    key: options.key,
    ca: options.ca,
    minVersion: 'TLSv1.3',
    requestCert: true,
    // `peerOf` checks, and says what is wrong.
    rejectUnauthorized: false,
    handshakeTimeout: options.handshakeDeadlineMs ?? HANDSHAKE_DEADLINE_MS,
    noDelay: true,
  });
  server.maxConnections = DOOR_BOUNDS.strangers + DOOR_BOUNDS.linksPerPeer * peers.length;
  const listener = new SecureListener(server, options);
  // Connections that could not be taken, for lack of descriptors: those who come try again.
  server.on('error', () => {});
  try {
    const listening = once(server, 'listening');
    server.listen({ host, port });
    await listening;
  } catch (thrown) {
    throw asFailure(thrown, 'WIRE_LISTEN_FAILED', `listening on ${host} port ${port}`);
  }
  return listener;
}

/** Where other hosts come in. Closing it leaves the links that it gave out as they are. */
export class SecureListener implements Disposable {
  readonly #server: Server;
  readonly #options: ListenOptions;
  /** Connections that are no links yet, by where they come from. */
  readonly #strangers = new Map<string, Socket>();
  /** How many there are of each host. */
  readonly #links = new Map<string, number>();

  constructor(server: Server, options: ListenOptions) {
    this.#server = server;
    this.#options = options;
    // Before Node begins with TLS.
    server.prependListener('connection', (raw: Socket) => this.#meet(raw));
    server.on('tlsClientError', (cause, socket) => {
      this.#refused(asFailure(cause, 'WIRE_HANDSHAKE_FAILED', 'the handshake of somebody who came'), socket);
      socket.destroy();
    });
    server.on('secureConnection', (socket) => void this.#welcome(socket));
  }

  get port(): number {
    const address = this.#server.address() as AddressInfo | null;
    return address?.port ?? 0;
  }

  /**
   * Shows this certificate to whoever comes from now on, e.g. because the old one expires soon. For the same host.
   * @throws WireError WIRE_CERTIFICATE_UNUSABLE
   */
  renew({ certificate, key, ca }: Omit<HostCredentials, 'name'>): void {
    secureContextOf({ name: this.#options.name, certificate, key, ca });
    this.#server.setSecureContext({ cert: certificate, key, ca, minVersion: 'TLSv1.3' });
  }

  close(): void {
    if (!this.#server.listening) return;
    this.#server.close();
    for (const raw of this.#strangers.values()) raw.destroy();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #meet(raw: Socket): void {
    const { remoteAddress: address } = raw;
    const ofAddress = [...this.#strangers.values()].filter(({ remoteAddress }) => remoteAddress === address);
    if (
      this.#strangers.size >= DOOR_BOUNDS.strangers ||
      ofAddress.length >= DOOR_BOUNDS.strangersPerAddress
    ) {
      this.#refused(crowded('too many connections that have not shown who they are'), raw);
      raw.destroy();
      return;
    }
    this.#renewIfNew(raw);
    const origin = originOf(raw);
    this.#strangers.set(origin, raw);
    raw.once('close', () => this.#strangers.delete(origin));
    setTcpUserTimeout(raw, this.#options.silenceMs ?? SILENCE_MS);
  }

  async #welcome(socket: TLSSocket): Promise<void> {
    const options = this.#options;
    const origin = originOf(socket);
    const target = `somebody from ${origin}`;
    const admit = (peer: string) => this.#admit(peer, socket);
    const handshake = { options, expected: options.peers, target, isSecure: true, admit };
    const link = await shakeHands(socket, handshake).catch((thrown) => {
      if (!(thrown instanceof WireError)) throw thrown;
      this.#refused(thrown, socket);
    });
    if (link === undefined) return;
    this.#strangers.delete(origin);
    options.onLink(link);
  }

  /** Before anything is set aside for it. @throws WireError WIRE_CROWDED */
  #admit(peer: string, socket: TLSSocket): void {
    const count = this.#links.get(peer) ?? 0;
    if (count >= DOOR_BOUNDS.linksPerPeer) throw crowded(`${count} links of ${peer}`);
    this.#links.set(peer, count + 1);
    socket.once('close', () => this.#links.set(peer, (this.#links.get(peer) ?? 0) - 1));
  }

  /** What cannot be used is passed over: with the old one somebody may get in yet. */
  #renewIfNew(raw: Socket): void {
    const next = this.#options.renewed?.();
    if (next === undefined) return;
    try {
      this.renew(next);
    } catch (thrown) {
      if (!(thrown instanceof WireError)) throw thrown;
      this.#refused(thrown, raw);
    }
  }

  #refused(error: WireError, { remoteAddress = '' }: Socket): void {
    this.#options.onRefused?.(error, { address: remoteAddress });
  }
}

interface Handshake {
  readonly options: Opening;
  /** Names of hosts that may be at the other end. */
  readonly expected: readonly string[];
  /** For people. */
  readonly target: string;
  /** On the side that listens TLS is there already. */
  readonly isSecure: boolean;
  /** Throws where there is no room for one more of this host. */
  readonly admit?: (peer: string) => void;
}

/** Who is at the other end, and does that host want to talk to this one, in this version? */
async function shakeHands(socket: TLSSocket, handshake: Handshake): Promise<SecureLink> {
  const { options, expected, target, isSecure } = handshake;
  const { clock, name: ownName, handshakeDeadlineMs: deadlineMs = HANDSHAKE_DEADLINE_MS } = options;
  const what = `the handshake with ${target}`;
  const { promise: checked, resolve, reject } = Promise.withResolvers<SecureLink>();
  // Whatever follows has to be listened for in the same turn, or it would be lost.
  const check = () => {
    try {
      const peer = peerOf(socket, { expected, ownName });
      handshake.admit?.(peer);
      resolve(new SecureLink(socket, { ...options, peer }));
    } catch (thrown) {
      sendAway(socket, { error: thrown, clock });
      reject(thrown);
    }
  };
  socket.on('error', reject);
  socket.once('close', () => reject(new Error('the connection was closed')));
  if (isSecure) check();
  else socket.once('secureConnect', check);
  const greeted = async () => {
    const link = await checked;
    await link.greeted;
    return link;
  };
  try {
    return await within(greeted(), { clock, deadlineMs, what });
  } catch (thrown) {
    const failure = asFailure(thrown, 'WIRE_HANDSHAKE_FAILED', what);
    if (failure.code === 'WIRE_TIMEOUT') socket.destroy();
    throw failure;
  }
}

/** Tells somebody why, and ends the connection. What they still send is of no interest. */
function sendAway(socket: TLSSocket, { error, clock }: { error: unknown; clock: Clock }): void {
  const code = error instanceof WireError ? error.code : 'WIRE_HANDSHAKE_FAILED';
  socket.end(encodeMessage(refusalMessage(code)));
  socket.resume();
  socket.once(
    'close',
    clock.after(FAREWELL_MS, () => socket.destroy()),
  );
}

function crowded(what: string): WireError {
  return new WireError('WIRE_CROWDED', `there is no room for one more connection: ${what}`, {
    hint: 'It is tried again. If that goes on, see what that host opens connections for.',
    facts: { what },
  });
}

interface Deadline {
  readonly clock: Clock;
  readonly deadlineMs: number;
  readonly what: string;
}

async function within<Result>(work: Promise<Result>, { clock, deadlineMs, what }: Deadline): Promise<Result> {
  const late = Promise.withResolvers<never>();
  const cancel = clock.after(deadlineMs, () =>
    late.reject(
      new WireError('WIRE_TIMEOUT', `${what} took longer than ${deadlineMs} ms`, {
        hint: 'See whether the other host runs and can be reached.',
        facts: { deadlineMs },
      }),
    ),
  );
  try {
    return await Promise.race([work, late.promise]);
  } finally {
    cancel();
  }
}

function asFailure(thrown: unknown, code: keyof typeof HINTS, what: string): WireError {
  if (thrown instanceof WireError) return thrown;
  return new WireError(code, `${what} failed: ${messageOf(thrown)}`, { hint: HINTS[code], cause: thrown });
}

const HINTS = {
  WIRE_DIAL_FAILED: 'See whether the other host runs, and its address and port.',
  WIRE_HANDSHAKE_FAILED:
    'Both sides have to be hosts of Understudy; see whether something else uses that port.',
  WIRE_LISTEN_FAILED: 'Give an address of this host and a port that is free.',
} as const;

function originOf({ remoteAddress = '', remotePort = 0 }: Socket): string {
  return `${remoteAddress} port ${remotePort}`;
}
