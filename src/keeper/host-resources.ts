import { readFileSync } from 'node:fs';
import { availableParallelism, loadavg } from 'node:os';
import { z } from 'zod';
import type { HostResources } from '../allocation/shadow-choice.ts';
import { KIB } from '../base/units.ts';
import type { SiteConfig } from '../config/site-config.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { memoryRoot } from '../control/run-paths.ts';
import { freeBytesOf } from '../linux/file.ts';
import { maintenanceOf } from '../site/maintenance.ts';
import { promisedBytes } from './admission.ts';

const houseSchema = z.object({
  shadow: z.object({ hosts: z.unknown(), antiAffinity: z.array(z.string()).optional() }),
});

/** What this host says of itself to others that look for a place for the shadow of `vm`. */
export function hostResources({ labels = {} }: SiteConfig, vm: string): HostResources {
  const memory = memoryInfo();
  const alive = RunDirectory.list().filter(({ keeper }) => keeper === 'alive');
  return {
    memoryFreeBytes: memory.MemAvailable ?? 0,
    memoryTotalBytes: memory.MemTotal ?? 0,
    roomFreeBytes: freeBytesOf(memoryRoot()) - promisedBytes(vm),
    cpus: availableParallelism(),
    load: loadavg()[0] ?? 0,
    // The keeper of a shadow has no QEMU on record that acts.
    shadows: alive.filter(({ record }) => isShadow(record)).length,
    vms: alive.map(({ name, record }) => ({
      name,
      antiAffinity: houseSchema.safeParse(record?.spec).data?.shadow.antiAffinity ?? [],
    })),
    labels,
    isInMaintenance: maintenanceOf() !== undefined,
  };
}

function isShadow(record: ReturnType<typeof RunDirectory.list>[number]['record']): boolean {
  if (record === undefined || record.acting !== null) return false;
  return houseSchema.safeParse(record.spec).data?.shadow.hosts !== undefined;
}

/** In bytes, by the names of /proc/meminfo. */
function memoryInfo(): Readonly<Record<string, number>> {
  const lines = readFileSync('/proc/meminfo', 'utf8').matchAll(/^(\w+):\s+(\d+) kB$/gm);
  return Object.fromEntries([...lines].map(([, name = '', kibibytes]) => [name, Number(kibibytes) * KIB]));
}
