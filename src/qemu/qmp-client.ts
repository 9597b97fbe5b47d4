import { randomInt } from 'node:crypto';
import { createConnection, type Socket } from 'node:net';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Trace } from '../base/trace.ts';
import { type HindranceWatch, startAnswerDeadline } from './answer-deadline.ts';
import { QemuError } from './qemu-error.ts';
import type { QmpEvent, QmpEventData, QmpEventName } from './qmp-events.ts';
import {
  encodeCommand,
  garbage,
  numberOf,
  type QmpId,
  type QmpMessage,
  QmpParser,
  qmpId,
} from './qmp-wire.ts';

const RETRY_MS = 5;
const PENDING_MAX = 64;
/** So many that nobody else has used the same numbers before. */
const STRANGE_NUMBERS = 2 ** 47;

export interface ConnectOptions {
  /** How long to try until QEMU listens and has said hello. */
  readonly deadlineMs: number;
  readonly clock: Clock;
  /** After how long without an answer a command fails with QMP_TIMEOUT, if it says nothing else. */
  readonly commandDeadlineMs?: number;
  /** What may keep QEMU from answering a command; that time does not count. */
  readonly hindrance?: HindranceWatch;
  /**
   * Another connection to this QEMU has ended before, perhaps in the middle of a command: QEMU sends its answer to whoever
   * is connected when it is done.
   */
  readonly afterAnother?: boolean;
  /** Receives the QMP log as JSON lines. */
  readonly log?: (line: string) => void;
  /** Ends the attempt, e.g. because the process has ended. Its reason becomes the cause of the error. */
  readonly signal?: AbortSignal;
}

export interface ExecuteOptions {
  readonly deadlineMs?: number;
  /** One of the commands of every epoch: left out of the QMP log, with the events that it causes. */
  readonly routine?: boolean;
  /** The request that it is part of, to be found in the QMP log. */
  readonly trace?: Trace | undefined;
}

interface Pending {
  readonly id: QmpId;
  readonly command: string;
  readonly routine: boolean;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: QemuError) => void;
  readonly cancelDeadline: () => void;
}

/**
 * Speaks the QEMU Machine Protocol with one QEMU. Commands may be issued without waiting for the answers of
 * earlier ones; QEMU carries them out in their order. It sits in the pause of every epoch: one write per
 * command (or per {@link batch}), one microtask per answer.
 */
export class QmpClient implements Disposable {
  readonly #socket: Socket;
  readonly #clock: Clock;
  readonly #commandDeadlineMs: number;
  readonly #hindrance: HindranceWatch | undefined;
  readonly #log: ((line: string) => void) | undefined;
  readonly #pending = new Map<number, Pending>();
  readonly #eventListeners = new Set<(event: QmpEvent) => void>();
  readonly #closeListeners = new Set<(reason: QemuError) => void>();
  readonly #parser = new QmpParser((message) => this.#receive(message));
  readonly #afterAnother: boolean;
  #nextId: number;
  #lastHeardMs: number;
  #closed: QemuError | undefined;
  #greet: ((capabilities: readonly string[]) => void) | undefined;

  /**
   * Connects, waits for the greeting and leaves negotiation mode.
   * @throws {QemuError} QMP_TIMEOUT, QMP_DISCONNECTED, QMP_GARBAGE, QMP_COMMAND_FAILED
   */
  static async connect(path: string, options: ConnectOptions): Promise<QmpClient> {
    const { clock, deadlineMs } = options;
    const endMs = clock.nowMs() + deadlineMs;
    const client = new QmpClient(await dial(path, { ...options, endMs }), options);
    try {
      const capabilities = await client.#greeting(Math.max(1, endMs - clock.nowMs()));
      // Without this capability QEMU takes one command at a time: it stops reading until it has answered.
      const enable = capabilities.filter((capability) => capability === 'oob');
      const rest = { deadlineMs: Math.max(1, endMs - clock.nowMs()) };
      await client.execute('qmp_capabilities', enable.length > 0 ? { enable } : undefined, rest);
      return client;
    } catch (error) {
      client[Symbol.dispose]();
      throw error;
    }
  }

