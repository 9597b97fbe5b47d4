import { KernelFile } from '../linux/kernel-file.ts';
import type { MetricSource, Reading } from './metric-source.ts';

/**
 * Seconds in which the quota of a cgroup held it back, summed over processors, of its `cpu.stat`: `throttled_time` in
 * nanoseconds in version 1 (Documentation/scheduler/sched-bwc.rst), `throttled_usec` in version 2 (admin-guide/cgroup-v2.rst).
 * Undefined where it says neither.
 */
export function parseThrottled(text: string): number | undefined {
  const [, key, value] = /^(throttled_time|throttled_usec) (\d+)$/m.exec(text) ?? [];
  if (value === undefined) return undefined;
  return Number(value) / (key === 'throttled_time' ? 1e9 : 1e6);
}

/** Whether the quota of a VM's cgroup holds it back. Of two vCPUs that are held back at a time, one counts. */
export class ThrottlingSource implements MetricSource {
  readonly name = 'throttling';
  readonly #file: KernelFile;

  /** @throws LinuxError `ENOENT`: the group is gone */
  constructor(cgroupDirectory: string) {
    this.#file = KernelFile.open(`${cgroupDirectory}/cpu.stat`);
  }

  read(): Reading {
    const seconds = parseThrottled(this.#file.text());
    return { of: this, counters: seconds === undefined ? {} : { 'cpu.throttledShare': seconds }, gauges: {} };
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}
