import type { Histogram } from '../base/measurement.ts';
import type { KeeperFigures } from '../control/keeper-scrape.ts';
import type { VmMetrics } from '../control/vm-metrics.ts';
import { PHASES } from '../shadow/protection.ts';
import { histogramSeries, type MetricFamily } from './metric-family.ts';
import { type CountedVm, isWatched } from './vm-stats.ts';

const SECONDS = 1 / 1000;

interface ValueRow {
  readonly name: string;
  readonly type: 'gauge' | 'counter';
  readonly help: string;
  readonly of: (vm: VmMetrics) => number | null | undefined;
}

/** One value for each VM whose keeper answers; none where there is nothing to say. */
const VALUES: readonly ValueRow[] = [
  {
    name: 'understudy_vm_memory_bytes',
    type: 'gauge',
    help: 'Memory of the guest.',
    of: (vm) => vm.memoryBytes,
  },
  {
    name: 'understudy_vm_keeper_uptime_seconds',
    type: 'gauge',
    help: 'Since the keeper started.',
    of: (vm) => vm.upMs * SECONDS,
  },
  {
    name: 'understudy_vm_epochs_committed_total',
    type: 'counter',
    help: 'Epochs that the shadow holds.',
    of: (vm) => vm.epochs.commits,
  },
  {
    name: 'understudy_vm_epoch_committed',
    type: 'gauge',
    help: 'Number of the newest committed epoch.',
    of: (vm) => vm.epochs.committed,
  },
  {
    name: 'understudy_vm_epoch_open',
    type: 'gauge',
    help: 'Number of the epoch that collects changes now.',
    of: (vm) => vm.epochs.open,
  },
  {
    name: 'understudy_vm_shadow_enabled',
    type: 'gauge',
    help: '1 if the VM shall have a shadow, else 0.',
    of: (vm) => (vm.shadowEnabled ? 1 : 0),
  },
  {
    name: 'understudy_vm_shadow_lag_seconds',
    type: 'gauge',
    help: 'Since the newest committed epoch was cut: what the loss of the primary would set the guest back by.',
    of: (vm) => seconds(vm.shadow?.lagMs),
  },
  {
    name: 'understudy_vm_shadow_copied_ratio',
    type: 'gauge',
    help: 'Share of the memory that a new shadow has got so far; 1 from then on.',
    of: (vm) => vm.shadow?.copiedShare,
  },
  {
    name: 'understudy_vm_shadow_reconnects',
    type: 'gauge',
    help: 'How often the connection to the present shadow on another host broke and was taken up again.',
    of: (vm) => vm.shadow?.reconnects,
  },
  {
    name: 'understudy_vm_shadow_saved_bytes',
    type: 'gauge',
    help: 'Memory that did not have to be copied for the present shadow, as its host had it already.',
    of: (vm) => vm.shadow?.savedBytes,
  },
  {
    name: 'understudy_vm_pause_ratio',
    type: 'gauge',
    help: 'Share of time that the guest has stood still since its shadow is in sync.',
    of: (vm) => vm.epochs.pauseShare,
  },
  {
    name: 'understudy_vm_pause_ratio_max',
    type: 'gauge',
    help: 'Bound of that share.',
    of: (vm) => vm.epochs.pauseShareMax,
  },
  {
    name: 'understudy_vm_held_items',
    type: 'gauge',
    help: 'Frames and pieces of output that wait for a commit.',
    of: (vm) => vm.links.heldItems,
  },
  {
    name: 'understudy_vm_held_bytes',
    type: 'gauge',
    help: 'Output that waits for a commit.',
    of: (vm) => vm.links.heldBytes,
  },
  {
    name: 'understudy_vm_disk_held_bytes',
    type: 'gauge',
    help: 'What the guest wrote to disks that commit with epochs and that is not in their images.',
    of: (vm) => vm.disks?.heldBytes,
  },
  {
    name: 'understudy_vm_logged_items',
    type: 'gauge',
    help: 'Frames and pieces of input that no committed epoch holds.',
    of: (vm) => vm.links.loggedItems,
  },
  {
    name: 'understudy_vm_logged_bytes',
    type: 'gauge',
    help: 'Input that no committed epoch holds.',
    of: (vm) => vm.links.loggedBytes,
  },
  {
    name: 'understudy_vm_released_items_total',
    type: 'counter',
    help: 'Output that left after its commit.',
    of: (vm) => vm.links.releasedItems,
  },
  {
    name: 'understudy_vm_replayed_items_total',
    type: 'counter',
    help: 'Input that was delivered again after a takeover.',
    of: (vm) => vm.links.replayedItems,
  },
  {
    name: 'understudy_vm_dropped_items_total',
    type: 'counter',
    help: 'Output of epochs that were never committed: nobody has seen it.',
    of: (vm) => vm.links.droppedItems,
  },
  {
    name: 'understudy_vm_refused_items_total',
    type: 'counter',
    help: 'Output that left and that the uplink did not take.',
    of: (vm) => vm.links.refusedItems,
  },
  {
    name: 'understudy_vm_promotions_total',
    type: 'counter',
    help: 'Takeovers by a shadow, planned ones too.',
    of: (vm) => vm.promotions,
  },
  {
    name: 'understudy_vm_restarts_total',
    type: 'counter',
    help: 'Cold restarts: the memory was lost.',
    of: (vm) => vm.restarts,
  },
  {
    name: 'understudy_vm_lease_store_away_seconds',
    type: 'gauge',
    help: 'For so long the store of leases has not answered the keeper of a VM of several hosts; 0 while it does.',
    of: ({ lease }) => (lease === undefined ? null : (seconds(lease.awayMs) ?? 0)),
  },
  {
    name: 'understudy_vm_lease_ends_in_seconds',
    type: 'gauge',
    help: 'Until a VM without a shadow on another host stands still, unless its right to act is renewed.',
    of: ({ lease }) => seconds(lease?.endsInMs),
  },
  {
    name: 'understudy_vm_guest_clock_error_seconds',
    type: 'gauge',
    help: "The guest's clock minus the host's at the last reading, before it was set right.",
    of: (vm) => seconds(vm.clock.errorMs),
  },
  {
    name: 'understudy_vm_guest_clock_answer_age_seconds',
    type: 'gauge',
    help: 'Since that reading.',
    of: (vm) => seconds(vm.clock.answeredAgoMs),
  },
  {
    name: 'understudy_vm_guest_clock_corrections_total',
    type: 'counter',
    help: "How often the guest's clock was set.",
    of: (vm) => vm.clock.corrections,
  },
  {
    name: 'understudy_vm_snapshots_taken_total',
    type: 'counter',
    help: 'Snapshots that were taken by schedule or at a shutdown, and are whole.',
    of: (vm) => vm.snapshots?.taken,
  },
  {
    name: 'understudy_vm_snapshots_failed_total',
    type: 'counter',
    help: 'Those that could not be written, or were not whole.',
    of: (vm) => vm.snapshots?.failed,
  },
  {
    name: 'understudy_vm_snapshots_skipped_total',
    type: 'counter',
    help: 'Moments of the schedule at which the VM had no shadow to take one from.',
    of: (vm) => vm.snapshots?.skipped,
  },
  {
    name: 'understudy_vm_snapshot_age_seconds',
    type: 'gauge',
    help: 'Since the newest snapshot by schedule.',
    of: (vm) => seconds(vm.snapshots?.ageMs),
  },
];

