import type { Clock } from '../base/clock.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import type { Trace } from '../base/trace.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { GivenSpec, RunDirectory } from '../control/run-directory.ts';
import type { UnsafeLink } from '../net/guest-link.ts';
import type { Accelerator } from '../qemu/launch-arguments.ts';
import type { QemuBinary } from '../qemu/qemu-binary.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import type { FailedDisk } from '../replication/peer-messages.ts';
import type { Resumed } from '../wire/lasting-link.ts';
import type { ActingRight } from './acting-right.ts';
import type { ClaimedByLink } from './guest-links.ts';
import type { SilenceBounds } from './peer-pulse.ts';
import type { ShadowPlaces } from './shadow-places.ts';
import type { ShadowSession } from './shadow-session.ts';
import type { TakeoverTimes } from './takeover-stats.ts';
import type { VmDisks } from './vm-disks.ts';

export interface KeeperOptions {
  readonly spec: VmSpec;
  readonly accel: Accelerator;
  readonly qemu: QemuBinary;
  readonly preloadLibrary: string;
  readonly runDirectory: RunDirectory;
  readonly log: Logger;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  /** Whether a shadow is wanted, whatever the specification says; by default what that says. */
  readonly shadowWanted?: boolean | undefined;
  /** Below these alone may its files lie whenever a QEMU opens them; undefined: anywhere. */
  readonly directories?: readonly string[] | undefined;
  /** How many CPUs' time the QEMU that acts may use; undefined: as much as there is. */
  readonly cpuShareMax?: number | undefined;
  /** Directories for the state of this VM; without them none can be saved. */
  readonly savedIn?: { readonly suspended: string; readonly snapshot: string } | undefined;
  /** Where it begins; by default where it was suspended, or by booting. */
  readonly startFrom?: 'snapshot' | undefined;
  /** Other hosts that a shadow may be had on; by default it is on this one. */
  readonly remote?: RemoteSite | undefined;
  /** The shadow that this keeper has kept for another host, and that is to act now. */
  readonly promised?: PromisedShadow | undefined;
  /** A snapshot file that it goes on from. */
  readonly restoreFrom?: { readonly path: string; readonly keyFile?: string | undefined } | undefined;
  /** Gives the start up; of no effect once the VM runs. */
  readonly signal?: AbortSignal;
  /** Takes protections away so that tests can show that they would notice. Not reachable from a specification. */
  readonly unsafe?: UnsafeKeeper;
}

/** What a keeper has of other hosts. */
export interface RemoteSite {
  readonly right: ActingRight;
  /** The specification as it was given, for the keeper of the shadow. */
  readonly given: GivenSpec;
  /** What tells futures of the VM apart, now. */
  readonly generationId: () => string;
  /** Digests of the files that a QEMU of this VM is started from. */
  readonly files: Readonly<Record<string, string>>;
  /** Which hosts may have the shadow, and which are asked first. */
  readonly places: ShadowPlaces;
  /** Whether memory of a VM that goes on elsewhere may be left here: see relic.ts. */
  readonly keepsRelics: () => Promise<boolean>;
  /** A link to the keeper of a new shadow, on whichever host takes one. @throws KeeperError KEEPER_PEER_LOST, … */
  readonly connect: (options: ConnectOptions) => Promise<ConnectedPeer>;
  /** For how long the other host may not be heard until it is taken for lost. */
  readonly silenceMs: SilenceBounds;
}

export interface ConnectOptions {
  /** Number of the copy that the link is for: nothing else is said over it. */
  readonly copy: number;
  readonly signal: AbortSignal;
  /** Its connection had broken and there is another one; nothing was lost. */
  readonly onResumed: (resumed: Resumed) => void;
}

export interface ConnectedPeer {
  readonly link: PeerLink;
  readonly host: string;
  /** All ways there, and which of them the link takes now. */
  readonly addresses: readonly string[];
  readonly path: () => number;
  /** See presence.ts. */
  readonly presencePort: number;
}

export interface PromisedShadow extends Omit<TakeoverTimes, 'runsAtMs'> {
  readonly session: ShadowSession;
  /** Numbers of instances go on after this one: some may still be ending. */
  readonly instances: number;
  /** Addresses that its guest had claimed there. */
  readonly claimed: ClaimedByLink;
  /** As of its last epoch. They belong to the keeper. */
  readonly disks: VmDisks;
  /** Where it acted until now. */
  readonly from: string;
  readonly reason: string;
  /** Of that host: it was given up for that. */
  readonly disk: FailedDisk | undefined;
  readonly trace: Trace | undefined;
}

export interface UnsafeKeeper {
  readonly link?: UnsafeLink;
  /** The guest's clock is left alone. */
  readonly leaveClock?: boolean;
  /** A QEMU that stood still when its keeper was killed is not taken back: the VM begins anew. */
  readonly forgetOrphan?: boolean;
  /** A QEMU that does not answer hangs, whatever keeps it from answering. */
  readonly blameQemu?: boolean;
}
