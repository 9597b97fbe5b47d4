import { type Clock, systemClock } from '../base/clock.ts';
import type { SiteConfig } from '../config/site-config.ts';
import type { PeerLink, PeerMessage } from '../replication/peer-link.ts';
import { MESSAGE, MESSAGE_BYTES_MAX } from '../replication/peer-messages.ts';
import { type CredentialFiles, RenewedCredentials, readCredentials } from '../site/site-credentials.ts';
import { LastingLink } from '../wire/lasting-link.ts';
import { dialSecurely, listenSecurely } from '../wire/link-opening.ts';
import { withResumeLimits } from '../wire/resume-messages.ts';
import type { LinkEnd, SecureLink } from '../wire/secure-link.ts';
import type { WireError } from '../wire/wire-error.ts';
import { peerLost } from './refusals.ts';
import { type OpenPort, openSamePort } from './same-port.ts';
import { TurnedAwayLog } from './turned-away.ts';

/** Not a part of `peerTimeoutMs`: the other side may have a shorter one. */
const KEEPALIVE_MS = 100;
/** For each of several addresses but the last: a path may be dead. */
const NEXT_PATH_MS = 1000;
/**
 * Whether the other side is there, heartbeats tell (peer-pulse.ts). A connection that is silent for longer than they allow
 * is of no use though, whatever they say.
 */
const SILENCE_MS_MIN = 10_000;
const LIMITS = withResumeLimits(new Map(Object.values(MESSAGE).map((type) => [type, MESSAGE_BYTES_MAX])));

/** Without the ports. */
export function hostsOf(addresses: readonly string[]): string[] {
  return addresses.map((address) => splitAddress(address).host);
}

/** An address of site.yaml. */
export function splitAddress(address: string): { readonly host: string; readonly port: number } {
  const colon = address.lastIndexOf(':');
  return {
    host: address.slice(0, colon).replace(/^\[|\]$/g, ''),
    port: Number(address.slice(colon + 1)),
  };
}

/** Where the process that answers for this host listens, at all of its addresses. */
export function portOf({ listen: [first = ''] }: SiteConfig): number {
  return splitAddress(first).port;
}

/**
 * A link to a host of the site, which has shown that it is that host; by default to the process that answers for it.
 * @throws KeeperError KEEPER_PEER_LOST, KEEPER_SITE_REFUSED; WireError
 */
export async function dialPeer(site: SiteConfig, name: string, wishes: DialWishes): Promise<DialledLink> {
  const tried = await dialAll(site, name, wishes);
  if ('link' in tried) return tried;
  throw tried.failures[0];
}

/**
 * One address after the other, until one leads to the host; else why none of them does, in their order.
 * @throws KeeperError KEEPER_PEER_LOST, KEEPER_SITE_REFUSED
 */
export async function dialAll(
  site: SiteConfig,
  name: string,
  { port, signal, dialDeadlineMs }: DialWishes,
): Promise<DialledLink | { readonly failures: readonly unknown[] }> {
  const addresses = site.hosts[name];
  if (addresses === undefined) throw peerLost(name, 'site.yaml does not name it');
  const failures: unknown[] = [];
  for (const [path, address] of addresses.entries()) {
    const known = splitAddress(address);
    const isLast = path === addresses.length - 1;
    const deadlineMs = dialDeadlineMs ?? (isLast ? undefined : NEXT_PATH_MS);
    try {
      const link = await dialSecurely({
        ...openingOf(site, readCredentials(site)),
        ...{ host: known.host, port: port ?? known.port, peer: name, signal },
        ...(deadlineMs !== undefined && { dialDeadlineMs: deadlineMs }),
      });
      return { link, path };
    } catch (cause) {
      signal.throwIfAborted();
      failures.push(cause);
    }
  }
  return { failures };
}

interface DialWishes {
  readonly port?: number | undefined;
  readonly signal: AbortSignal;
  readonly dialDeadlineMs?: number | undefined;
}

export interface DialledLink {
  readonly link: SecureLink;
  /** Which of the host's addresses it leads to. */
  readonly path: number;
}

/**
 * Listens for the other hosts of the site. Whoever cannot show that they are one gets no further.
 * @throws WireError WIRE_LISTEN_FAILED, WIRE_CERTIFICATE_UNUSABLE; KeeperError KEEPER_SITE_REFUSED
 */
