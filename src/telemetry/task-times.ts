import { KernelFile } from '../linux/kernel-file.ts';

/** What a thread has had of processors, since it was made. */
export interface TaskTimes {
  readonly usedSeconds: number;
  /** It was ready to run and did not; undefined where the kernel does not count that. */
  readonly waitedSeconds: number | undefined;
}

/** USER_HZ: what the kernel counts in for /proc/PID/stat on every architecture that QEMU runs on. */
const TICKS_PER_SECOND = 100;

/** `/proc/PID/task/TID/schedstat`: nanoseconds on a CPU, nanoseconds on a run queue, time slices. Undefined if it is none. */
export function parseSchedstat(text: string): TaskTimes | undefined {
  const [used = Number.NaN, waited = Number.NaN] = text.trim().split(/\s+/).map(Number);
  if (!isCount(used) || !isCount(waited)) return undefined;
  return { usedSeconds: used / 1e9, waitedSeconds: waited / 1e9 };
}

export interface TaskStat {
  readonly majorFaults: number;
  /** In user and in kernel mode, in hundredths of a second. */
  readonly usedSeconds: number;
}

/**
 * `/proc/PID/stat`, proc_pid_stat(5). The name in it is any bytes that the process likes: spaces, line ends, and `) R 1`. What is
 * behind the last parenthesis is the kernel's. Undefined if it is none.
 */
export function parseTaskStat(text: string): TaskStat | undefined {
  const end = text.lastIndexOf(') ');
  if (end === -1) return undefined;
  // Fields are counted from 1, and the first one behind the name is the third.
  const fields = text.slice(end + 2).split(' ');
  const field = (number: number) => Number(fields[number - 3] ?? Number.NaN);
  const [majorFaults, user, system] = [field(12), field(14), field(15)];
  if (!isCount(majorFaults) || !isCount(user) || !isCount(system)) return undefined;
  return { majorFaults, usedSeconds: (user + system) / TICKS_PER_SECOND };
}

function isCount(value: number): boolean {
  return Number.isFinite(value) && value >= 0;
}

/** Without scheduler statistics; exported for its test. */
export function timesOfStat(text: string): TaskTimes | undefined {
  const stat = parseTaskStat(text);
  return stat && { usedSeconds: stat.usedSeconds, waitedSeconds: undefined };
}

let countsWaits: boolean | undefined;

/** A kernel built without scheduler statistics has no such file, or says that we have never run. */
function kernelCountsWaits(): boolean {
  if (countsWaits !== undefined) return countsWaits;
  try {
    using own = KernelFile.open('/proc/self/schedstat');
    countsWaits = (parseSchedstat(own.text())?.usedSeconds ?? 0) > 0;
  } catch {
    countsWaits = false;
  }
  return countsWaits;
}

/** The times of one thread, read again and again. */
export class TaskClock implements Disposable {
  readonly #file: KernelFile;
  readonly #parse: (text: string) => TaskTimes | undefined;

  private constructor(file: KernelFile, parse: (text: string) => TaskTimes | undefined) {
    this.#file = file;
    this.#parse = parse;
  }

  /** @throws LinuxError `ENOENT`: there is no such thread */
  static open(pid: number, threadId: number): TaskClock {
    const folder = `/proc/${pid}/task/${threadId}`;
    return kernelCountsWaits()
      ? new TaskClock(KernelFile.open(`${folder}/schedstat`), parseSchedstat)
      : new TaskClock(KernelFile.open(`${folder}/stat`), timesOfStat);
  }

  /** Undefined when the thread has ended. */
  read(): TaskTimes | undefined {
    try {
      return this.#parse(this.#file.text());
    } catch {
      return undefined;
    }
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}
