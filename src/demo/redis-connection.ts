import { once } from 'node:events';
import { createConnection, type Socket } from 'node:net';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { DemoError } from './demo-error.ts';
import { encodeCommand, type Reply, ReplyDecoder } from './resp.ts';

export interface RedisConnectionOptions {
  readonly host: string;
  readonly port: number;
  readonly clock: Clock;
  readonly connectDeadlineMs?: number;
  /** A connection whose oldest command waits longer than this for its reply is given up. */
  readonly replyDeadlineMs?: number;
}

const CONNECT_DEADLINE_MS = 5000;
const REPLY_DEADLINE_MS = 60_000;
const IN_FLIGHT_MAX = 10_000;

/** One TCP connection to Redis, without Nagle's delay. Commands may be called before earlier ones are answered. */
export class RedisConnection implements Disposable {
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #replyDeadlineMs: number;
  readonly #decoder = new ReplyDecoder();
  readonly #waiting: { resolve: (reply: Reply) => void; reject: (error: DemoError) => void }[] = [];
  #cancelDeadline: () => void = () => {};
  #lost: DemoError | undefined;

  private constructor(
    socket: Socket,
    { clock, replyDeadlineMs = REPLY_DEADLINE_MS }: RedisConnectionOptions,
  ) {
    this.#socket = socket;
    this.#clock = clock;
    this.#replyDeadlineMs = replyDeadlineMs;
    socket.on('data', (chunk) => this.#receive(chunk));
    socket.on('error', (cause) => this.#lose(closed(messageOf(cause), cause)));
    socket.on('close', () => this.#lose(closed('closed by the other side')));
  }

  /** @throws DemoError DEMO_REDIS_CLOSED, DEMO_REDIS_SILENT */
  static async connect(options: RedisConnectionOptions): Promise<RedisConnection> {
    const { host, port, clock, connectDeadlineMs = CONNECT_DEADLINE_MS } = options;
    const socket = createConnection({ host, port, noDelay: true });
    const cancel = clock.after(connectDeadlineMs, () => socket.destroy(silent(connectDeadlineMs)));
    try {
      await once(socket, 'connect');
      return new RedisConnection(socket, options);
    } catch (cause) {
      socket.destroy();
      throw cause instanceof DemoError ? cause : closed(messageOf(cause), cause);
    } finally {
      cancel();
    }
  }

  /** Why the connection cannot be used any more. */
  get lost(): DemoError | undefined {
    return this.#lost;
  }

  /** @throws DemoError when the connection is or gets lost; what Redis refuses is a RedisErrorReply. */
  call(...words: readonly string[]): Promise<Reply> {
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    if (this.#waiting.length >= IN_FLIGHT_MAX) {
      return Promise.reject(closed(`${IN_FLIGHT_MAX} commands wait for a reply already`));
    }
    const { promise, resolve, reject } = Promise.withResolvers<Reply>();
    this.#waiting.push({ resolve, reject });
    if (this.#waiting.length === 1) this.#expectReply();
    this.#socket.write(encodeCommand(words));
    return promise;
  }

  [Symbol.dispose](): void {
    this.#lose(closed('closed by this side'));
  }

  #receive(chunk: Uint8Array): void {
    try {
      this.#decoder.push(chunk, (reply) => {
        this.#waiting.shift()?.resolve(reply);
        this.#expectReply();
      });
    } catch (thrown) {
      if (!(thrown instanceof DemoError)) throw thrown;
      this.#lose(thrown);
    }
  }

  #expectReply(): void {
    this.#cancelDeadline();
    if (this.#waiting.length === 0) return;
    this.#cancelDeadline = this.#clock.after(this.#replyDeadlineMs, () =>
      this.#lose(silent(this.#replyDeadlineMs)),
    );
  }

  #lose(error: DemoError): void {
    this.#lost ??= error;
    this.#cancelDeadline();
    this.#socket.destroy();
    for (const { reject } of this.#waiting.splice(0)) reject(this.#lost);
  }
}

function closed(why: string, cause?: unknown): DemoError {
  return new DemoError('DEMO_REDIS_CLOSED', `no connection to Redis: ${why}`, {
    hint: 'See `understudy events` for what happened to the VM.',
    cause,
  });
}

function silent(deadlineMs: number): DemoError {
  return new DemoError('DEMO_REDIS_SILENT', `Redis did not answer within ${deadlineMs / 1000} s`, {
    hint: 'See `understudy status` for what the VM does, and `understudy console` for what it says.',
    facts: { deadlineMs },
  });
}
