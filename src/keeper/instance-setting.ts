import { CgroupTree } from '../linux/cgroup.ts';
import type { InstanceSetting } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { ServedDisks } from './served-disks.ts';

/** What all QEMUs of this keeper have in common. Says so where they have to run without a limit. */
export function settingOf(options: KeeperOptions, disks?: ServedDisks): InstanceSetting {
  const { runDirectory, log } = options;
  const cgroups = CgroupTree.detect();
  if (cgroups.kind === 'unusable') log.warn('QEMUs run without CPU limit', { reason: cgroups.reason });
  return {
    ...options,
    disks,
    blamesQemu: options.unsafe?.blameQemu === true,
    runDirectory: runDirectory.path,
    memoryDirectory: runDirectory.memoryPath,
    // Who goes back in time begins another future.
    generationId:
      options.restoreFrom === undefined ? runDirectory.generationId : runDirectory.renewGeneration(),
    cgroups: cgroups.kind === 'usable' ? cgroups.tree : undefined,
  };
}
