import type { Clock } from '../base/clock.ts';
import { ProcessorWait } from '../linux/processor-wait.ts';
import type { HindranceWatch } from '../qemu/answer-deadline.ts';
import type { LazyRestore } from '../snapshot/lazy-restore.ts';

/** What keeps a QEMU from answering that is no fault of its own: memory that has not come yet, or no processor to run on. */
export class Hindrances {
  readonly #clock: Clock;
  #arriving: Pick<LazyRestore, 'progress'> | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  /** Until all of it is there. */
  awaitMemory(restore: Pick<LazyRestore, 'progress' | 'filled'>): void {
    this.#arriving = restore;
    const forget = () => {
      this.#arriving = undefined;
    };
    restore.filled.then(forget, forget);
  }

  watchOf(pid: number): HindranceWatch {
    return () => {
      const processor = new ProcessorWait(pid, this.#clock);
      let progress = this.#arriving?.progress;
      return () => {
        const share = processor.look();
        const before = progress;
        progress = this.#arriving?.progress;
        // Whether it waits for a page right now nobody can tell; who fills in the background is soon done.
        if (progress !== undefined) return { share: 1, isGettingOn: progress !== before };
        return { share, isGettingOn: false };
      };
    };
  }
}