  private constructor(socket: Socket, options: ConnectOptions) {
    const { clock, commandDeadlineMs = 10_000, afterAnother = false, log } = options;
    this.#socket = socket;
    this.#afterAnother = afterAnother;
    this.#nextId = afterAnother ? randomInt(STRANGE_NUMBERS) : 1;
    this.#clock = clock;
    this.#commandDeadlineMs = commandDeadlineMs;
    this.#hindrance = options.hindrance;
    this.#log = log;
    this.#lastHeardMs = clock.nowMs();
    socket.on('data', (chunk: Buffer) => this.#push(chunk));
    socket.on('error', (cause) => this.#close(disconnected(messageOf(cause), cause)));
    socket.on('close', () => this.#close(disconnected('QEMU closed it')));
  }

  /** When QEMU last said anything, on the clock that was passed in. */
  get lastHeardMs(): number {
    return this.#lastHeardMs;
  }

  /** Why the connection has ended; undefined while it lives. */
  get closed(): QemuError | undefined {
    return this.#closed;
  }

  /**
   * @throws {QemuError} QMP_COMMAND_FAILED when QEMU refused (`facts.class`, `facts.desc`), QMP_TIMEOUT when
   * it does not answer, QMP_DISCONNECTED or QMP_GARBAGE when the connection is lost
   */
  execute<Result = unknown>(
    command: string,
    args?: QmpMessage,
    options: ExecuteOptions = {},
  ): Promise<Result> {
    if (this.#closed !== undefined) return Promise.reject(during(command, this.#closed));
    assert(this.#pending.size < PENDING_MAX, `at most ${PENDING_MAX} QMP commands wait for an answer`);
    const { deadlineMs = this.#commandDeadlineMs, routine = false, trace } = options;
    const number = this.#nextId++;
    const id = qmpId(number, trace);
    return new Promise<Result>((resolve, reject) => {
      const cancelDeadline = this.afterUnhindered(deadlineMs, () => this.#timeOut(number, deadlineMs));
      this.#pending.set(number, {
        id,
        command,
        routine,
        resolve: resolve as (value: unknown) => void,
        reject,
        cancelDeadline,
      });
      if (!routine) this.#record('>', { execute: command, arguments: args, id });
      this.#socket.write(encodeCommand(command, args, id));
    });
  }

  /** Calls `pass` when QEMU could have said something for so long, see {@link startAnswerDeadline}; returns how to take it back. */
  afterUnhindered(deadlineMs: number, pass: () => void): () => void {
    return startAnswerDeadline({ clock: this.#clock, deadlineMs, watch: this.#hindrance }, pass);
  }

  /** All commands that `issue` executes leave in one write. */
  batch<Result>(issue: () => Result): Result {
    this.#socket.cork();
    try {
      return issue();
    } finally {
      this.#socket.uncork();
    }
  }

  /** Calls `listener` for every event until the returned function is called. */
  onEvent(listener: (event: QmpEvent) => void): () => void {
    this.#eventListeners.add(listener);
    return () => this.#eventListeners.delete(listener);
  }

  /** Calls `listener` for the events of one name until the returned function is called. */
  on<Name extends QmpEventName>(name: Name, listener: (data: QmpEventData[Name]) => void): () => void {
    return this.onEvent((event) => {
      if (event.name === name) listener(event.data as QmpEventData[Name]);
    });
  }

  /** Calls `listener` once, when the connection ends for any reason but our own disposal. */
  onClosed(listener: (reason: QemuError) => void): () => void {
    this.#closeListeners.add(listener);
    return () => this.#closeListeners.delete(listener);
  }

  [Symbol.dispose](): void {
    this.#closeListeners.clear();
    this.#close(disconnected('we closed it'));
  }

  /** Resolves with the capabilities that QEMU offers. */
  #greeting(deadlineMs: number): Promise<readonly string[]> {
    return new Promise((resolve, reject) => {
      const cancelDeadline = this.#clock.after(deadlineMs, () =>
        reject(timedOut('the greeting', deadlineMs)),
      );
      const forget = this.onClosed((reason) => {
        cancelDeadline();
        reject(reason);
      });
      this.#greet = (capabilities) => {
        cancelDeadline();
        forget();
        resolve(capabilities);
      };
    });
  }

  #push(chunk: Buffer): void {
    this.#lastHeardMs = this.#clock.nowMs();
    try {
      this.#parser.push(chunk);
    } catch (error) {
      // A listener that throws is a bug of ours and must not pass for garbage of the peer.
      if (!(error instanceof QemuError)) throw error;
      this.#close(error);
    }
  }

  #receive(message: QmpMessage): void {
    if (this.#closed !== undefined) return;
    if ('event' in message) this.#receiveEvent(message);
    else if ('return' in message || 'error' in message) this.#receiveAnswer(message);
    else if ('QMP' in message && this.#greet !== undefined) this.#receiveGreeting(message);
    else throw garbage(`unexpected ${JSON.stringify(message).slice(0, 80)}`);
  }

  #receiveGreeting(message: QmpMessage): void {
    this.#record('<', message);
    const { capabilities } = message.QMP as { capabilities?: readonly string[] };
    this.#greet?.(capabilities ?? []);
    this.#greet = undefined;
  }

  #receiveEvent(message: QmpMessage): void {
    const { seconds = 0, microseconds = 0 } = (message.timestamp ?? {}) as Record<string, number>;
    const wallMs = seconds * 1000 + microseconds / 1000;
    const event: QmpEvent = { name: String(message.event), data: message.data ?? {}, wallMs };
    // These come before the answer of the command that causes them. All others are the guest's, or QEMU's own.
    const oldest = this.#pending.values().next().value;
    if (oldest?.routine !== true || !['STOP', 'RESUME'].includes(event.name)) this.#record('<', message);
    for (const listener of this.#eventListeners) listener(event);
  }

  #receiveAnswer(message: QmpMessage): void {
    const { id } = message;
    const number = numberOf(id);
    const pending = number === undefined ? undefined : this.#pending.get(number);
    if (number === undefined || pending === undefined || pending.id !== id) {
      // The late answer of a command that has timed out is no surprise; one that nobody can have asked for is.
      const isOfOurs = number !== undefined && pending === undefined && number < this.#nextId;
      if (!isOfOurs && !this.#afterAnother) throw garbage(`an answer to ${JSON.stringify(id)}`);
      this.#record('<', message);
      return;
    }
    this.#pending.delete(number);
    pending.cancelDeadline();
    if ('return' in message) {
      if (!pending.routine) this.#record('<', message);
      pending.resolve(message.return);
    } else {
      this.#record('<', message);
      pending.reject(commandFailed(pending.command, message.error));
    }
  }

  #timeOut(number: number, deadlineMs: number): void {
    const pending = this.#pending.get(number);
    if (pending === undefined) return;
    this.#pending.delete(number);
    this.#record('!', { timeout: pending.command, id: pending.id });
    pending.reject(timedOut(pending.command, deadlineMs));
  }

  #close(reason: QemuError): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    this.#record('!', { closed: reason.message });
    this.#socket.destroy();
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { command, cancelDeadline, reject } of pending) {
      cancelDeadline();
      reject(during(command, reason));
    }
    for (const listener of [...this.#closeListeners]) listener(reason);
    this.#closeListeners.clear();
    this.#eventListeners.clear();
  }

  #record(direction: '<' | '>' | '!', message: QmpMessage): void {
    if (this.#log === undefined) return;
    const time = new Date(this.#clock.wallMs()).toISOString();
    this.#log(`${JSON.stringify({ time, direction, ...message })}\n`);
  }
}

/** QEMU makes its socket some time after it was started: tries until it is there. */
async function dial(path: string, options: ConnectOptions & { readonly endMs: number }): Promise<Socket> {
  const { clock, endMs, signal, deadlineMs } = options;
  for (;;) {
    if (signal?.aborted) throw disconnected('QEMU ended before it listened', signal.reason);
    try {
      return await connectOnce(path);
    } catch (cause) {
      if (clock.nowMs() < endMs) {
        await clock.sleep(RETRY_MS);
        continue;
      }
      throw new QemuError('QMP_TIMEOUT', `nobody listens on ${path} after ${deadlineMs} ms`, {
        hint: "Look into QEMU's log.",
        cause,
      });
    }
  }
}

function connectOnce(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path);
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
  });
}

