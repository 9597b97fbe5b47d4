import type { Figures } from '../api/stats.ts';
import type { VmMetrics } from './vm-metrics.ts';

/** What a person watches, out of all that a keeper measures. */
export function figuresOf({ epochs, shadow, links, clock, ...vm }: VmMetrics): Figures {
  return {
    upMs: vm.upMs,
    memoryBytes: vm.memoryBytes,
    commits: epochs.commits,
    pauseMs: recent(epochs.pauseMs.recent),
    pauseShare: epochs.pauseShare,
    dirtyPages: recent(epochs.dirtyPages.recent),
    heldItems: links.heldItems,
    heldBytes: links.heldBytes,
    lagMs: shadow?.lagMs ?? null,
    promotions: vm.promotions,
    restarts: vm.restarts,
    clockErrorMs: clock.errorMs,
  };
}

function recent({ p50, p99 }: Figures['pauseMs']): Figures['pauseMs'] {
  return { p50, p99 };
}
