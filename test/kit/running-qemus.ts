import { readdirSync, readFileSync } from 'node:fs';

const LOOK_INTERVAL_MS = 20;
/**
 * A standby's vCPU threads need some time of a CPU to be set up, while the primary runs: less than this. In ticks of
 * 10 ms.
 */
const SETUP_TICKS_MAX = 10;

/** One QEMU process that is not stopped, as the kernel shows it. */
interface RunningQemu {
  readonly pid: number;
  /** The file that is its guest's memory. */
  readonly memory: string;
  /** What its threads that execute guest code have used of a CPU. */
  readonly guestTicks: number;
}

/** All QEMUs with guest memory below `directory` that are not stopped. */
export function runningQemus(directory: string): RunningQemu[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .flatMap((entry) => {
      const command = readIfPossible(`/proc/${entry}/cmdline`);
      const memory = /mem-path=([^,\0]+)/.exec(command)?.[1];
      if (memory === undefined || !memory.startsWith(`${directory}/`)) return [];
      if (!'RSD'.includes(statOf(`/proc/${entry}`).state)) return [];
      return [{ pid: Number(entry), memory, guestTicks: guestTicksOf(Number(entry)) }];
    });
}

/**
 * Looks again and again whether a VM is doubled: two QEMUs that are not stopped on one memory, or two that execute
 * guest code at the same time.
 */
export class DoubleWatch implements Disposable {
  readonly #directory: string;
  readonly #timer: NodeJS.Timeout;
  readonly doubles: string[] = [];
  #before = new Map<number, number>();
  /** By pair of processes: how much both have executed between the same two looks, with both still there. */
  readonly #together = new Map<string, number>();
  #executedTicks = 0;

  constructor(directory: string) {
    this.#directory = directory;
    this.#timer = setInterval(() => this.look(), LOOK_INTERVAL_MS);
  }

  /** That it has seen a guest run: else it would mean nothing that it saw no two of them. */
  get hasSeen(): boolean {
    return this.#executedTicks > SETUP_TICKS_MAX;
  }

  look(): void {
    const found = runningQemus(this.#directory);
    const memories = found.map(({ memory }) => memory);
    const shared = memories.filter((memory, index) => memories.indexOf(memory) !== index);
    this.doubles.push(...shared.map((memory) => `two processes on ${memory}`));
    const executed = found
      .map(({ pid, guestTicks }) => ({ pid, ticks: guestTicks - (this.#before.get(pid) ?? guestTicks) }))
      .filter(({ ticks }) => ticks > 0);
    for (const { ticks } of executed) this.#executedTicks += ticks;
    if (executed.length > 1) this.#noteTogether(executed);
    this.#before = new Map(found.map(({ pid, guestTicks }) => [pid, guestTicks]));
  }

  #noteTogether(executed: readonly { pid: number; ticks: number }[]): void {
    const pair = executed.map(({ pid }) => pid).join(' and ');
    const ticks = (this.#together.get(pair) ?? 0) + Math.min(...executed.map((each) => each.ticks));
    this.#together.set(pair, ticks);
    if (ticks > SETUP_TICKS_MAX) this.doubles.push(`guest code in ${pair}`);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/** `-name debug-threads=on`: the threads of vCPUs are called "CPU 0/TCG", "CPU 1/KVM". */
function guestTicksOf(pid: number): number {
  let threads: string[];
  try {
    threads = readdirSync(`/proc/${pid}/task`);
  } catch {
    return 0;
  }
  return threads
    .map((thread) => `/proc/${pid}/task/${thread}`)
    .filter((path) => readIfPossible(`${path}/comm`).startsWith('CPU '))
    .reduce((sum, path) => sum + statOf(path).ticks, 0);
}

/** Fields 3, 14 and 15 of /proc/PID/stat; the state of a process that is gone is `-`. */
function statOf(path: string): { state: string; ticks: number } {
  const stat = readIfPossible(`${path}/stat`);
  const [state = '-', ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { state: state === '' ? '-' : state, ticks: Number(fields[10] ?? 0) + Number(fields[11] ?? 0) };
}

/** Processes end while one looks. */
function readIfPossible(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}
