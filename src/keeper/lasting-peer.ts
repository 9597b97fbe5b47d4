import type { Clock } from '../base/clock.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { SiteConfig } from '../config/site-config.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { isRefusal, LastingLink, type Resumed } from '../wire/lasting-link.ts';
import type { LinkClaim } from '../wire/resume-messages.ts';
import type { SecureLink } from '../wire/secure-link.ts';
import { dialAll, dialPeer, hostsOf, openDoor, SecurePeerLink } from './peer-door.ts';
import { Presence } from './presence.ts';
import type { OpenPort } from './same-port.ts';

/** A first packet that is lost is sent again after a second; a new connection is quicker. */
const REDIAL_DEADLINE_MS = 250;
/** For the addresses of the other host to show which of them lead there. */
const MEETING_MS = 3000;

export interface LastingPeer {
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  readonly onResumed: (resumed: Resumed) => void;
}

export interface DialledPeer {
  readonly link: PeerLink;
  /** Which of the host's addresses it leads to now. */
  readonly path: () => number;
}

/** A link to the keeper of a shadow, which is made anew when its connection breaks. @throws see {@link dialPeer} */
export async function dialLasting(
  site: SiteConfig,
  name: string,
  {
    port,
    signal,
    claim,
    ...options
  }: LastingPeer & { port: number; signal: AbortSignal; claim: () => LinkClaim },
): Promise<DialledPeer> {
  const first = await dialPeer(site, name, { port, signal });
  let { path } = first;
  const led = new Set([path]);
  const dial = async (given: AbortSignal) => {
    const again = await dialAll(site, name, { port, signal: given, dialDeadlineMs: REDIAL_DEADLINE_MS });
    if (!('link' in again)) throw telling(again.failures, led);
    path = again.path;
    led.add(path);
    return again.link;
  };
  const link = new SecurePeerLink(
    new LastingLink(first.link, {
      ...{ ...options, claim, silenceMs: site.peerTimeoutMs, reach: { role: 'dials', dial } },
    }),
  );
  return { link, path: () => path };
}

/** That an address refuses which never led to it does not mean that it has ended. */
function telling(failures: readonly unknown[], led: ReadonlySet<number>): unknown {
  const told = failures.filter((_, path) => led.has(path));
  return told.find((failure) => !isRefusal(failure)) ?? told[0];
}

/** What the first words of the other side say about whom to go on with. */
export interface Known {
  readonly copy: number;
  readonly rightToken: number;
  readonly presencePort: number;
}

/** The other end of such a link: where the keeper of a VM comes in, and comes again. */
export class ShadowDoor implements Disposable {
  readonly #site: SiteConfig;
  readonly #peer: string;
  readonly #options: LastingPeer;
  readonly #first = Promise.withResolvers<PeerLink>();
  #door: OpenPort | undefined;
  #link: LastingLink | undefined;
  #known: Known | undefined;
  #presence: Presence | undefined;

  /** @throws see {@link openDoor} */
  static async open(
    site: SiteConfig,
    { peer, ...options }: LastingPeer & { peer: string },
  ): Promise<ShadowDoor> {
    const door = new ShadowDoor(site, peer, options);
    door.#door = await openDoor(site, {
      port: 0,
      onLink: (link, name) => (name === peer ? door.#meet(link) : void link.close()),
    });
    return door;
  }

  private constructor(site: SiteConfig, peer: string, options: LastingPeer) {
    this.#site = site;
    this.#peer = peer;
    this.#options = options;
  }

  get port(): number {
    return this.#door?.port ?? 0;
  }

  /** Resolves when the keeper of the VM has come. */
  get link(): Promise<PeerLink> {
    return this.#first.promise;
  }

  /** Before this nobody can take the link up again. They were said just now, by who is there for sure. */
  know(known: Known): void {
    this.#known = known;
    const hosts = hostsOf(this.#site.hosts[this.#peer] ?? []);
    this.#presence = new Presence({ hosts, port: known.presencePort });
    void this.#presence.meet(AbortSignal.timeout(MEETING_MS));
  }

  [Symbol.dispose](): void {
    this.#door?.[Symbol.dispose]();
  }

  #meet(link: SecureLink): void {
    if (this.#link !== undefined) {
      this.#link.offer(link);
      return;
    }
    const lasting = new LastingLink(link, {
      ...{ ...this.#options, silenceMs: this.#site.peerTimeoutMs },
      claim: () => this.#claim(),
      reach: { role: 'waits', isGone: async (signal) => (await this.#presence?.isGone(signal)) ?? false },
    });
    this.#link = lasting;
    // Whoever comes after the end learns from the kernel that there is nothing to go on with.
    void lasting.closed.then(() => this[Symbol.dispose]());
    this.#first.resolve(new SecurePeerLink(lasting));
  }

  #claim(): LinkClaim | undefined {
    const { copy, rightToken } = this.#known ?? {};
    if (copy === undefined || rightToken === undefined) return undefined;
    return { stream: BigInt(copy), token: BigInt(rightToken) };
  }
}
