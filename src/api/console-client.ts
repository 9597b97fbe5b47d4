import { once } from 'node:events';
import type { ClientRequest, IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import { WebSocket } from 'ws';
import type { Clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { ApiError } from './api-error.ts';
import { CLOSE_CODES } from './console-sessions.ts';
import { authorizationOf, connectTo, type HostAddress } from './host-address.ts';
import { MESSAGE_BYTES_MAX } from './upgrades.ts';

const OPEN_DEADLINE_MS = 10_000;

export interface ConsoleAsked {
  readonly address: HostAddress;
  readonly path: string;
  readonly clock: Clock;
}

export type ConsoleAnswer =
  | { readonly kind: 'joined'; readonly console: Duplex }
  /** An answer of HTTP, with its problem to be read. */
  | { readonly kind: 'refused'; readonly response: IncomingMessage };

/**
 * Opens a console over the API of a host: bytes both ways. A close that neither side wanted is the stream's error,
 * API_CONSOLE_CLOSED. @throws what a connection throws; API_NO_ANSWER
 */
export async function askForConsole({ address, path, clock }: ConsoleAsked): Promise<ConsoleAnswer> {
  const socket = new WebSocket(`ws://localhost${path}`, {
    createConnection: () => connectTo(address) as Socket,
    headers: 'url' in address ? authorizationOf(address.credentials) : {},
    perMessageDeflate: false,
    maxPayload: MIB,
  });
  // From the first moment: what the console showed last comes with the answer to the handshake.
  const console = new ConsoleStream(socket);
  const cancel = clock.after(OPEN_DEADLINE_MS, () => socket.terminate());
  const refused = Promise.withResolvers<IncomingMessage>();
  socket.once('unexpected-response', (_: ClientRequest, response) => refused.resolve(response));
  // Who waits for it is told, by `open` or by the close that follows.
  for (const emitter of [socket, console]) emitter.on('error', () => {});
  try {
    const response = await Promise.race([once(socket, 'open').then(() => undefined), refused.promise]);
    return response === undefined ? { kind: 'joined', console } : { kind: 'refused', response };
  } finally {
    cancel();
  }
}

/** A WebSocket as a stream of bytes: waits for whoever reads, and for the host where it takes no more. */
class ConsoleStream extends Duplex {
  readonly #socket: WebSocket;

  constructor(socket: WebSocket) {
    super({ allowHalfOpen: false });
    this.#socket = socket;
    socket.on('message', (bytes: Buffer) => {
      if (!this.push(bytes)) socket.pause();
    });
    socket.once('close', (code: number, reason: Buffer) => {
      const unwanted = unwantedClose(code, reason);
      if (unwanted === undefined) this.push(null);
      else this.destroy(unwanted);
    });
  }

  override _read(): void {
    this.#socket.resume();
  }

  override _write(bytes: Buffer, _: BufferEncoding, done: (error?: Error | null) => void): void {
    const last = Math.max(0, Math.ceil(bytes.length / MESSAGE_BYTES_MAX) - 1);
    for (let index = 0; index <= last; index += 1) {
      const piece = bytes.subarray(index * MESSAGE_BYTES_MAX, (index + 1) * MESSAGE_BYTES_MAX);
      this.#socket.send(piece, { binary: true }, index === last ? done : () => {});
    }
  }

  override _final(done: () => void): void {
    this.#socket.close(1000);
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#socket.terminate();
    done(error);
  }
}

/** Undefined where the client left or the console ended, e.g. with its VM. */
function unwantedClose(code: number, reason: Buffer): ApiError | undefined {
  if (code === 1000 || code === 1005 || code === CLOSE_CODES.consoleEnded) return undefined;
  const why = reason.length === 0 ? `code ${code}` : reason.toString();
  return new ApiError('API_CONSOLE_CLOSED', `the host closed the console: ${why}`, {
    hint: 'Join it again; it begins with what it showed last.',
    facts: { closeCode: code },
  });
}
