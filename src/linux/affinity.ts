import { assert } from '../base/assert.ts';
import { checked, libc } from './libc.ts';

/** Room for 1024 CPUs, as in cpu_set_t. */
const MASK_BYTES = 128;

/** CPUs on which a process's main thread, or the thread `id`, may run. 0 stands for the calling thread. */
export function cpuAffinity(id: number): number[] {
  const mask = new Uint8Array(MASK_BYTES);
  checked('sched_getaffinity', libc.schedGetaffinity(id, MASK_BYTES, mask));
  const cpus: number[] = [];
  for (let cpu = 0; cpu < MASK_BYTES * 8; cpu++) {
    if (((mask[cpu >> 3] ?? 0) & (1 << (cpu & 7))) !== 0) cpus.push(cpu);
  }
  return cpus;
}

/** Binds one thread to `cpus`. @throws LinuxError: `EINVAL` when none of them exists here, `ESRCH`. */
export function setCpuAffinity(id: number, cpus: readonly number[]): void {
  const mask = new Uint8Array(MASK_BYTES);
  for (const cpu of cpus) {
    assert(Number.isInteger(cpu) && cpu >= 0 && cpu < MASK_BYTES * 8, `no CPU has the number ${cpu}`);
    mask[cpu >> 3] = (mask[cpu >> 3] ?? 0) | (1 << (cpu & 7));
  }
  checked('sched_setaffinity', libc.schedSetaffinity(id, MASK_BYTES, mask));
}