interface HistogramRow {
  readonly name: string;
  readonly help: string;
  readonly scale: number;
  readonly of: (vm: VmMetrics) => Histogram | undefined;
}

const HISTOGRAMS: readonly HistogramRow[] = [
  {
    name: 'understudy_vm_pause_seconds',
    help: 'How long the guest stood still for an epoch.',
    scale: SECONDS,
    of: ({ epochs }) => epochs.pauseMs.histogram,
  },
  {
    name: 'understudy_vm_commit_seconds',
    help: 'From the beginning of the pause until what the epoch held has left.',
    scale: SECONDS,
    of: ({ epochs }) => epochs.commitMs.histogram,
  },
  {
    name: 'understudy_vm_epoch_dirty_pages',
    help: 'Pages of 4096 bytes that were written in an epoch.',
    scale: 1,
    of: ({ epochs }) => epochs.dirtyPages.histogram,
  },
  {
    name: 'understudy_vm_promote_seconds',
    help: 'From the proof that the old primary is dead until the shadow runs.',
    scale: SECONDS,
    of: ({ promoteMs }) => promoteMs.histogram,
  },
  {
    name: 'understudy_vm_outage_seconds',
    help: 'From the first sign that the primary is gone until the guest runs again.',
    scale: SECONDS,
    of: ({ outageMs }) => outageMs.histogram,
  },
  {
    name: 'understudy_vm_takeover_detect_seconds',
    help: 'From the last sign of life of a primary until it is taken for lost.',
    scale: SECONDS,
    of: ({ detectMs }) => detectMs?.histogram,
  },
  {
    name: 'understudy_vm_takeover_fence_seconds',
    help: 'From then until it is certain that it cannot act any more.',
    scale: SECONDS,
    of: ({ fenceMs }) => fenceMs?.histogram,
  },
  {
    name: 'understudy_vm_takeover_reply_seconds',
    help: 'From when the guest runs again until its first frame leaves.',
    scale: SECONDS,
    of: ({ replyMs }) => replyMs?.histogram,
  },
];

