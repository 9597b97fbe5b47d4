import { readdirSync, readFileSync } from 'node:fs';
import type { Clock } from '../base/clock.ts';

/** What the kernel counts of a thread, see `schedstat` in proc(5) and Documentation/scheduler/sched-stats.rst. */
interface ThreadTimes {
  readonly ranNs: number;
  /** Ready to run, and waiting for a processor. Counted when it got one. */
  readonly waitedNs: number;
  readonly turns: number;
  readonly isReady: boolean;
}

/**
 * How far the threads of a process were kept from running although they wanted to: by other processes, or by a limit of
 * their cgroup. A process that is stopped or waits for something else does not want to.
 */
export class ProcessorWait {
  readonly #pid: number;
  readonly #clock: Clock;
  #lookedAtMs: number;
  #threads: ReadonlyMap<string, ThreadTimes>;

  constructor(pid: number, clock: Clock) {
    this.#pid = pid;
    this.#clock = clock;
    this.#lookedAtMs = clock.nowMs();
    this.#threads = timesOf(pid);
  }

  /**
   * Share of the time since the look before, 0 … 1, of the thread that waited longest: a program waits for its slowest
   * part. 0 where the kernel does not tell.
   */
  look(): number {
    const before = this.#threads;
    const nowMs = this.#clock.nowMs();
    const elapsedNs = (nowMs - this.#lookedAtMs) * 1e6;
    this.#lookedAtMs = nowMs;
    this.#threads = timesOf(this.#pid);
    if (elapsedNs <= 0) return 0;
    let waitedNs = 0;
    for (const [thread, now] of this.#threads) {
      const then = before.get(thread);
      if (then !== undefined) waitedNs = Math.max(waitedNs, waitedBetween(then, now, elapsedNs));
    }
    return Math.min(1, waitedNs / elapsedNs);
  }
}

function waitedBetween(then: ThreadTimes, now: ThreadTimes, elapsedNs: number): number {
  // One that has had no turn at all has nothing counted yet.
  const hadNoTurn = now.turns === then.turns && now.ranNs === then.ranNs;
  return hadNoTurn && now.isReady && then.isReady ? elapsedNs : now.waitedNs - then.waitedNs;
}

function timesOf(pid: number): Map<string, ThreadTimes> {
  const threads = new Map<string, ThreadTimes>();
  try {
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const folder = `/proc/${pid}/task/${thread}`;
      const [ranNs, waitedNs, turns] = readFileSync(`${folder}/schedstat`, 'latin1').split(' ').map(Number);
      const stat = readFileSync(`${folder}/stat`, 'latin1');
      // Behind the name, which may hold anything.
      const isReady = stat.slice(stat.lastIndexOf(')')).startsWith(') R');
      if (ranNs !== undefined && waitedNs !== undefined && turns !== undefined)
        threads.set(thread, { ranNs, waitedNs, turns, isReady });
    }
  } catch {
    // It has ended, or this kernel does not count: nothing is known of it.
  }
  return threads;
}
