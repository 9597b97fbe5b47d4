import { cutShort } from './refusals.ts';

/** Something that somebody may look at, until it is needed. */
export interface Loan<Lent> {
  /** Aborted, with KEEPER_TEST_CUT_SHORT, when what is lent is needed or ends. */
  readonly signal: AbortSignal;
  /** Looks at it. Who needs it waits for `work`, which therefore heeds the signal. */
  readonly use: <Result>(work: (lent: Lent) => Promise<Result>) => Promise<Result>;
}

interface Given {
  readonly abort: AbortController;
  /** Until it is not looked at any more. */
  inUse: Promise<void>;
  /** Until the task has come to its end. */
  ended: Promise<void>;
}

/** Who looks at a shadow at the moment. All of them are called back together. */
export class Loans {
  readonly #given = new Set<Given>();

  /** The task must not change what it is lent. */
  async lend<Lent, Result>(lent: Lent, task: (loan: Loan<Lent>) => Promise<Result>): Promise<Result> {
    const abort = new AbortController();
    const { signal } = abort;
    const given: Given = { abort, inUse: Promise.resolve(), ended: Promise.resolve() };
    this.#given.add(given);
    const use: Loan<Lent>['use'] = async (work) => {
      signal.throwIfAborted();
      const working = work(lent);
      given.inUse = settled(working);
      return await working;
    };
    const working = task({ signal, use });
    given.ended = settled(working);
    return await working.finally(() => this.#given.delete(given));
  }

  callBack(): void {
    for (const { abort } of this.#given) abort.abort(cutShort());
  }

  /** Resolves when nobody looks any more. */
  async unused(): Promise<void> {
    await Promise.all([...this.#given].map(({ inUse }) => inUse));
  }

  /** Resolves when every task has come to its end. */
  async ended(): Promise<void> {
    await Promise.all([...this.#given].map(({ ended }) => ended));
  }
}

/** Resolves when the work has come to its end, whatever that is. */
async function settled(work: Promise<unknown>): Promise<void> {
  await work.catch(() => {});
}
