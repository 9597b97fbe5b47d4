import { Socket } from 'node:net';
import { unreachable } from '../base/assert.ts';
import { ByteQueue } from './byte-queue.ts';
import { type Agreement, type NbdExport, Negotiation } from './nbd-negotiation.ts';
import { OptionReader, RequestReader, type RequestWithPayload, takeClientFlags } from './nbd-reader.ts';
import { errnoOf, errorReply } from './nbd-reply.ts';
import { carryOut } from './nbd-requests.ts';
import { COMMAND, greeting, NBD_PAYLOAD_BYTES_MAX } from './nbd-wire.ts';
import type { PayloadMemory } from './payload-memory.ts';

/** For what is in flight when the server closes. A client that does not read must not keep it up. */
const DRAIN_TIMEOUT_MS = 5000;
const REQUESTS_MAX = 256;
/** What requests in flight may hold. Twice the largest one, so that one of these does not wait for itself. */
const IN_FLIGHT_BYTES_MAX = 2 * NBD_PAYLOAD_BYTES_MAX;
/** Memory for what arrives, but for large payloads, and how much of it is offered for one read. */
const ARRIVAL_BYTES = 256 * 1024;
const ARRIVAL_PIECE_BYTES = 64 * 1024;

type Phase =
  | { readonly name: 'greeted' }
  | { readonly name: 'negotiation'; readonly negotiation: Negotiation }
  | { readonly name: 'transmission'; readonly agreement: Agreement }
  | { readonly name: 'ended' };

interface ConnectionOptions {
  readonly exports: ReadonlyMap<string, NbdExport>;
  readonly memory: PayloadMemory;
  /** Told why a connection was closed, or a request failed, for the log. */
  readonly onTrouble: (thrown: unknown) => void;
}

/**
 * One client. Takes no more from the socket than may be in flight at a time: a client that asks faster than it reads,
 * or than the disk can follow, waits.
 */
export class NbdConnection {
  readonly #socket: Socket;
  readonly #options: ConnectionOptions;
  readonly #queue = new ByteQueue();
  readonly #optionReader = new OptionReader();
  readonly #requestReader: RequestReader;
  readonly #outgoing: Buffer[] = [];
  readonly #closed: Promise<void>;
  #arrival = NOTHING;
  /** Where the socket puts what it reads next. */
  #room: Buffer = NOTHING;
  #isRoomOfPayload = false;
  #phase: Phase = { name: 'greeted' };
  #requests = 0;
  #inFlightBytes = 0;
  #flushing = false;
  #draining = false;
  #ending = false;

  /** The descriptor belongs to the connection. */
  constructor(fd: number, options: ConnectionOptions) {
    this.#options = options;
    this.#requestReader = new RequestReader(options.memory);
    const onread = { buffer: () => this.#nextRoom(), callback: (count: number) => this.#arrived(count) };
    const socket = new Socket({ fd, readable: true, writable: true, allowHalfOpen: true, onread });
    this.#socket = socket;
    this.#closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.on('drain', () => {
      this.#draining = false;
      this.#advance();
    });
    // 'close' follows, and says the same.
    socket.on('error', () => {});
    // A client that only ends its half still gets the answers to what was taken.
    socket.on('end', () => this.#end());
    socket.write(greeting());
  }

  /** Resolves when nothing is left of it. */
  get closed(): Promise<void> {
    return this.#closed;
  }