function commandFailed(command: string, answer: unknown): QemuError {
  const { class: errorClass, desc } = (answer ?? {}) as Record<string, unknown>;
  return new QemuError('QMP_COMMAND_FAILED', `QEMU refused ${command}: ${String(desc)}`, {
    hint: 'QEMU lives; the reason is its own.',
    facts: { command, class: errorClass, desc },
  });
}

function timedOut(command: string, deadlineMs: number): QemuError {
  return new QemuError('QMP_TIMEOUT', `QEMU has not answered ${command} within ${deadlineMs} ms: it hangs`, {
    hint: 'Look whether the process is stopped, swaps, or the host has no CPU left for it.',
    facts: { command, deadlineMs },
  });
}

function disconnected(why: string, cause?: unknown): QemuError {
  return new QemuError('QMP_DISCONNECTED', `the QMP connection has ended: ${why}`, {
    hint: "QEMU is gone or going; its log and its process' end say why.",
    cause,
  });
}

/** The same end, told for one command: each caller gets an error with a stack of its own. */
function during(command: string, reason: QemuError): QemuError {
  return new QemuError(reason.code, `${command}: ${reason.message}`, {
    ...(reason.hint === undefined ? {} : { hint: reason.hint }),
    facts: { command },
    cause: reason,
  });
}
