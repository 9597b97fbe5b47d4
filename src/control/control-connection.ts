import type { Socket } from 'node:net';
import { InvariantViolation } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf, UnderstudyError } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { traceFacts } from '../base/trace.ts';
import { MIB } from '../base/units.ts';
import {
  type Answer,
  type AnswerError,
  decodeLine,
  encodeLine,
  LineSplitter,
  REQUEST_BYTES_MAX,
  type Request,
  requestSchema,
} from './control-protocol.ts';
import type { ConsoleSession, KeeperControl } from './keeper-control.ts';
import { KeeperError } from './keeper-error.ts';

/** A client that asks for nothing for so long is closed. */
const IDLE_MAX_MS = 60_000;
/** A client that takes nothing for so long is dropped. */
const STALL_MAX_MS = 10_000;
/** Console output that waits for a slow reader; beyond it the reader is dropped, the guest never waits. */
const UNREAD_BYTES_MAX = MIB;

/** Of a client that subscribes to samples, beside what its socket holds. */
const SAMPLES_WAITING_MAX = 64;

export interface ControlOptions {
  readonly control: KeeperControl;
  readonly clock: Clock;
  readonly log: Logger;
}

type EventsRequest = Extract<Request, { method: 'events' }>;

/** One client of a keeper. Its input is not trusted: what is no request gets an error and the connection ends. */
export class ControlConnection {
  readonly #socket: Socket;
  readonly #options: ControlOptions;
  readonly #lines = new LineSplitter({ bytesMax: REQUEST_BYTES_MAX });
  #running: Request | undefined;
  #console: ConsoleSession | undefined;
  #endStream: () => void = () => {};
  #finishing = false;

