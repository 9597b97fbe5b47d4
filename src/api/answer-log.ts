import type { FastifyReply, FastifyRequest } from 'fastify';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { FailureTally } from './failure-tally.ts';
import { sourceNetwork } from './source-network.ts';

const LOGGED_URL_CHARACTERS_MAX = 300;
/** Lines in a minute of those who have not said who they are, from wherever they come. */
const STRANGERS_LINES_MAX = 200;
/** What is answered to those only. */
const STRANGERS: readonly number[] = [401, 429];

type Facts = Readonly<Record<string, unknown>>;

/** A line in the log for every answer; for those who have not said who they are so many lines in a minute, then a number. */
export class AnswerLog implements Disposable {
  readonly #log: Logger;
  readonly #bySource: FailureTally<undefined>;
  readonly #all: FailureTally<undefined>;

  constructor({ log, clock }: { log: Logger; clock: Clock }) {
    this.#log = log;
    this.#bySource = new FailureTally({
      clock,
      onRest: ({ key, count }) => log.warn('API refused more of the same', { from: key, count }),
    });
    this.#all = new FailureTally({
      clock,
      toldMax: STRANGERS_LINES_MAX,
      onRest: ({ count }) => log.warn('API refused more, from many addresses', { count }),
    });
  }

  answered(request: FastifyRequest, reply: FastifyReply): void {
    const facts = {
      requestId: request.id,
      method: request.method,
      url: request.url.slice(0, LOGGED_URL_CHARACTERS_MAX),
      status: reply.statusCode,
      ms: Number(reply.elapsedTime.toFixed(1)),
    };
    if (STRANGERS.includes(reply.statusCode)) this.refused(request.raw.socket.remoteAddress, facts);
    else this.#log.info('API', facts);
  }

  /** Somebody who may be anybody. */
  refused(address: string | undefined, facts: Facts): void {
    const from = sourceNetwork(address);
    if (!this.#bySource.note(from, undefined) || !this.#all.note('', undefined)) return;
    this.#log.info('API', { ...facts, ...(from !== '' && { from }) });
  }

  /** Tells what was counted so far. */
  [Symbol.dispose](): void {
    this.#bySource[Symbol.dispose]();
    this.#all[Symbol.dispose]();
  }
}
