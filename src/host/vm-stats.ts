import type { Vm } from '../api/resources.ts';
import type { VmStats } from '../api/stats.ts';
import type { KeeperFigures } from '../control/keeper-scrape.ts';
import { figuresOf } from '../control/vm-figures.ts';

/** A declared VM as far as counting goes. */
export interface CountedVm {
  readonly name: string;
  readonly state: Vm['observed']['state'];
  readonly desired: Vm['desired'];
}

/** Whether there is something to watch: a VM that shall not run and does not is left out. */
export function isWatched({ state, desired }: CountedVm): boolean {
  return desired === 'running' || state !== 'absent';
}

export function vmStats(vms: readonly CountedVm[], figures: KeeperFigures): VmStats[] {
  return vms.filter(isWatched).map((vm) => {
    const metrics = figures.get(vm.name);
    return { ...vm, figures: metrics === undefined ? null : figuresOf(metrics) };
  });
}
