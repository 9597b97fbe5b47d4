import { setTimeout as delay } from 'node:timers/promises';

/** Time is passed in, so that tests decide what time it is. */
export interface Clock {
  /** Milliseconds with fractions on a clock that never steps. Only differences mean anything. */
  nowMs(): number;
  /** Milliseconds since 1970, as the host believes. May step. */
  wallMs(): number;
  /** Resolves after `ms`; rejects with the signal's reason when it is aborted first. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
  /** Calls `task` once after `ms` unless the returned function is called before. */
  after(ms: number, task: () => void): () => void;
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  // Not timeOrigin + now(): that would never see the host clock being set.
  wallMs: () => Date.now(),
  sleep: async (ms, signal) => {
    try {
      await delay(ms, undefined, signal === undefined ? {} : { signal });
    } catch {
      // Node rejects with an AbortError that only carries the reason.
      signal?.throwIfAborted();
    }
  },
  after: (ms, task) => {
    const timer = setTimeout(task, ms);
    return () => clearTimeout(timer);
  },
};