  constructor(socket: Socket, options: ControlOptions) {
    this.#socket = socket;
    this.#options = options;
    socket.setTimeout(IDLE_MAX_MS, () => this.drop());
    socket.on('data', (bytes: Uint8Array) => this.#receive(bytes));
    socket.on('end', () => this.finish());
    // A client that goes away is nothing to report; `close` follows.
    socket.on('error', () => {});
    socket.once('close', () => {
      this.#console?.close();
      this.#endStream();
    });
  }

  /** No more requests: the connection ends with the answer to the running one. A stream ends now. */
  finish(): void {
    this.#finishing = true;
    this.#endStream();
    if (this.#running === undefined) this.#socket.destroySoon();
  }

  drop(): void {
    this.#socket.destroy();
  }

  #receive(bytes: Uint8Array): void {
    if (this.#console !== undefined) {
      this.#type(bytes);
      return;
    }
    this.#lines.push(bytes);
    while (!this.#finishing && this.#console === undefined) {
      const next = this.#lines.next();
      if (next.kind === 'none') return;
      const request = next.kind === 'line' ? requestSchema.safeParse(decodeLine(next.text)) : undefined;
      if (request?.success && this.#running === undefined) this.#start(request.data);
      else this.#refuse();
    }
  }

  #refuse(): void {
    const message = `expected one request a line of at most ${REQUEST_BYTES_MAX} bytes, and one at a time`;
    const error = new KeeperError('KEEPER_REQUEST_INVALID', message, {
      hint: 'Use the `understudy` command of the version that started this VM.',
    });
    this.#send({ id: null, ok: false, error: answerError(error) });
    this.finish();
    // Not waiting for a running request: nothing that this client says can be relied on.
    this.#socket.destroySoon();
  }

  #start(request: Request): void {
    this.#running = request;
    this.#socket.setTimeout(0);
    if (request.method === 'console') {
      this.#joinConsole(request);
      return;
    }
    this.#perform(request).then(
      (result) => this.#answer({ id: request.id, ok: true, result }),
      (thrown: unknown) => this.#fail(request, thrown),
    );
  }

  async #perform(request: Exclude<Request, { method: 'console' }>): Promise<unknown> {
    const { control, log } = this.#options;
    switch (request.method) {
      case 'status':
        return control.status();
      case 'metrics':
        return control.metrics();
      case 'promote':
        log.info('promote is asked for', traceFacts(request.trace));
        await control.promote({ trace: request.trace });
        return null;
      case 'protect':
        await control.protect();
        return null;
      case 'unprotect':
        await control.unprotect();
        return null;
      case 'place':
        log.info('a place for the shadow is asked for', { ...request.params, ...traceFacts(request.trace) });
        await control.place(request.params);
        return null;
      case 'test-failover':
        return await control.testFailover();
      case 'snapshot':
        log.info('a snapshot is asked for', { ...request.params, ...traceFacts(request.trace) });
        return await control.snapshot(request.params);
      case 'call-off-snapshot':
        control.callOffSnapshot(request.params);
        return null;
      case 'stop':
        log.info('stop is asked for', { ...request.params, ...traceFacts(request.trace) });
        await control.stop({ ...request.params, trace: request.trace });
        return null;
      case 'events':
        await this.#stream(request);
        return null;
      case 'telemetry':
        if (request.params.intervalMs !== undefined)
          log.info('another interval is asked for', request.params);
        return await control.telemetry(request.params);
      case 'limits':
        if (Object.keys(request.params).length > 0)
          log.info('limits are asked for', { ...request.params, ...traceFacts(request.trace) });
        return await control.limits(request.params);
      case 'samples':
        await this.#streamSamples(request.id);
        return null;
    }
  }

  #fail(request: Request, thrown: unknown): void {
    // A broken invariant must end the keeper, whoever happened to ask.
    if (thrown instanceof InvariantViolation) throw thrown;
    if (!(thrown instanceof UnderstudyError)) {
      const stack = thrown instanceof Error ? thrown.stack : undefined;
      this.#options.log.error('a request failed', {
        ...traceFacts('trace' in request ? request.trace : undefined),
        method: request.method,
        error: messageOf(thrown),
        stack,
      });
    }
    this.#answer({ id: request.id, ok: false, error: answerError(thrown) });
  }

  #answer(answer: Answer): void {
    this.#running = undefined;
    this.#send(answer);
    if (this.#finishing) this.#socket.destroySoon();
    else this.#socket.setTimeout(IDLE_MAX_MS);
  }

  #send(answer: Answer): void {
    if (this.#socket.writable) this.#socket.write(encodeLine(answer));
  }

  /**
   * Events are fetched from the journal as fast as the client takes them, so a slow one costs no memory here.
   * Resolves when all are sent or, following, when the connection finishes.
   */
  #stream({ id, params }: EventsRequest): Promise<void> {
    const { control, clock } = this.#options;
    const socket = this.#socket;
    const { promise, resolve } = Promise.withResolvers<void>();
    let lastSeq = params.since;
    let cancelStall = () => {};
    const pump = () => {
      cancelStall();
      for (const event of control.eventsSince(lastSeq)) {
        if (socket.writableNeedDrain) {
          cancelStall = clock.after(STALL_MAX_MS, () => this.drop());
          return;
        }
        this.#send({ id, event: { ...event } });
        lastSeq = event.seq;
      }
      if (!params.follow || this.#finishing) this.#endStream();
    };
    const stopListening = params.follow ? control.onEvent(pump) : () => {};
    socket.on('drain', pump);
    this.#endStream = () => {
      this.#endStream = () => {};
      stopListening();
      socket.off('drain', pump);
      cancelStall();
      resolve();
    };
    pump();
    return promise;
  }

  /** A client that takes them too slowly loses the oldest, and is told how many. */
  #streamSamples(id: number): Promise<void> {
    const socket = this.#socket;
    const { promise, resolve } = Promise.withResolvers<void>();
    const pump = () => {
      while (!socket.writableNeedDrain) {
        const fed = samples.take();
        if (fed === undefined) return;
        this.#send({ id, sample: { ...fed.sample, values: { ...fed.sample.values } }, lost: fed.lost });
      }
    };
    const samples = this.#options.control.samples({ samplesMax: SAMPLES_WAITING_MAX, onSample: pump });
    socket.on('drain', pump);
    this.#endStream = () => {
      this.#endStream = () => {};
      samples[Symbol.dispose]();
      socket.off('drain', pump);
      resolve();
    };
    if (this.#finishing) this.#endStream();
    return promise;
  }

  /** A paste larger than what the guest takes waits in the client's end of the socket. */
  #type(bytes: Uint8Array): void {
    if (this.#console?.write(bytes) === false) this.#socket.pause();
  }

  #joinConsole(request: Request): void {
    const socket = this.#socket;
    // What the console shows while it is being joined has to come after the answer.
    let early: Uint8Array[] | undefined = [];
    const show = (bytes: Uint8Array) => {
      if (early !== undefined) early.push(bytes);
      else if (socket.writable) socket.write(bytes);
      if (socket.writableLength > UNREAD_BYTES_MAX) this.drop();
    };
    try {
      this.#console = this.#options.control.openConsole({ onOutput: show, onRoom: () => socket.resume() });
    } catch (thrown) {
      this.#fail(request, thrown);
      return;
    }
    this.#answer({ id: request.id, ok: true, result: null });
    socket.setTimeout(0);
    const shown = early;
    early = undefined;
    for (const bytes of shown) show(bytes);
    const typed = this.#lines.takeRest();
    if (typed.length > 0) this.#type(typed);
  }
}

function answerError(thrown: unknown): AnswerError {
  if (thrown instanceof UnderstudyError) {
    const { code, message, hint } = thrown;
    return { code, message, ...(hint !== undefined && { hint }) };
  }
  return {
    code: 'KEEPER_INTERNAL',
    message: messageOf(thrown),
    hint: 'This is a fault of Understudy: its keeper.log has the details.',
  };
}
