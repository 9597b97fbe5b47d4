import { availableParallelism, freemem, hostname, totalmem } from 'node:os';
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
