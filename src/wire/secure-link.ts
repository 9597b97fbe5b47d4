import type { TLSSocket } from 'node:tls';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { KIB, MIB } from '../base/units.ts';
import {
  creditMessage,
  helloMessage,
  LINK_TYPE,
  largestMessageBytes,
  misused,
  readCredit,
  readHello,
  readRefusal,
  USER_TYPE_MIN,
  withLinkLimits,
} from './link-messages.ts';
import {
  type BodyLimits,
  encodeHeader,
  HEADER_BYTES,
  type Message,
  MessageDecoder,
  type ReceivedMessage,
  WIRE_VERSION,
} from './message-framing.ts';
import { WireError } from './wire-error.ts';

export interface LinkOptions {
  readonly clock: Clock;
  /** Types of messages, from 16, and how long a body of each may be. Both sides say the same. */
  readonly limits: BodyLimits;
  /** How many bytes of messages may be on their way to this side and wait here; one message more may have begun. */
  readonly windowBytes?: number;
  /** Something is sent at least so often. */
  readonly keepaliveMs?: number;
  /** Nothing heard for so long: the other side is taken for gone. Some times as long as its `keepaliveMs`. */
  readonly silenceMs?: number;
  /** Of the messages that this side speaks; another one in tests only. */
  readonly version?: number;
}

/** How a link ended: closed by this side, by the other one, or by an error. */
export type LinkEnd =
  | { readonly kind: 'closed-here' }
  | { readonly kind: 'closed-there' }
  | { readonly kind: 'lost'; readonly error: WireError };

type MessageHandler = (message: ReceivedMessage) => void | Promise<void>;

const WINDOW_BYTES = 4 * MIB;
const WINDOW_BYTES_MIN = 4 * KIB;
const KEEPALIVE_MS = 500;
export const SILENCE_MS = 3000;
/** Credit is given in parts of the window of this size: often enough that the other side never waits for it alone. */
const CREDIT_SHARE = 1 / 8;
const LOOKS_PER_SILENCE = 4;
/** Sends that wait for credit. Each waits for the one before, if its caller does as it should. */
const WAITING_MAX = 1024;
/** What was sent gets so long to leave when the link is closed. */
const CLOSE_DEADLINE_MS = 2000;

interface WaitingSend {
  readonly message: Message;
  readonly resolve: () => void;
  readonly reject: (error: WireError) => void;
}

/**
 * Messages in both directions between two hosts that have shown each other who they are. In order, each once, and bounded
 * on both sides: what is on its way counts as long as the other side has not dealt with it.
 *
 * When the link is lost, nobody knows which of the last messages arrived; what was received and not yet handed out is
 * dropped. Whoever wants to go on makes a new link and asks: see ResumeLog.
 */
export class SecureLink implements AsyncDisposable {
  /** Name of the other host, as its certificate proves it. */
  readonly peer: string;
  readonly closed: Promise<LinkEnd>;
  /** Resolves when the other side has said hello; rejects when it refuses, or the link ends before. */
  readonly greeted: Promise<void>;
  readonly #socket: TLSSocket;
  readonly #clock: Clock;
  readonly #version: number;
  readonly #windowBytes: number;
  readonly #largestBytes: number;
  readonly #keepaliveMs: number;
  readonly #silenceMs: number;
  readonly #decoder: MessageDecoder;
  readonly #ended = Promise.withResolvers<LinkEnd>();
  readonly #hello = Promise.withResolvers<void>();
  readonly #waiting: WaitingSend[] = [];
  readonly #inbox: ReceivedMessage[] = [];
  #handler: MessageHandler | undefined;
  #isHandling = false;
  #end: LinkEnd | undefined;
  #isClosing = false;
  #saidBye = false;
  /** Undefined until the other side has said hello. */
  #peerWindowBytes: number | undefined;
  #sentBytes = 0n;
  #creditedBytes = 0n;
  #receivedBytes = 0n;
  #consumedBytes = 0n;
  #creditGivenBytes = 0n;
  #heardMs: number;
  /** Looks in a row after which nothing was heard since the one before. */
  #quietLooks = 0;
  #saidMs: number;
  #cancelLook: () => void = () => {};