  /** What was taken is answered; nothing else is. */
  async close(): Promise<void> {
    const timer = setTimeout(() => this.#socket.destroy(), DRAIN_TIMEOUT_MS);
    this.#end();
    await this.#closed;
    clearTimeout(timer);
  }

  /** Bytes of a large payload that is on its way go to where it is put together; all else to where requests are read from. */
  #nextRoom(): Buffer {
    const ofPayload = this.#queue.lengthBytes === 0 ? this.#requestReader.room : undefined;
    this.#isRoomOfPayload = ofPayload !== undefined;
    if (this.#arrival.length < ARRIVAL_PIECE_BYTES) this.#arrival = Buffer.allocUnsafeSlow(ARRIVAL_BYTES);
    this.#room = ofPayload ?? this.#arrival.subarray(0, ARRIVAL_PIECE_BYTES);
    return this.#room;
  }

  #arrived(lengthBytes: number): boolean {
    if (this.#isRoomOfPayload) this.#requestReader.filled(lengthBytes);
    else {
      this.#arrival = this.#arrival.subarray(lengthBytes);
      if (!this.#ending) this.#queue.push(this.#room.subarray(0, lengthBytes));
    }
    this.#advance();
    return true;
  }

  #advance(): void {
    try {
      while (!this.#ending && this.#step());
    } catch (thrown) {
      this.#phase = { name: 'ended' };
      this.#options.onTrouble(thrown);
      this.#socket.destroy();
    }
    if (this.#isFull) this.#socket.pause();
    else this.#socket.resume();
  }

  get #isFull(): boolean {
    return this.#draining || this.#requests >= REQUESTS_MAX || this.#inFlightBytes >= IN_FLIGHT_BYTES_MAX;
  }

  /** Takes one thing from what has arrived. False when there is nothing, or nothing may be taken. */
  #step(): boolean {
    const phase = this.#phase;
    switch (phase.name) {
      case 'greeted': {
        const flags = takeClientFlags(this.#queue);
        if (flags === undefined) return false;
        this.#phase = { name: 'negotiation', negotiation: new Negotiation(this.#options.exports, flags) };
        return true;
      }
      case 'negotiation':
        return this.#negotiate(phase.negotiation);
      case 'transmission': {
        const request = this.#isFull ? undefined : this.#requestReader.next(this.#queue);
        if (request === undefined) return false;
        this.#take(request, phase.agreement);
        return true;
      }
      case 'ended':
        this.#queue.clear();
        return false;
      default:
        return unreachable(phase);
    }
  }

  #negotiate(negotiation: Negotiation): boolean {
    // Answers to who does not read them would pile up.
    const option = this.#draining ? undefined : this.#optionReader.next(this.#queue);
    if (option === undefined) return false;
    const { send, next } = negotiation.answer(option);
    for (const bytes of send) this.#draining = !this.#socket.write(bytes) || this.#draining;
    if (next === 'close') this.#end();
    else if (next !== 'go-on') this.#phase = { name: 'transmission', agreement: next };
    return true;
  }

  #take(request: RequestWithPayload, agreement: Agreement): void {
    if (request.command === COMMAND.disconnect) {
      this.#end();
      return;
    }
    const heldBytes = Math.min(request.lengthBytes, NBD_PAYLOAD_BYTES_MAX);
    const holds = request.command === COMMAND.read || request.command === COMMAND.write ? heldBytes : 0;
    this.#requests += 1;
    this.#inFlightBytes += holds;
    const answer = (reply: Buffer) => {
      this.#requests -= 1;
      this.#inFlightBytes -= holds;
      this.#outgoing.push(reply);
      this.#flushSoon();
    };
    carryOut(request, agreement).then(answer, (thrown) => {
      const errno = errnoOf(thrown);
      if (errno === 'EIO') this.#options.onTrouble(thrown);
      answer(errorReply(request, errno, agreement));
    });
  }

  /** Everything that became ready in this turn of the event loop goes to the kernel in one call. */
  #flushSoon(): void {
    if (this.#flushing) return;
    this.#flushing = true;
    setImmediate(() => {
      this.#flushing = false;
      this.#flush();
      this.#advance();
      this.#endIfIdle();
    });
  }

  #flush(): void {
    const replies = this.#outgoing.splice(0);
    if (this.#socket.destroyed) return;
    this.#socket.cork();
    for (const reply of replies) this.#draining = !this.#socket.write(reply) || this.#draining;
    this.#socket.uncork();
  }

  #end(): void {
    this.#ending = true;
    this.#queue.clear();
    this.#endIfIdle();
  }

  #endIfIdle(): void {
    if (!this.#ending || this.#requests > 0 || this.#outgoing.length > 0) return;
    this.#phase = { name: 'ended' };
    this.#socket.destroySoon();
  }
}

const NOTHING = Buffer.alloc(0);
