import { fstatSync } from 'node:fs';
import { KernelFile } from '../linux/kernel-file.ts';
import type { MetricSource, Reading } from './metric-source.ts';
import { parseTaskStat } from './task-times.ts';

/** What st_blocks counts in, whatever the file system uses. */
const BLOCK_BYTES = 512;

export interface MemorySourceOptions {
  readonly pid: number;
  /** Guest memory; stays the property of whoever opened it. */
  readonly memoryFd: number;
}

/** Memory of one QEMU. Pages of the memory file, not of QEMU's mapping of it: to count these the kernel walks all of them. */
export class MemorySource implements MetricSource {
  readonly name = 'memory';
  readonly #memoryFd: number;
  readonly #stat: KernelFile;

  /** @throws LinuxError `ENOENT`: the process is gone */
  constructor({ pid, memoryFd }: MemorySourceOptions) {
    this.#memoryFd = memoryFd;
    this.#stat = KernelFile.open(`/proc/${pid}/stat`);
  }

  read(): Reading {
    const faults = parseTaskStat(this.#stat.text())?.majorFaults;
    return {
      of: this,
      counters: faults === undefined ? {} : { 'memory.majorFaultsPerSecond': faults },
      gauges: { 'memory.residentBytes': fstatSync(this.#memoryFd).blocks * BLOCK_BYTES },
    };
  }

  [Symbol.dispose](): void {
    this.#stat[Symbol.dispose]();
  }
}
