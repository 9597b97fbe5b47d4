import { readFileSync } from 'node:fs';

/** Of clock_t, in what Linux tells other programs: `getconf CLK_TCK` is 100 wherever Node runs. */
const TICKS_PER_SECOND = 100;

/** What a process has used of processors, with all its threads: utime and stime of proc_pid_stat(5). */
export function cpuSecondsOf(pid: number): number {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}