  /** Over a connection whose other end was checked to be `peer`, before anything was read from it. */
  constructor(socket: TLSSocket, { peer, ...options }: LinkOptions & { readonly peer: string }) {
    const { clock, limits, windowBytes = WINDOW_BYTES, version = WIRE_VERSION } = options;
    assert(windowBytes >= WINDOW_BYTES_MIN, `a window of ${windowBytes} bytes is too small`);
    assert(
      [...limits.keys()].every((type) => type >= USER_TYPE_MIN),
      `types below ${USER_TYPE_MIN} are the link's`,
    );
    this.peer = peer;
    this.#socket = socket;
    this.#clock = clock;
    this.#version = version;
    this.#windowBytes = windowBytes;
    this.#largestBytes = largestMessageBytes(limits);
    this.#keepaliveMs = options.keepaliveMs ?? KEEPALIVE_MS;
    this.#silenceMs = options.silenceMs ?? SILENCE_MS;
    this.#decoder = new MessageDecoder({ limits: withLinkLimits(limits), version });
    this.#saidMs = clock.nowMs();
    this.#heardMs = this.#saidMs;
    this.closed = this.#ended.promise;
    this.greeted = this.#hello.promise;
    // Its end is told by `closed` as well.
    this.greeted.catch(() => {});
    socket.on('data', (chunk: Buffer) => this.#read(chunk));
    socket.on('error', (cause) => this.#noteEnd(broken(messageOf(cause), cause)));
    socket.on('end', () => this.#noteEnd());
    socket.on('close', () => this.#noteEnd());
    this.#write(helloMessage(windowBytes));
    this.#lookLater();
  }

  /** When this process last read something that the other side sent. */
  get heardMs(): number {
    return this.#heardMs;
  }

  /** The other side has taken leave: it takes nothing more, while what it sent before is still being dealt with. */
  get isLeft(): boolean {
    return this.#saidBye;
  }

  /** Messages that were sent and that the other side has not dealt with yet. */
  get inFlightBytes(): number {
    return Number(this.#sentBytes - this.#creditedBytes);
  }

  /** Messages that wait here for being dealt with. */
  get heldBytes(): number {
    return Number(this.#receivedBytes - this.#consumedBytes);
  }

  /**
   * Hands out messages, one at a time and in order, beginning with those that came before. The next one follows, and the
   * sender gets credit, when the promise has resolved. The handler must not wait for a `send` of its own over this link: the
   * other side may wait in the same way. What it throws ends the link.
   */
  deliver(handler: MessageHandler): void {
    assert(this.#handler === undefined, 'a link has one handler');
    this.#handler = handler;
    void this.#handOut();
  }

  /**
   * Sends when there is credit for it, after all that was sent before. Resolves when the bytes have left this process: the
   * body must not change before that. @throws WireError WIRE_CLOSED, WIRE_BACKLOG for far too many sends at a time
   */
  async send(message: Message): Promise<void> {
    assert(message.type >= USER_TYPE_MIN, `type ${message.type} is the link's own`);
    assert(HEADER_BYTES + (message.body?.length ?? 0) <= this.#largestBytes, 'a message keeps its limit');
    if (this.#end !== undefined || this.#isClosing || this.#saidBye) throw this.#closedError();
    if (this.#waiting.length >= WAITING_MAX) throw backlog();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#waiting.push({ message, resolve, reject });
    this.#sendWaiting();
    await promise;
  }

  /** Lets what was sent leave, takes leave of the other side, and resolves when the connection is gone. */
  async close(): Promise<void> {
    if (this.#saidBye) this.#finish({ kind: 'closed-there' }, { gently: true });
    if (this.#end === undefined && !this.#isClosing) {
      this.#isClosing = true;
      this.#rejectWaiting();
      this.#write({ type: LINK_TYPE.bye });
      this.#socket.end();
    }
    await this.#gone();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #gone(): Promise<void> {
    if (this.#socket.closed) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const cancel = this.#clock.after(CLOSE_DEADLINE_MS, () => this.#socket.destroy());
    this.#socket.once('close', resolve);
    await promise.finally(cancel);
  }

  #read(chunk: Buffer): void {
    if (this.#end !== undefined) return;
    this.#quietLooks = 0;
    this.#heardMs = this.#clock.nowMs();
    try {
      this.#decoder.push(chunk, (message) => this.#take(message));
    } catch (thrown) {
      if (!(thrown instanceof WireError)) throw thrown;
      this.#lose(thrown);
    }
  }

  #take(message: ReceivedMessage): void {
    if (this.#end !== undefined || this.#saidBye) return;
    const isFirst = this.#peerWindowBytes === undefined;
    if (isFirst !== (message.type === LINK_TYPE.hello || message.type === LINK_TYPE.refusal))
      throw misused(`type ${message.type} ${isFirst ? 'before' : 'after'} its hello`);
    switch (message.type) {
      case LINK_TYPE.hello:
        this.#peerWindowBytes = readHello(message.body).windowBytes;
        this.#hello.resolve();
        break;
      case LINK_TYPE.refusal:
        throw readRefusal(message.body);
      case LINK_TYPE.credit:
        this.#takeCredit(readCredit(message.body));
        break;
      case LINK_TYPE.bye:
        this.#saidBye = true;
        this.#rejectWaiting();
        void this.#handOut();
        break;
      default:
        this.#store(message);
    }
  }

  #takeCredit(consumedBytes: bigint): void {
    if (consumedBytes > this.#sentBytes || consumedBytes < this.#creditedBytes) throw misused('its credit');
    this.#creditedBytes = consumedBytes;
    this.#sendWaiting();
  }

  #store(message: ReceivedMessage): void {
    this.#receivedBytes += BigInt(HEADER_BYTES + message.body.length);
    // What the sender knows of: it may begin a message as long as less than a window is on its way.
    const onTheWayBytes = Number(this.#receivedBytes - this.#creditGivenBytes);
    if (onTheWayBytes >= this.#windowBytes + this.#largestBytes) throw overrun(onTheWayBytes);
    this.#inbox.push(message);
    void this.#handOut();
  }

  async #handOut(): Promise<void> {
    if (this.#isHandling) return;
    this.#isHandling = true;
    while (this.#end === undefined && this.#handler !== undefined) {
      const message = this.#inbox.shift();
      if (message === undefined) break;
      try {
        await this.#handler(message);
      } catch (thrown) {
        this.#lose(thrown instanceof WireError ? thrown : broken(messageOf(thrown), thrown));
      }
      this.#consumedBytes += BigInt(HEADER_BYTES + message.body.length);
      this.#giveCredit();
    }
    this.#isHandling = false;
    if (this.#saidBye && this.#inbox.length === 0) this.#finish({ kind: 'closed-there' }, { gently: true });
  }

  #giveCredit(): void {
    const ungivenBytes = Number(this.#consumedBytes - this.#creditGivenBytes);
    if (ungivenBytes >= this.#windowBytes * CREDIT_SHARE) this.#sayCredit();
  }

  #sayCredit(): void {
    if (this.#end !== undefined || this.#isClosing || this.#saidBye) return;
    this.#creditGivenBytes = this.#consumedBytes;
    this.#write(creditMessage(this.#consumedBytes));
  }

  #sendWaiting(): void {
    while (this.#peerWindowBytes !== undefined && this.inFlightBytes < this.#peerWindowBytes) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      this.#sentBytes += BigInt(HEADER_BYTES + (next.message.body?.length ?? 0));
      this.#write(next.message, (error) => {
        if (error === undefined) next.resolve();
        else next.reject(this.#closedError(error));
      });
    }
  }

  #write(message: Message, onLeft?: (error: Error | undefined) => void): void {
    this.#saidMs = this.#clock.nowMs();
    const header = encodeHeader(message, { version: this.#version });
    const left = (error: Error | null | undefined) => onLeft?.(error ?? undefined);
    if (message.body === undefined || message.body.length === 0) {
      this.#socket.write(header, left);
      return;
    }
    this.#socket.cork();
    this.#socket.write(header);
    this.#socket.write(message.body, left);
    this.#socket.uncork();
  }

  get #lookIntervalMs(): number {
    return Math.min(this.#keepaliveMs, this.#silenceMs / LOOKS_PER_SILENCE);
  }

  #lookLater(): void {
    this.#cancelLook = this.#clock.after(this.#lookIntervalMs, () => this.#look());
  }

  /**
   * Silence is counted in looks, not on the clock: when this process was held up, what the other side said meanwhile lies
   * unread in the kernel, and however long that was, it is one look.
   */
  #look(): void {
    if (this.#end !== undefined || this.#saidBye) return;
    // As long as bytes wait for the kernel to take them, more would only heap up.
    const isIdle = this.#socket.writableLength === 0;
    if (isIdle && this.#clock.nowMs() - this.#saidMs >= this.#keepaliveMs) this.#sayCredit();
    if (this.#quietLooks * this.#lookIntervalMs >= this.#silenceMs) {
      this.#lose(silent(this.peer, this.#silenceMs));
      return;
    }
    this.#quietLooks += 1;
    this.#lookLater();
  }

  #noteEnd(failure = broken('the connection ended without a goodbye')): void {
    // Whoever took leave may go as they like: what they sent before is still dealt with.
    if (!this.#saidBye) this.#lose(failure);
  }

  #lose(error: WireError): void {
    // That is what this side was waiting for.
    if (this.#isClosing) this.#finish({ kind: 'closed-here' }, { gently: true });
    else this.#finish({ kind: 'lost', error }, { gently: this.#peerWindowBytes === undefined });
  }

  /** Gently: what was written still leaves, such as the version that this side speaks. */
  #finish(end: LinkEnd, { gently }: { gently: boolean }): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    this.#cancelLook();
    this.#inbox.length = 0;
    if (gently && !this.#socket.destroyed) {
      this.#socket.end();
      const cancel = this.#clock.after(CLOSE_DEADLINE_MS, () => this.#socket.destroy());
      this.#socket.once('close', cancel);
    } else this.#socket.destroy();
    this.#rejectWaiting();
    this.#hello.reject(end.kind === 'lost' ? end.error : this.#closedError());
    this.#ended.resolve(end);
  }

  #rejectWaiting(): void {
    for (const { reject } of this.#waiting.splice(0)) reject(this.#closedError());
  }

  #closedError(failure?: Error): WireError {
    const cause = this.#end?.kind === 'lost' ? this.#end.error : failure;
    return new WireError('WIRE_CLOSED', `the link to ${this.peer} is closed`, {
      hint: 'Make a new link, and ask the other side what it has.',
      facts: { peer: this.peer },
      cause,
    });
  }
}

function broken(reason: string, cause?: unknown): WireError {
  return new WireError('WIRE_LOST', `the link between hosts was lost: ${reason}`, {
    hint: 'It is made anew. If that happens often, look at the network between the hosts.',
    facts: { reason },
    cause,
  });
}

function silent(peer: string, silenceMs: number): WireError {
  return new WireError('WIRE_SILENT', `nothing was heard of ${peer} for ${silenceMs} ms`, {
    hint: 'The other host hangs, or the network between the hosts is cut.',
    facts: { peer, silenceMs },
  });
}

function overrun(onTheWayBytes: number): WireError {
  return new WireError(
    'WIRE_OVERRUN',
    `the other host sent ${onTheWayBytes} bytes, more than it was allowed`,
    {
      hint: 'Bring both hosts to the same release of Understudy.',
      facts: { onTheWayBytes },
    },
  );
}

function backlog(): WireError {
  return new WireError('WIRE_BACKLOG', `${WAITING_MAX} messages wait for the other host already`, {
    hint: 'Whoever sends has to wait until what it sent before has left. Please report this.',
  });
}
