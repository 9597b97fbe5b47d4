import { checked, libc } from './libc.ts';

const TIMESPEC_BYTES = 16;
/** CPUCLOCK_SCHED of include/linux/posix-timers.h: what the scheduler has counted, in nanoseconds. */
const CPUCLOCK_SCHED = 2;

const timespec = new Uint8Array(TIMESPEC_BYTES);
const view = new DataView(timespec.buffer);

/**
 * Seconds on a CPU of a process: of all its threads, also of those that have ended. To the nanosecond and for the price of
 * one call, as of clock_getcpuclockid(3). @throws LinuxError `EINVAL`: there is no such process
 */
export function processCpuSeconds(pid: number): number {
  const clock = (~pid << 3) | CPUCLOCK_SCHED;
  checked('clock_gettime of a process', libc.clockGettime(clock, timespec));
  return Number(view.getBigInt64(0, true)) + Number(view.getBigInt64(8, true)) / 1e9;
}
