import { disksOf, type SpecDisk } from '../config/spec-disks.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { VmMetrics } from '../control/vm-metrics.ts';
import type {
  DiskStatus,
  GuestClockStatus,
  LeaseStatus,
  PathStatus,
  ShadowStatus,
  VmStatus,
} from '../control/vm-status.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { Accelerator } from '../qemu/launch-arguments.ts';
import type { QemuBinary } from '../qemu/qemu-binary.ts';
import type { EpochStats } from '../replication/epoch-stats.ts';
import type { ProtectionState } from '../shadow/protection.ts';
import type { ActingRight } from './acting-right.ts';
import type { Instance } from './instance.ts';
import type { RemoteSite } from './keeper-options.ts';
import type { Shadow } from './shadow.ts';
import type { TakeoverStats } from './takeover-stats.ts';
import type { VmDisks } from './vm-disks.ts';

/** What a keeper knows of its VM. */
export interface KnownVm {
  readonly spec: VmSpec;
  readonly accel: Accelerator;
  readonly qemu: QemuBinary;
  readonly state: ProtectionState;
  readonly upMs: number;
  readonly token: number;
  readonly primary: Instance | undefined;
  readonly shadow: Shadow | undefined;
  readonly committed: EpochId;
  /** Undefined where it acts on another host. */
  readonly disks?: VmDisks | undefined;
  readonly epochs: EpochStats;
  readonly guestClock: GuestClockStatus;
  readonly links: readonly GuestLink[];
  readonly takeovers: TakeoverStats;
  /** Undefined for a VM of one host. */
  readonly right?: ActingRight | undefined;
  readonly remote?: Pick<RemoteSite, 'places'> | undefined;
  /** Undefined where it acts on another host. */
  readonly telemetry?: VmStatus['telemetry'];
  /** Of those that it takes by itself. */
  readonly snapshots?: VmMetrics['snapshots'];
  /** Ways to another host; by default those of the shadow. */
  readonly paths?: readonly PathStatus[] | undefined;
}

/** The status that is shown to people and scripts. */
export function describeVm(vm: KnownVm): VmStatus {
  const { spec, state, primary, shadow, epochs } = vm;
  return {
    name: spec.name,
    phase: state.phase,
    stopReason: state.stopReason ?? null,
    shadowWanted: state.wanted,
    keeperPid: process.pid,
    token: vm.token,
    upMs: vm.upMs,
    accel: vm.accel,
    qemuVersion: vm.qemu.version,
    vcpus: spec.vcpus,
    memoryBytes: spec.memoryBytes,
    ...(vm.remote?.places.status !== undefined && { placement: vm.remote.places.status }),
    dirtyLog: primary?.dirtyLog.method ?? spec.shadow.dirtyLog,
    ...(vm.right !== undefined && { lease: describeRight(vm.right) }),
    ...describePaths(vm),
    primary: primary === undefined ? null : { instance: primary.number, pid: primary.pid },
    shadow: shadow === undefined ? null : { ...describeShadow(shadow), copiedShare: shadow.copiedShare },
    epochs: {
      committed: vm.committed,
      commits: epochs.commitMs.count,
      pauseMs: epochs.pauseMs.summary(),
      pauseShare: shadow?.pipeline?.pauseShare ?? 0,
      commitMs: epochs.commitMs.summary(),
      dirtyPages: epochs.dirtyPages.summary(),
    },
    clock: vm.guestClock,
    disks: disksOf(spec).map((disk) => describeDisk(disk, vm.disks)),
    links: vm.links.map((link) => ({ name: link.name, ...link.stats() })),
    ...(vm.telemetry !== undefined && { telemetry: vm.telemetry }),
    promotions: state.promotions,
    restarts: state.restarts,
    promoteMs: vm.takeovers.promoteMs.summary(),
    outageMs: vm.takeovers.outageMs.summary(),
    detectMs: vm.takeovers.detectMs.summary(),
    fenceMs: vm.takeovers.fenceMs.summary(),
    replyMs: vm.takeovers.replyMs.summary(),
  };
}

/** Ways to the other host: those that are known, else those that its shadow knows. */
export function pathsOf({
  shadow,
  paths = shadow?.describe().paths,
}: Pick<KnownVm, 'shadow' | 'paths'>): KnownVm['paths'] {
  return paths;
}

function describePaths(vm: KnownVm): Pick<VmStatus, 'paths'> {
  const paths = pathsOf(vm);
  return paths === undefined ? {} : { paths };
}

function describeRight(right: ActingRight): LeaseStatus {
  const { storeAwayMs: awayMs, ...known } = right.status();
  return { store: awayMs === null ? 'reachable' : 'away', awayMs, ...known };
}

function describeDisk(
  { id, disk: { path, format, readOnly } }: SpecDisk,
  disks: VmDisks | undefined,
): DiskStatus {
  const epochs = disks?.status(id);
  return { path, format, readOnly, ...(epochs !== undefined && { epochs }) };
}

function describeShadow(shadow: Shadow): ShadowStatus {
  const { instance, pid, host, sent, reconnects, filled, hintedBytes } = shadow.describe();
  return {
    instance,
    pid,
    ...(host !== undefined && { host }),
    ...(sent !== undefined && { sent }),
    ...(reconnects !== undefined && { reconnects }),
    ...(filled !== undefined && { filled }),
    ...(hintedBytes !== undefined && { hintedBytes }),
  };
}
