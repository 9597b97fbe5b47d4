import type { SampleSummary } from '../base/sample-window.ts';
import type { Phase, StopReason } from '../shadow/protection.ts';
import type { Sample } from '../telemetry/sample.ts';

/** What `understudy status NAME` shows: one VM as its keeper sees it. Times in milliseconds, memory in bytes. */
export interface VmStatus {
  readonly name: string;
  readonly phase: Phase;
  readonly stopReason: StopReason | null;
  /** Whether a shadow is wanted for it now. */
  readonly shadowWanted: boolean;
  readonly keeperPid: number;
  /** Grows each time that another QEMU begins to act. */
  readonly token: number;
  readonly upMs: number;
  readonly accel: 'kvm' | 'tcg';
  readonly qemuVersion: string;
  readonly vcpus: number;
  readonly memoryBytes: number;
  /** How written pages are found. */
  readonly dirtyLog: string;
  /** The host that it acts on, when that is another one and its shadow is kept here. */
  readonly actsOn?: string;
  /** The right to act among the hosts of the specification; left out for a VM of one host, and on the host of a shadow. */
  readonly lease?: LeaseStatus;
  /** Of one kept here: it is on record that it may take over. */
  readonly mayTakeOver?: boolean;
  /** How the host of its shadow was chosen, for a VM of several hosts. */
  readonly placement?: PlacementStatus;
  /** Ways to the other host, while there is a connection to it. */
  readonly paths?: readonly PathStatus[];
  readonly primary: InstanceStatus | null;
  readonly shadow: (ShadowStatus & { readonly copiedShare: number }) | null;
  readonly epochs: {
    readonly committed: number;
    /** Commits since the keeper started. */
    readonly commits: number;
    readonly pauseMs: SampleSummary;
    /** Share of time that the VM has stood still since its present shadow is in sync; the guest's monotonic clock is slow by this share. */
    readonly pauseShare: number;
    readonly commitMs: SampleSummary;
    readonly dirtyPages: SampleSummary;
  };
  readonly clock: GuestClockStatus;
  readonly disks: readonly DiskStatus[];
  readonly links: readonly LinkStatus[];
  /** Left out on the host of a shadow, and by keepers of older releases. */
  readonly telemetry?: {
    readonly intervalMs: number;
    /** Sources that say nothing. */
    readonly failing: readonly string[];
    readonly last: Sample | null;
  };
  readonly promotions: number;
  readonly restarts: number;
  /** From the start of the promotion (the old primary is dead) until the VM runs again. */
  readonly promoteMs: SampleSummary;
  /** Of takeovers: from the last sign of life until it is taken for lost, and from then until it cannot act for certain. */
  readonly detectMs: SampleSummary;
  readonly fenceMs: SampleSummary;
  /** From when the VM runs again until its first frame leaves. */
  readonly replyMs: SampleSummary;
  /** From the loss of the primary, of one that hangs from its last answer, until the VM runs again. */
  readonly outageMs: SampleSummary;
}

/** One way to the other host of a VM and its shadow. */
export interface PathStatus {
  readonly address: string;
  /** `silent`: nothing was ever heard on it. */
  readonly state: 'heard' | 'lost' | 'silent';
  readonly heardAgoMs: number | null;
  /** For so long it may be silent now, by what its gaps have been. */
  readonly silenceMaxMs: number | null;
  /** Mean deviation of the gaps between heartbeats. */
  readonly jitterMs: number | null;
  readonly rttMs: SampleSummary;
  readonly received: number;
  /** Heartbeats that did not arrive, or too late. */
  readonly lost: number;
}

export interface LeaseStatus {
  readonly store: 'reachable' | 'away';
  /** Since when it does not answer; null while it does. */
  readonly awayMs: number | null;
  /** Of the record in the store of leases. */
  readonly token: number;
  readonly mode: 'in-sync' | 'alone' | 'claiming' | 'ended';
  /** Until the VM stands still unless its right is renewed; null where that does not end by itself. */
  readonly endsInMs: number | null;
  /** For so long output has been waiting that its shadow acknowledged, as that may have taken over; left out by keepers of older releases. */
  readonly outputWaitsMs?: number | null;
}

export interface InstanceStatus {
  /** Counts the QEMU processes of this VM. */
  readonly instance: number;
  readonly pid: number;
}

export interface ShadowStatus {
  /** Counts the QEMU processes of this VM on the shadow's host. */
  readonly instance: number;
  /** Null for a shadow on another host. */
  readonly pid: number | null;
  /** Left out for a shadow on this host. */
  readonly host?: string;
  /** What pages of epochs took on the way to another host, since the connection began. */
  readonly sent?: { readonly dirtyBytes: number; readonly wireBytes: number };
  /** How often the connection to it broke and was taken up again, so that nothing had to be copied. */
  readonly reconnects?: number;
  /** How its memory came there: `delta` where that host had older memory of the VM and got only what differs. */
  readonly filled?: {
    readonly kind: 'full' | 'delta';
    /** Of pages that were sent, and of those that did not have to be. */
    readonly copiedBytes: number;
    readonly savedBytes: number;
  };
  /** Of disks: what its guest has read, or seemed about to, as that host was told. Left out where nobody is told. */
  readonly hintedBytes?: number;
}

export interface PlacementStatus {
  /** Null where none took it. */
  readonly host: string | null;
  /** When that was decided, of the day. */
  readonly atMs: number;
  /** All that could have been, best first. */
  readonly candidates: readonly {
    readonly host: string;
    readonly verdict: 'fits' | 'unasked' | 'unknown' | 'refused' | 'failing' | 'no-room' | 'maintenance';
    /** VMs there that this one keeps away from. */
    readonly conflicts: readonly string[];
    /** Labels that it has in common with the VM's own host. */
    readonly shared: readonly string[];
    readonly freeShare: number | null;
    readonly shadows: number | null;
    /** The same in words. */
    readonly why: string;
  }[];
}

export interface LinkStatus {
  readonly name: string;
  readonly heldItems: number;
  readonly heldBytes: number;
  readonly loggedItems: number;
  readonly loggedBytes: number;
  readonly releasedItems: number;
  readonly replayedItems: number;
  readonly droppedItems: number;
}

export interface DiskStatus {
  readonly path: string;
  readonly format: 'raw' | 'qcow2';
  readonly readOnly: boolean;
  /** Of a disk that commits with the epochs of the VM; left out for one that QEMU opens itself. */
  readonly epochs?: DiskEpochsStatus;
  /** Of a copy, on the host of a shadow: read there because the guest reads it, so that it is in the cache. */
  readonly warmedBytes?: number;
}

export interface DiskEpochsStatus {
  /** `alone`: writes go to the image at once; `joining`: they wait for a shadow that is nearly in sync; `in-sync`: for their epoch. */
  readonly mode: 'alone' | 'joining' | 'in-sync';
  /** Written and not in the image yet. */
  readonly heldBytes: number;
  readonly journalBytes: number;
  /** The last one that its image has got something of. */
  readonly lastEpoch: number;
}

export interface GuestClockStatus {
  /** Guest minus host at the last reading, before it was corrected; null until the agent has answered once. */
  readonly errorMs: number | null;
  /** Since the agent's last answer; null if there was none. */
  readonly answeredAgoMs: number | null;
  readonly corrections: number;
}
