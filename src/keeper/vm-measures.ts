import type { Measurement } from '../base/measurement.ts';
import type { Measured, VmMetrics } from '../control/vm-metrics.ts';
import type { GuestLink, GuestLinkStats } from '../net/guest-link.ts';
import type { ActingRight } from './acting-right.ts';
import type { Shadow } from './shadow.ts';
import { type KnownVm, pathsOf } from './vm-description.ts';

/** What is measured of a VM, for those who ask again and again. */
export function measureVm({ spec, state, shadow, epochs, ...vm }: KnownVm): VmMetrics {
  const pipeline = shadow?.pipeline;
  return {
    phase: state.phase,
    upMs: vm.upMs,
    memoryBytes: spec.memoryBytes,
    epochs: {
      committed: vm.committed,
      open: pipeline?.openEpoch ?? null,
      commits: epochs.commitMs.count,
      pauseMs: measured(epochs.pauseMs),
      commitMs: measured(epochs.commitMs),
      dirtyPages: measured(epochs.dirtyPages),
      pauseShare: pipeline?.pauseShare ?? 0,
      pauseShareMax: spec.shadow.pauseShare,
    },
    shadowEnabled: state.wanted,
    shadow: shadow === undefined ? null : measureShadow(shadow),
    clock: vm.guestClock,
    disks: { heldBytes: vm.disks?.heldBytes ?? 0 },
    links: totals(vm.links),
    promotions: state.promotions,
    restarts: state.restarts,
    promoteMs: measured(vm.takeovers.promoteMs),
    outageMs: measured(vm.takeovers.outageMs),
    detectMs: measured(vm.takeovers.detectMs),
    fenceMs: measured(vm.takeovers.fenceMs),
    replyMs: measured(vm.takeovers.replyMs),
    ...measurePaths(pathsOf({ shadow, ...vm })),
    ...(vm.right !== undefined && { lease: leaseOf(vm.right) }),
    ...(vm.snapshots !== undefined && { snapshots: vm.snapshots }),
  };
}

function measurePaths(paths: KnownVm['paths']): Pick<VmMetrics, 'paths'> {
  if (paths === undefined) return {};
  return {
    paths: paths.map(({ address, state, rttMs, jitterMs, received, lost }) => ({
      ...{ address, isHeard: state === 'heard', rttMs: rttMs.p50, jitterMs, received, lost },
    })),
  };
}

function leaseOf(right: ActingRight): NonNullable<VmMetrics['lease']> {
  const { storeAwayMs: awayMs, endsInMs } = right.status();
  return { awayMs, endsInMs };
}

function measureShadow(shadow: Shadow): VmMetrics['shadow'] {
  const { reconnects, filled } = shadow.describe();
  return {
    copiedShare: shadow.copiedShare,
    lagMs: shadow.pipeline?.lagMs ?? null,
    ...(reconnects !== undefined && { reconnects }),
    ...(filled !== undefined && { savedBytes: filled.savedBytes }),
  };
}

function measured(measurement: Measurement): Measured {
  const { bounds, counts, sum } = measurement.histogram();
  return {
    recent: { ...measurement.summary() },
    histogram: { bounds: [...bounds], counts: [...counts], sum },
  };
}

function totals(links: readonly GuestLink[]): VmMetrics['links'] {
  const stats = links.map((link) => link.stats());
  const total = (name: keyof GuestLinkStats) => stats.reduce((sum, link) => sum + link[name], 0);
  return {
    heldItems: total('heldItems'),
    heldBytes: total('heldBytes'),
    loggedItems: total('loggedItems'),
    loggedBytes: total('loggedBytes'),
    releasedItems: total('releasedItems'),
    replayedItems: total('replayedItems'),
    droppedItems: total('droppedItems'),
    refusedItems: total('refusedItems'),
  };
}
