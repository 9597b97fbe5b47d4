import type { Duplex } from 'node:stream';
import type { RawData, WebSocket } from 'ws';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { KIB } from '../base/units.ts';
import { ApiError } from './api-error.ts';

const SESSIONS_MAX = 64;
/** A keeper takes 32 clients in all. */
const VM_SESSIONS_MAX = 8;
/** Output that waits for a slow reader here; behind it the keeper holds its own bounded share. */
const UNSENT_BYTES_MAX = 256 * KIB;
/** A reader that does not get through its share for so long is disconnected. */
export const CONSOLE_STALL_MAX_MS = 10_000;
export const PING_INTERVAL_MS = 15_000;
/** For the answer to our close frame. */
const CLOSE_DEADLINE_MS = 3000;

/** Why a console was closed, as WebSocket codes. 4000 and up are ours; 1009 (too long) is sent by the library. */
export const CLOSE_CODES = {
  hostEnds: 1001,
  notBinary: 1003,
  /** RFC 6455, 7.4.1: against a policy. */
  notAllowed: 1008,
  consoleEnded: 4000,
  stalled: 4001,
  silent: 4002,
} as const;

export interface ConsoleSessionsOptions {
  readonly clock: Clock;
  readonly log: Logger;
}

interface SessionOptions extends ConsoleSessionsOptions {
  readonly vm: string;
  readonly requestId: string;
  /** Whether its reader may still be here: asked now and then, and when a token is revoked. */
  readonly mayGoOn?: () => boolean;
}

/** All serial consoles that are open over the API. */
export class ConsoleSessions implements Disposable {
  readonly #options: ConsoleSessionsOptions;
  readonly #places = new Map<object, string>();
  readonly #sessions = new Set<ConsoleSession>();
  #disposed = false;

  constructor(options: ConsoleSessionsOptions) {
    this.#options = options;
  }

  /** A place for one session, given back when it is disposed of. @throws ApiError API_CONSOLES_MAX */
  reserve(vm: string): Disposable {
    const ofVm = [...this.#places.values()].filter((other) => other === vm).length;
    if (this.#places.size >= SESSIONS_MAX || ofVm >= VM_SESSIONS_MAX) {
      throw new ApiError(
        'API_CONSOLES_MAX',
        ofVm >= VM_SESSIONS_MAX
          ? `${vm} has ${ofVm} open consoles already`
          : `there are ${this.#places.size} open consoles already`,
        { hint: 'Close one of them first.' },
      );
    }
    const place = {
      [Symbol.dispose]: () => {
        this.#places.delete(place);
      },
    };
    this.#places.set(place, vm);
    return place;
  }

  /** Carries bytes both ways until either side ends. Both are the session's from here on. */
  join(
    socket: WebSocket,
    { console, ...named }: Omit<SessionOptions, keyof ConsoleSessionsOptions> & { console: Duplex },
  ): void {
    const session = new ConsoleSession(socket, console, { ...this.#options, ...named });
    this.#sessions.add(session);
    socket.once('close', () => this.#sessions.delete(session));
    if (this.#disposed) session.close('hostEnds', 'the host ends');
  }

  /** Closes those whose readers may be here no more. */
  recheck(): void {
    for (const session of this.#sessions) session.recheck();
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    for (const session of this.#sessions) session.close('hostEnds', 'the host ends');
  }
}

/** One of them. What is on its way in either direction is bounded; whoever does not take it is waited for, then left. */
class ConsoleSession {
  readonly #socket: WebSocket;
  readonly #console: Duplex;
  readonly #options: SessionOptions;
  #cancelStall: (() => void) | undefined;
  #cancelPing = () => {};
  #cancelClose = () => {};
  #awaitsPong = false;

  constructor(socket: WebSocket, console: Duplex, options: SessionOptions) {
    this.#socket = socket;
    this.#console = console;
    this.#options = options;
    const { log, vm, requestId } = options;
    log.info('console joined', { vm, requestId });
    socket.on('message', (data, isBinary) => this.#type(data, isBinary));
    socket.on('pong', () => {
      this.#awaitsPong = false;
    });
    // Broken frames; `close` follows.
    socket.on('error', () => {});
    socket.once('close', (code) => {
      this.#cancelPing();
      this.#cancelClose();
      this.#cancelStall?.();
      console.destroy();
      log.info('console left', { vm, requestId, code });
    });
    console.on('data', (bytes: Uint8Array) => this.#show(bytes));
    console.on('drain', () => socket.resume());
    console.on('error', () => {});
    console.once('close', () => this.close('consoleEnded', 'the console has ended'));
    // The keeper has hung up, and may have done so before this was listened to.
    console.once('end', () => console.destroy());
    if (console.destroyed) this.close('consoleEnded', 'the console has ended');
    this.#pingLater();
  }

  recheck(): void {
    if (this.#options.mayGoOn?.() === false) this.close('notAllowed', 'the token is revoked or expired');
  }

  close(why: keyof typeof CLOSE_CODES, reason: string): void {
    const socket = this.#socket;
    if (socket.readyState !== socket.OPEN) return;
    socket.close(CLOSE_CODES[why], reason);
    // Else the answer would not be read while the guest takes no input.
    socket.resume();
    this.#cancelClose = this.#options.clock.after(CLOSE_DEADLINE_MS, () => socket.terminate());
  }

  #show(bytes: Uint8Array): void {
    const socket = this.#socket;
    if (socket.readyState !== socket.OPEN) return;
    socket.send(bytes, { binary: true }, () => this.#sent());
    if (socket.bufferedAmount <= UNSENT_BYTES_MAX || this.#cancelStall !== undefined) return;
    this.#console.pause();
    this.#cancelStall = this.#options.clock.after(CONSOLE_STALL_MAX_MS, () => this.#leave('stalled'));
  }

  #sent(): void {
    if (this.#cancelStall === undefined || this.#socket.bufferedAmount > UNSENT_BYTES_MAX / 2) return;
    this.#cancelStall();
    this.#cancelStall = undefined;
    this.#console.resume();
  }

  #type(data: RawData, isBinary: boolean): void {
    if (!isBinary) {
      this.close('notBinary', 'send what is typed as binary frames');
      return;
    }
    // Binary messages are Buffers unless another type was asked for.
    if (this.#console.writable && !this.#console.write(data as Buffer)) this.#socket.pause();
  }

  #pingLater(): void {
    this.#cancelPing = this.#options.clock.after(PING_INTERVAL_MS, () => {
      // While the guest takes no input nothing is read from the client, its pongs neither.
      if (this.#awaitsPong && !this.#socket.isPaused) {
        this.#leave('silent');
        return;
      }
      this.recheck();
      this.#awaitsPong = true;
      this.#socket.ping();
      this.#pingLater();
    });
  }

  /** Without a wait for the other side, which does not listen. */
  #leave(why: 'stalled' | 'silent'): void {
    const { log, vm, requestId } = this.#options;
    log.warn('a console is closed: its reader does not read', { vm, requestId, why });
    this.#socket.close(CLOSE_CODES[why], why === 'stalled' ? 'output is not read' : 'no pong');
    this.#socket.terminate();
  }
}
