import type { Clock } from '../base/clock.ts';
import { TokenBucket } from '../base/token-bucket.ts';
import type { UplinkSpec, VmSpec } from '../config/vm-spec-schema.ts';
import { AnnouncedUplink } from '../net/announced-uplink.ts';
import type { FarEnd } from '../net/far-end.ts';
import { frameFraming } from '../net/frame-codec.ts';
import { byteFraming } from '../net/framing.ts';
import { GuestLink, type UnsafeLink } from '../net/guest-link.ts';
import type { NetError } from '../net/net-error.ts';
import { NoUplink } from '../net/no-uplink.ts';
import type { Releasable } from '../net/output-gate.ts';
import { PasstUplink } from '../net/passt-uplink.ts';
import { StreamEnd } from '../net/stream-end.ts';
import { TapUplink } from '../net/tap-uplink.ts';

export interface GuestLinksOptions {
  readonly spec: VmSpec;
  readonly clock: Clock;
  /** A person or a peer may be waiting for what a link holds. */
  readonly onHeld: () => void;
  readonly onUplinkLost: (link: string, error: NetError) => void;
  /** What the acting QEMU sent on a link makes no sense: it cannot be trusted any more. */
  readonly onGarbled: (link: string, error: NetError) => void;
  /** Whether output may leave at this moment; by default it may. */
  readonly mayRelease?: ((what: Releasable) => boolean) | undefined;
  /** Addresses that the guest of each nic had claimed before, on another host. */
  readonly claimed?: ClaimedByLink | undefined;
  /** A nic's guest has claimed another address. */
  readonly onClaim?: () => void;
  readonly unsafe: UnsafeLink | undefined;
}

/** By the name of the link; see ClaimedAddresses. */
export type ClaimedByLink = Readonly<Record<string, readonly string[]>>;

/** All paths between one VM and the world. They live as long as the VM, whichever QEMU acts. */
export class GuestLinks implements AsyncDisposable {
  readonly all: readonly GuestLink[];
  /** Far ends of the byte channels; undefined where the VM has none. */
  readonly console: StreamEnd | undefined;
  readonly agent: StreamEnd | undefined;
  readonly #uplinks: ReadonlyMap<string, AnnouncedUplink>;
  readonly #owned: AsyncDisposableStack;

  private constructor(all: readonly GuestLink[], { uplinks, ...ends }: Ends, owned: AsyncDisposableStack) {
    this.#uplinks = uplinks;
    this.all = all;
    this.console = ends.console;
    this.agent = ends.agent;
    this.#owned = owned;
  }

  /** The network learns that the guest is here now. */
  announce(): void {
    for (const uplink of this.#uplinks.values()) uplink.announce();
  }

  get claimed(): ClaimedByLink {
    return Object.fromEntries([...this.#uplinks].map(([name, { addresses }]) => [name, addresses]));
  }

  /** Whether the guest, or QEMU for it, has not read yet what was sent to it on this link. */
  hasUnreadInput(name: string): boolean {
    return this.all.find((link) => link.name === name)?.hasUnreadInput ?? false;
  }

  /** @throws NetError when an uplink cannot be opened; nothing is left open then. */
  static async open(options: GuestLinksOptions): Promise<GuestLinks> {
    const { spec, clock, onHeld, mayRelease } = options;
    await using opening = new AsyncDisposableStack();
    const all: GuestLink[] = [];
    const uplinks = new Map<string, AnnouncedUplink>();
    const add = (
      name: string,
      link: Pick<ConstructorParameters<typeof GuestLink>[0], 'framing' | 'farEnd' | 'onHeld' | 'pace'>,
    ) => {
      const unsafe = options.unsafe === undefined ? {} : { unsafe: options.unsafe };
      // Without an error it is QEMU's end, which its process tells about.
      const onDisconnected = (error: NetError | undefined) =>
        error !== undefined && options.onGarbled(name, error);
      all.push(opening.use(new GuestLink({ ...link, name, clock, mayRelease, onDisconnected, ...unsafe })));
    };
    const pace = new TokenBucket(clock);
    for (const [index, { uplink, mac }] of spec.nics.entries()) {
      const name = `nic${index}`;
      const farEnd = new AnnouncedUplink({
        uplink: opening.use(
          await openUplink(uplink, {
            clock,
            nicMac: mac,
            onLost: (error) => options.onUplinkLost(name, error),
          }),
        ),
        ...{ mac, clock, known: options.claimed?.[name] ?? [], onClaim: () => options.onClaim?.() },
        mayLeave: () => mayRelease?.('unknown') ?? true,
      });
      uplinks.set(name, opening.use(farEnd));
      add(name, { framing: frameFraming, farEnd, onHeld, pace });
    }
    const console = spec.console ? opening.use(new StreamEnd()) : undefined;
    if (console !== undefined) add('console', { framing: byteFraming, farEnd: console, onHeld });
    // Nobody waits for what the agent answers, so that its output is no reason for a cut.
    const agent = spec.agent ? opening.use(new StreamEnd({ scrollbackBytes: 0 })) : undefined;
    if (agent !== undefined) add('agent', { framing: byteFraming, farEnd: agent, onHeld: () => {} });
    return new GuestLinks(all, { uplinks, console, agent }, opening.move());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}

interface Ends {
  readonly uplinks: ReadonlyMap<string, AnnouncedUplink>;
  readonly console: StreamEnd | undefined;
  readonly agent: StreamEnd | undefined;
}

function openUplink(
  uplink: UplinkSpec,
  { clock, nicMac, onLost }: { clock: Clock; nicMac: string; onLost: (error: NetError) => void },
): Promise<FarEnd> {
  switch (uplink.kind) {
    case 'tap':
      return TapUplink.open({ ...uplink, nicMac, onLost });
    case 'passt':
      return PasstUplink.open({ ...uplink, clock, onLost });
    case 'none':
      return Promise.resolve(new NoUplink());
  }
}
