import { availableParallelism, freemem, hostname, totalmem } from 'node:os';
import type { Resource } from '../allocation/resource.ts';
import type { Host as HostFacts } from '../api/resources.ts';
import { cacheDirectory } from '../base/cache-directory.ts';
import { acceleratorCacheFile } from '../control/run-paths.ts';
import { knownAccelerator } from '../qemu/accelerator-probe.ts';

/** The machine that this host runs on, as its API shows it. */
export function machineFacts(): Pick<HostFacts, 'name' | 'accel' | 'cpus' | 'memory'> {
  return {
    name: hostname(),
    accel: knownAccelerator(acceleratorCacheFile(cacheDirectory())) ?? null,
    cpus: availableParallelism(),
    memory: { totalBytes: totalmem(), freeBytes: freemem() },
  };
}

/** What this machine has of each resource. Disks and network cards of a host are shared with others: nobody knows how much of them. */
export function hostCapacity(): Record<Resource, number> {
  return {
    cpuMillicores: 1000 * availableParallelism(),
    memoryBytes: totalmem(),
    diskBytesPerSecond: Number.MAX_SAFE_INTEGER,
    netBytesPerSecond: Number.MAX_SAFE_INTEGER,
  };
}
