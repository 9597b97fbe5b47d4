import { KernelFile } from '../linux/kernel-file.ts';
import { errnoNameOf, LinuxError } from '../linux/linux-error.ts';
import type { Metric } from './metric.ts';
import type { MetricSource, Reading } from './metric-source.ts';

/**
 * Seconds in which at least one task waited, of a file of pressure stall information (Documentation/accounting/psi.rst):
 * `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`, in microseconds. Undefined if it is none.
 */
export function parsePressure(text: string): number | undefined {
  const total = /^some .*\btotal=(\d+)/m.exec(text)?.[1];
  return total === undefined ? undefined : Number(total) / 1e6;
}

/** Which file says which metric. */
export type PressureFiles = readonly (readonly [path: string, metric: Metric])[];

export const HOST_PRESSURE: PressureFiles = [
  ['/proc/pressure/cpu', 'host.cpuPressureShare'],
  ['/proc/pressure/memory', 'host.memoryPressureShare'],
  ['/proc/pressure/io', 'host.ioPressureShare'],
];

/** Of a cgroup of version 2; in version 1 there is no pressure of a group. */
export function cgroupPressure(directory: string): PressureFiles {
  return [
    [`${directory}/cpu.pressure`, 'pressure.cpuShare'],
    [`${directory}/memory.pressure`, 'pressure.memoryShare'],
    [`${directory}/io.pressure`, 'pressure.ioShare'],
  ];
}

/** How long tasks have waited, for as much of it as this kernel counts. */
export class PressureSource implements MetricSource {
  readonly name: string;
  readonly #files: readonly { readonly file: KernelFile; readonly metric: Metric }[];

  /** A kernel without pressure information has no such files; one that has it switched off refuses to read them. */
  constructor(name: string, files: PressureFiles) {
    this.name = name;
    this.#files = files.flatMap(([path, metric]) => {
      const file = openReadable(path);
      return file === undefined ? [] : [{ file, metric }];
    });
  }

  read(): Reading {
    const counters: Record<string, number> = {};
    for (const { file, metric } of this.#files) {
      const seconds = parsePressure(file.text());
      if (seconds !== undefined) counters[metric] = seconds;
    }
    return { of: this, counters, gauges: {} };
  }

  [Symbol.dispose](): void {
    for (const { file } of this.#files) file[Symbol.dispose]();
  }
}

const ABSENT: readonly (string | undefined)[] = ['ENOENT', 'EOPNOTSUPP', 'EACCES', 'EPERM'];

function openReadable(path: string): KernelFile | undefined {
  try {
    const file = KernelFile.open(path);
    file.text();
    return file;
  } catch (thrown) {
    const errno = thrown instanceof LinuxError ? thrown.errnoName : errnoNameOf(thrown);
    if (ABSENT.includes(errno)) return undefined;
    throw thrown;
  }
}
