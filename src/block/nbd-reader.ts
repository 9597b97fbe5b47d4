import { BlockError } from './block-error.ts';
import type { ByteQueue } from './byte-queue.ts';
import {
  COMMAND,
  HANDSHAKE,
  NBD_OPTION_BYTES_MAX,
  NBD_OPTION_MAGIC,
  NBD_PAYLOAD_BYTES_MAX,
  NBD_REQUEST_BYTES,
  NBD_REQUEST_MAGIC,
  type NbdRequest,
  type OptionRequest,
  readUint64,
} from './nbd-wire.ts';
import type { PayloadMemory } from './payload-memory.ts';

const OPTION_HEADER_BYTES = 16;
/** Shorter payloads are waited for whole: most lie in one chunk then, and are not copied. */
const COPY_ABOVE_BYTES = 16 * 1024;
const KNOWN_CLIENT_FLAGS = HANDSHAKE.fixedNewstyle | HANDSHAKE.noZeroes;

export interface RequestWithPayload extends NbdRequest {
  /** What a write brings; empty for everything else. */
  readonly payload: Buffer;
  /** To be called when nobody needs the payload any more. */
  readonly onPayloadFree?: (() => void) | undefined;
}

/** The client's answer to the greeting, or undefined as long as it is not there. @throws BlockError */
export function takeClientFlags(queue: ByteQueue): { noZeroes: boolean } | undefined {
  const flags = queue.take(4)?.readUInt32BE(0);
  if (flags === undefined) return undefined;
  if ((flags & ~KNOWN_CLIENT_FLAGS) !== 0) throw violation(`client flags 0x${flags.toString(16)}`);
  if ((flags & HANDSHAKE.fixedNewstyle) === 0) throw violation('a client that does not know fixed newstyle');
  return { noZeroes: (flags & HANDSHAKE.noZeroes) !== 0 };
}

/** Takes options from a stream, however it is cut. */
export class OptionReader {
  #pending: { option: number; lengthBytes: number } | undefined;

  /** The next one, or undefined as long as it is not whole. @throws BlockError BLOCK_NBD_VIOLATION */
  next(queue: ByteQueue): OptionRequest | undefined {
    if (this.#pending === undefined) {
      const header = queue.take(OPTION_HEADER_BYTES);
      if (header === undefined) return undefined;
      if (header.readBigUInt64BE(0) !== NBD_OPTION_MAGIC) throw violation('an option without its magic');
      const lengthBytes = header.readUInt32BE(12);
      if (lengthBytes > NBD_OPTION_BYTES_MAX) throw violation(`an option of ${lengthBytes} bytes`);
      this.#pending = { option: header.readUInt32BE(8), lengthBytes };
    }
    const { option, lengthBytes } = this.#pending;
    const data = queue.take(lengthBytes);
    if (data === undefined) return undefined;
    this.#pending = undefined;
    return { option, data };
  }
}

/** Takes requests from a stream, however it is cut. Holds the payload of one at most. */
export class RequestReader {
  readonly #memory: PayloadMemory;
  #request: NbdRequest | undefined;
  #payload: Buffer | undefined;
  #filledBytes = 0;

  constructor(memory: PayloadMemory) {
    this.#memory = memory;
  }

  /** What is missing of a large payload: where the bytes that come next may be put at once, and told of with `filled`. */
  get room(): Buffer | undefined {
    const room = this.#payload?.subarray(this.#filledBytes);
    return room?.length === 0 ? undefined : room;
  }

  filled(lengthBytes: number): void {
    this.#filledBytes += lengthBytes;
  }

  /** The next one, or undefined as long as it is not whole. @throws BlockError BLOCK_NBD_VIOLATION */
  next(queue: ByteQueue): RequestWithPayload | undefined {
    this.#request ??= takeRequest(queue);
    if (this.#request === undefined) return undefined;
    const payload = this.#takePayload(queue, this.#request);
    if (payload === undefined) return undefined;
    const isLent = payload.length > COPY_ABOVE_BYTES;
    const onPayloadFree = isLent ? () => this.#memory.give(payload) : undefined;
    const whole = { ...this.#request, payload, onPayloadFree };
    this.#request = undefined;
    return whole;
  }

  #takePayload(queue: ByteQueue, { command, lengthBytes }: NbdRequest): Buffer | undefined {
    if (command !== COMMAND.write || lengthBytes === 0) return NO_BYTES;
    if (this.#payload === undefined && lengthBytes <= COPY_ABOVE_BYTES) return queue.take(lengthBytes);
    this.#payload ??= this.#memory.take(lengthBytes);
    this.#filledBytes += queue.takeInto(this.#payload.subarray(this.#filledBytes));
    if (this.#filledBytes < lengthBytes) return undefined;
    const payload = this.#payload;
    this.#payload = undefined;
    this.#filledBytes = 0;
    return payload;
  }
}

const NO_BYTES = Buffer.alloc(0);

function takeRequest(queue: ByteQueue): NbdRequest | undefined {
  const header = queue.take(NBD_REQUEST_BYTES);
  if (header === undefined) return undefined;
  if (header.readUInt32BE(0) !== NBD_REQUEST_MAGIC) throw violation('a request without its magic');
  const found = {
    flags: header.readUInt16BE(4),
    command: header.readUInt16BE(6),
    high: header.readUInt32BE(8),
    low: header.readUInt32BE(12),
    offset: readUint64(header, 16),
    lengthBytes: header.readUInt32BE(24),
  };
  // Its payload follows, so that it cannot be refused and gone on from: it would have to be read first.
  if (found.command === COMMAND.write && found.lengthBytes > NBD_PAYLOAD_BYTES_MAX) {
    throw violation(`a write of ${found.lengthBytes} bytes`);
  }
  return found;
}

export function violation(what: string): BlockError {
  return new BlockError('BLOCK_NBD_VIOLATION', `the other side of an NBD connection sent ${what}`, {
    hint: 'The connection was closed. Use another client, and report this one.',
  });
}
