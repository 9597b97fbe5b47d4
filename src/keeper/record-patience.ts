import type { Clock } from '../base/clock.ts';
import { KeeperError } from '../control/keeper-error.ts';

/** For so long the end of a VM waits for the store of leases to take a change of what is on record, or to say what is. */
const RECORD_DEADLINE_MS = 10_000;
/** Of an end by force, which its caller waits for no longer than a few seconds. */
const FORCED_DEADLINE_MS = 1000;
/** One that has not answered by then is asked once more before all is over, and not waited for as long again. */
const AGAIN_DEADLINE_MS = 500;

interface Wait {
  readonly signal: AbortSignal;
  readonly abort: () => void;
  cancel: () => void;
}

/**
 * As long as a VM runs, whoever has to know who acts waits for that. When the VM is being ended they wait for a while, and
 * then it ends without: what waited by then gives up.
 */
export class RecordPatience {
  readonly #clock: Pick<Clock, 'after'>;
  readonly #waits = new Set<Wait>();
  #deadlineMs: number | undefined;

  constructor(clock: Pick<Clock, 'after'>) {
    this.#clock = clock;
  }

  /** The VM is being ended. Whoever wants that sooner than the one before gets it. */
  begin({ isForced = false } = {}): void {
    const deadlineMs = isForced ? FORCED_DEADLINE_MS : RECORD_DEADLINE_MS;
    if (this.#deadlineMs !== undefined && this.#deadlineMs <= deadlineMs) return;
    this.#deadlineMs = deadlineMs;
    for (const wait of this.#waits) this.#limit(wait, deadlineMs);
  }

  /** Undefined where it was given up. @throws what the question does */
  async wait<Answer>(ask: (signal: AbortSignal) => Promise<Answer>): Promise<Answer | undefined> {
    const over = new AbortController();
    const wait: Wait = { signal: over.signal, abort: () => over.abort(noAnswer()), cancel: () => {} };
    this.#waits.add(wait);
    if (this.#deadlineMs !== undefined) this.#limit(wait, this.#deadlineMs);
    try {
      return await ask(wait.signal);
    } catch (cause) {
      if (cause !== wait.signal.reason) throw cause;
      this.#deadlineMs = AGAIN_DEADLINE_MS;
      return undefined;
    } finally {
      wait.cancel();
      this.#waits.delete(wait);
    }
  }

  #limit(wait: Wait, deadlineMs: number): void {
    wait.cancel();
    wait.cancel = this.#clock.after(deadlineMs, wait.abort);
  }
}

function noAnswer(): KeeperError {
  return new KeeperError('KEEPER_END_UNRECORDED', 'the store of leases did not answer in time', {
    hint: 'Look after etcd.',
  });
}
