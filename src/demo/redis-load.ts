import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Clock } from '../base/clock.ts';
import { DemoError, type DemoErrorCode } from './demo-error.ts';
import type { LoadGenerator, LoadReport, RequestTiming, Verification } from './load-generator.ts';
import type { Reply } from './resp.ts';

const PROCESS = fileURLToPath(new URL('redis-load-process.ts', import.meta.url));
const START_DEADLINE_MS = 120_000;
const RETRY_MS = 50;
const END_DEADLINE_MS = 2000;

type Methods = Pick<
  LoadGenerator,
  'connect' | 'paced' | 'begin' | 'openAt' | 'end' | 'verify' | 'guestClockErrorMs' | 'ping' | 'command'
>;

export interface LoadRequest {
  readonly id: number;
  readonly method: keyof Methods;
  readonly args: readonly unknown[];
}

export type LoadAnswer =
  | { readonly id: number; readonly ok: true; readonly result: unknown }
  | {
      readonly id: number;
      readonly ok: false;
      readonly error: {
        readonly code?: DemoErrorCode;
        readonly message: string;
        readonly hint?: string | undefined;
      };
    };

export interface RedisLoadOptions {
  /** Network namespace (`ip netns`) to stand in; this process' own by default. */
  readonly netns?: string | undefined;
  readonly host: string;
  readonly port: number;
  readonly clock: Clock;
  /** How long Redis may take until it answers: a guest has to boot. */
  readonly startDeadlineMs?: number;
  readonly signal?: AbortSignal | undefined;
}

/** Redis clients in a process of their own, so that what this process does shows in no timing. */
export class RedisLoad implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #clock: Clock;
  readonly #waiting = new Map<
    number,
    { resolve: (result: unknown) => void; reject: (error: Error) => void }
  >();
  readonly #exited: Promise<void>;
  #failure: DemoError | undefined;
  #lastId = 0;

  private constructor({ netns, host, port, clock }: RedisLoadOptions) {
    this.#clock = clock;
    const node = [process.execPath, PROCESS, host, String(port)];
    const [program = '', ...words] =
      netns === undefined ? node : ['nsenter', `--net=/run/netns/${netns}`, '--', ...node];
    // A terminal's Ctrl-C is for us alone: we still want the report, or end the child ourselves.
    this.#child = spawn(program, words, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], detached: true });
    this.#child.on('message', (answer: LoadAnswer) => this.#settle(answer));
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#exited = promise;
    const ended = (why: string, cause?: unknown) => {
      this.#fail(failed(why, cause));
      resolve();
    };
    this.#child.once('error', (error) => ended(error.message, error));
    this.#child.once('exit', (code, signal) => ended(`it ended with ${signal ?? `exit code ${code}`}`));
  }

  /** Resolves when Redis answers. @throws DemoError DEMO_REDIS_SILENT, DEMO_LOAD_FAILED, the signal's reason */
  static async start(options: RedisLoadOptions): Promise<RedisLoad> {
    await using starting = new AsyncDisposableStack();
    const load = starting.use(new RedisLoad(options));
    await load.#untilAnswered(options);
    starting.move();
    return load;
  }

  /** Adds clients, each with one TCP connection for its whole life; a lost one is counted and never reopened. */
  connect(clients: number): Promise<void> {
    return this.#call('connect', clients);
  }

  /** Writes by the first client, the next one `gapMs` after each reply. */
  paced(options: { requests: number; gapMs: number }): Promise<RequestTiming[]> {
    return this.#call('paced', options);
  }

  /** All clients write keys and values of their own, back to back or `gapMs` after each reply, until `end`. */
  begin(options: { gapMs?: number } = {}): Promise<void> {
    return this.#call('begin', options);
  }

  /** Requests since `begin` that were sent before `atMs` (`monotonicMs`) and answered after it, oldest reply first. */
  openAt(atMs: number): Promise<RequestTiming[]> {
    return this.#call('openAt', atMs);
  }

  /** Lets the requests that are under way finish, and reports. */
  end(): Promise<LoadReport> {
    return this.#call('end');
  }

  /** Reads every acknowledged write back, by value. To be called after `end`. */
  verify(): Promise<Verification> {
    return this.#call('verify');
  }

  /** Guest minus host. */
  guestClockErrorMs(): Promise<number> {
    return this.#call('guestClockErrorMs');
  }

  /** One command over a connection of its own. @throws DemoError DEMO_LOAD_FAILED when Redis refuses it */
  command(...words: string[]): Promise<Reply> {
    return this.#call('command', ...words);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.connected) this.#child.disconnect();
    const cancel = this.#clock.after(END_DEADLINE_MS, () => this.#child.kill('SIGKILL'));
    await this.#exited;
    cancel();
  }

  async #untilAnswered({
    clock,
    startDeadlineMs = START_DEADLINE_MS,
    signal,
  }: RedisLoadOptions): Promise<void> {
    const endMs = clock.nowMs() + startDeadlineMs;
    for (;;) {
      try {
        await this.#call('ping');
        return;
      } catch (thrown) {
        if (this.#failure !== undefined || clock.nowMs() > endMs) throw thrown;
      }
      await clock.sleep(RETRY_MS, signal);
    }
  }

  async #call<Method extends keyof Methods>(
    method: Method,
    ...args: Parameters<Methods[Method]>
  ): Promise<Awaited<ReturnType<Methods[Method]>>> {
    if (this.#failure !== undefined) throw this.#failure;
    this.#lastId += 1;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    this.#waiting.set(this.#lastId, { resolve, reject });
    const request: LoadRequest = { id: this.#lastId, method, args };
    this.#child.send(request, (error) => {
      if (error !== null) this.#fail(failed(error.message, error));
    });
    return (await promise) as Awaited<ReturnType<Methods[Method]>>;
  }

  #settle(answer: LoadAnswer): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if (answer.ok) {
      waiting?.resolve(answer.result);
      return;
    }
    const { code = 'DEMO_LOAD_FAILED', message, hint } = answer.error;
    waiting?.reject(new DemoError(code, message, hint === undefined ? {} : { hint }));
  }

  #fail(error: DemoError): void {
    this.#failure ??= error;
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}

function failed(why: string, cause?: unknown): DemoError {
  return new DemoError('DEMO_LOAD_FAILED', `the process that drives Redis is gone: ${why}`, {
    hint: 'It needs nsenter and the network namespace of the VM. See what it wrote above.',
    cause,
  });
}