export async function openDoor(
  site: SiteConfig,
  { port, onLink, onTrouble = () => {}, onTurnedAway = () => {} }: DoorOptions,
): Promise<OpenPort> {
  const peers = Object.keys(site.hosts);
  const log = new TurnedAwayLog();
  const onRefused = (error: WireError, { address }: { readonly address: string }) => {
    if (error.code === 'WIRE_CERTIFICATE_UNUSABLE') onTrouble(error.message);
    else if (!hasHungUp(error) && log.isNews({ address, code: error.code }, systemClock.nowMs()))
      onTurnedAway(error, address || 'somebody');
  };
  return await openSamePort(hostsOf(site.listen), {
    port,
    open: (at) => {
      const credentials = new RenewedCredentials(site, onTrouble);
      return listenSecurely({
        ...{ ...openingOf(site, credentials.initial), ...at, peers },
        ...{ onLink: (link) => onLink(link, link.peer), renewed: () => credentials.renewed() },
        onRefused,
      });
    },
  });
}

/** Who came and left without a word was not turned away: they looked whether the port answers, or had no time left. */
function hasHungUp({ cause }: WireError): boolean {
  return Object(cause).code === 'ECONNRESET';
}

interface DoorOptions {
  readonly port: number;
  readonly onLink: (link: SecureLink, peer: string) => void;
  /** Renewed credentials cannot be used: why, for people. */
  readonly onTrouble?: (what: string) => void;
  /** Somebody at `address` was turned away, or turned away; of the same cause not more often than once a minute. */
  readonly onTurnedAway?: (error: WireError, address: string) => void;
}

function openingOf(site: SiteConfig, credentials: CredentialFiles, clock: Clock = systemClock) {
  const { host: name, peerTimeoutMs } = site;
  return {
    ...{
      name,
      clock,
      limits: LIMITS,
      silenceMs: Math.max(SILENCE_MS_MIN, peerTimeoutMs),
      keepaliveMs: KEEPALIVE_MS,
    },
    ...credentials,
  };
}

/** A secure link, over one connection or lasting, as the parts of a shadow speak over it. */
export class SecurePeerLink implements PeerLink {
  readonly closed: Promise<Error | undefined>;
  readonly #link: SecureLink | LastingLink;

  constructor(link: SecureLink | LastingLink) {
    this.#link = link;
    this.closed = link.closed.then(reasonOf);
  }

  async send(type: number, parts: readonly Uint8Array[]): Promise<void> {
    // In one piece, and a copy: the bytes may wait for the other side longer than their owner keeps them.
    await this.#link.send({ type, body: Buffer.concat(parts) });
  }

  get unacknowledgedBytes(): number {
    return this.#link instanceof LastingLink ? this.#link.keptBytes : this.#link.inFlightBytes;
  }

  async *messages(): AsyncGenerator<PeerMessage> {
    let arrived = Promise.withResolvers<PeerMessage | undefined>();
    let dealtWith = Promise.withResolvers<void>();
    let isOver = false;
    // No race with `closed`: what waits for a promise that lives long keeps its messages as long.
    void this.closed.then(() => {
      isOver = true;
      arrived.resolve(undefined);
    });
    this.#link.deliver(({ type, body }) => {
      arrived.resolve({ type, body });
      return dealtWith.promise;
    });
    for (;;) {
      const message = await arrived.promise;
      if (message === undefined) return;
      yield message;
      arrived = Promise.withResolvers();
      if (isOver) arrived.resolve(undefined);
      const { resolve } = dealtWith;
      dealtWith = Promise.withResolvers();
      resolve();
    }
  }

  forgo(): void {
    if (this.#link instanceof LastingLink) this.#link.forgo();
  }

  renew(): void {
    if (this.#link instanceof LastingLink) this.#link.renew();
  }

  close(): void {
    void this.#link.close();
  }
}

function reasonOf(end: LinkEnd): Error | undefined {
  switch (end.kind) {
    case 'closed-here':
      return undefined;
    case 'closed-there':
      return new Error('the other side closed the connection');
    case 'lost':
      return end.error;
  }
}