type PathOf = NonNullable<VmMetrics['paths']>[number];

/** One value for each way to the other host of a VM and its shadow. */
const PATHS: readonly (Pick<ValueRow, 'name' | 'type' | 'help'> & { of: (path: PathOf) => number | null })[] =
  [
    {
      name: 'understudy_vm_peer_path_up',
      type: 'gauge',
      help: '1 for a path on which the other host is heard, else 0.',
      of: ({ isHeard }) => (isHeard ? 1 : 0),
    },
    {
      name: 'understudy_vm_peer_path_rtt_seconds',
      type: 'gauge',
      help: 'Median round trip of the last heartbeats on it.',
      of: ({ rttMs }) => seconds(rttMs),
    },
    {
      name: 'understudy_vm_peer_path_jitter_seconds',
      type: 'gauge',
      help: 'Mean deviation of the gaps between them.',
      of: ({ jitterMs }) => seconds(jitterMs),
    },
    {
      name: 'understudy_vm_peer_path_heartbeats_total',
      type: 'counter',
      help: 'Heartbeats that arrived, since the connection began.',
      of: ({ received }) => received,
    },
    {
      name: 'understudy_vm_peer_path_heartbeats_lost_total',
      type: 'counter',
      help: 'Heartbeats that did not, or too late.',
      of: ({ lost }) => lost,
    },
  ];

/** What is said of single VMs. The only labels that grow with them are `vm` and, for those of several hosts, `path`; one that is forgotten is gone from here too. */
export function vmFamilies(vms: readonly CountedVm[], figures: KeeperFigures): MetricFamily[] {
  const answered = vms.flatMap(({ name }) => {
    const metrics = figures.get(name);
    return metrics === undefined ? [] : [{ labels: { vm: name }, metrics }];
  });
  const up: MetricFamily = {
    name: 'understudy_vm_up',
    help: '1 if the keeper of a VM that runs or shall run answered just now, else 0.',
    type: 'gauge',
    series: vms
      .filter(isWatched)
      .map(({ name }) => ({ labels: { vm: name }, value: figures.get(name) === undefined ? 0 : 1 })),
  };
  const phase: MetricFamily = {
    name: 'understudy_vm_phase',
    help: '1 for the phase that the VM is in, 0 for all others.',
    type: 'gauge',
    series: answered.flatMap(({ labels, metrics }) =>
      PHASES.map((each) => ({ labels: { ...labels, phase: each }, value: each === metrics.phase ? 1 : 0 })),
    ),
  };
  const values = VALUES.map(({ of, ...family }): MetricFamily => {
    const series = answered.flatMap(({ labels, metrics }) => {
      const value = of(metrics);
      return value === null || value === undefined ? [] : [{ labels, value }];
    });
    return { ...family, series };
  });
  const histograms = HISTOGRAMS.map(({ name, help, scale, of }): MetricFamily => {
    const series = answered.flatMap(({ labels, metrics }) => {
      const histogram = of(metrics);
      return histogram === undefined ? [] : histogramSeries(histogram, { name, labels, scale });
    });
    return { name, type: 'histogram', help, series };
  });
  const paths = PATHS.map(({ of, ...family }): MetricFamily => {
    const series = answered.flatMap(({ labels, metrics }) =>
      (metrics.paths ?? []).flatMap((path) => {
        const value = of(path);
        return value === null ? [] : [{ labels: { ...labels, path: path.address }, value }];
      }),
    );
    return { ...family, series };
  });
  return [up, phase, ...values, ...paths, ...histograms];
}

function seconds(ms: number | null | undefined): number | null {
  return ms === null || ms === undefined ? null : ms * SECONDS;
}
