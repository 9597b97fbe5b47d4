import { processCpuSeconds } from '../linux/cpu-clock.ts';
import type { MetricSource, Reading } from './metric-source.ts';
import { TaskClock, type TaskTimes } from './task-times.ts';

/** vCPUs come and go rarely. */
const ASK_AGAIN_MS = 60_000;

const NEVER_RAN: TaskTimes = { usedSeconds: 0, waitedSeconds: 0 };

export interface CpuSourceOptions {
  readonly pid: number;
  /** Thread ids of its vCPUs, as QMP says. */
  readonly vcpuThreads: () => Promise<readonly number[]>;
  readonly nowMs: () => number;
}

interface Vcpu {
  readonly clock: TaskClock;
  last: TaskTimes;
}

/** Processor time of one QEMU: of its vCPU threads, and of all that it does beside them. */
export class CpuSource implements MetricSource {
  readonly name = 'cpu';
  readonly #options: CpuSourceOptions;
  readonly #vcpus = new Map<number, Vcpu>();
  #asking: Promise<void> | undefined;
  #askedMs = Number.NEGATIVE_INFINITY;
  #problem: unknown;
  #isClosed = false;
  /** What the threads have used while they were known; a vCPU that is taken out leaves its time in the sum. */
  #usedSeconds = 0;
  #waitedSeconds = 0;
  #overheadSeconds = 0;

  constructor(options: CpuSourceOptions) {
    this.#options = options;
  }

  read(): Reading | Promise<Reading> {
    const { nowMs } = this.#options;
    if (this.#problem !== undefined) {
      const problem = this.#problem;
      this.#problem = undefined;
      throw problem;
    }
    if (nowMs() - this.#askedMs >= ASK_AGAIN_MS) this.#ask();
    // Only at first there is nothing to go by; later the threads that are known are read meanwhile.
    if (this.#vcpus.size === 0 && this.#asking !== undefined) return this.#asking.then(() => this.read());
    return this.#readKnown();
  }

  #readKnown(): Reading {
    const { pid } = this.#options;
    let knowsWaits = true;
    for (const [threadId, vcpu] of this.#vcpus) {
      const times = vcpu.clock.read();
      if (times === undefined) {
        this.#forget(threadId);
        this.#askedMs = Number.NEGATIVE_INFINITY;
        continue;
      }
      if (times.waitedSeconds === undefined) knowsWaits = false;
      this.#usedSeconds += Math.max(0, times.usedSeconds - vcpu.last.usedSeconds);
      this.#waitedSeconds += Math.max(0, (times.waitedSeconds ?? 0) - (vcpu.last.waitedSeconds ?? 0));
      vcpu.last = times;
    }
    const ofVcpus = [...this.#vcpus.values()].reduce((sum, { last }) => sum + last.usedSeconds, 0);
    const ofOthers = processCpuSeconds(pid) - ofVcpus + processCpuSeconds(process.pid);
    // A thread that runs right now is counted up to its last tick: what that makes too much here is made up for later.
    this.#overheadSeconds = Math.max(this.#overheadSeconds, ofOthers);
    return {
      of: this,
      counters: {
        'cpu.usedCores': this.#usedSeconds,
        ...(knowsWaits && { 'cpu.waitedCores': this.#waitedSeconds }),
        'cpu.overheadCores': this.#overheadSeconds,
      },
      gauges: {},
    };
  }

  #ask(): void {
    this.#askedMs = this.#options.nowMs();
    this.#asking ??= this.#options
      .vcpuThreads()
      .then((threadIds) => this.#note(threadIds))
      .catch((thrown: unknown) => {
        this.#problem = thrown;
        this.#askedMs = Number.NEGATIVE_INFINITY;
      })
      .finally(() => {
        this.#asking = undefined;
      });
  }

  #note(threadIds: readonly number[]): void {
    if (this.#isClosed) return;
    for (const known of [...this.#vcpus.keys()]) if (!threadIds.includes(known)) this.#forget(known);
    for (const threadId of threadIds) {
      if (this.#vcpus.has(threadId)) continue;
      const clock = TaskClock.open(this.#options.pid, threadId);
      this.#vcpus.set(threadId, { clock, last: clock.read() ?? NEVER_RAN });
    }
  }

  #forget(threadId: number): void {
    this.#vcpus.get(threadId)?.clock[Symbol.dispose]();
    this.#vcpus.delete(threadId);
  }

  [Symbol.dispose](): void {
    this.#isClosed = true;
    for (const threadId of [...this.#vcpus.keys()]) this.#forget(threadId);
  }
}
