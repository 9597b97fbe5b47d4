import type { ByteQueue } from './byte-queue.ts';
import { violation } from './nbd-reader.ts';
import {
  CHUNK,
  CHUNK_DONE,
  type Cookie,
  NBD_CHUNK_BYTES,
  NBD_OPTION_BYTES_MAX,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_MAGIC,
  readUint64,
} from './nbd-wire.ts';

/** What a request is answered with, piece by piece. */
export interface ReplyTarget {
  /** Where a read begins and goes; undefined for other requests. */
  readonly read?: { readonly offset: number; readonly into: Uint8Array } | undefined;
  onStatus?(lengthBytes: number, state: number): void;
  /** `error` is an errno as the protocol numbers them, 0 for success. */
  onDone(error: number): void;
}

interface Chunk {
  readonly cookie: Cookie;
  readonly type: number;
  readonly done: boolean;
  leftBytes: number;
}

/** A read's data that is on its way, straight to where it was asked for. */
interface Filling {
  readonly chunk: Chunk;
  readonly target: Uint8Array;
  filledBytes: number;
}

/** Takes a server's replies from a stream, however it is cut. Requests are known by the lower half of their cookie. */
export class ReplyReader {
  readonly #targets: Map<number, ReplyTarget>;
  readonly #errors = new Map<number, number>();
  #chunk: Chunk | undefined;
  #filling: Filling | undefined;

  constructor(targets: Map<number, ReplyTarget>) {
    this.#targets = targets;
  }

  /** Goes on as far as there is something. @throws BlockError BLOCK_NBD_VIOLATION */
  advance(queue: ByteQueue): void {
    while (this.#step(queue));
  }

  #step(queue: ByteQueue): boolean {
    if (this.#filling !== undefined) return this.#fill(queue, this.#filling);
    this.#chunk ??= this.#takeHeader(queue);
    if (this.#chunk === undefined) return false;
    // Of a simple reply: its data has no header of its own.
    if (this.#filling !== undefined) return true;
    return this.#takeBody(queue, this.#chunk);
  }

  /** A simple reply is treated as the one chunk that it could be. */
  #takeHeader(queue: ByteQueue): Chunk | undefined {
    const magic = queue.peekUint32();
    if (magic === undefined) return undefined;
    if (magic === NBD_SIMPLE_REPLY_MAGIC) return this.#takeSimple(queue);
    if (magic !== NBD_STRUCTURED_REPLY_MAGIC) throw violation('a reply without its magic');
    const header = queue.take(NBD_CHUNK_BYTES);
    if (header === undefined) return undefined;
    return {
      cookie: { high: header.readUInt32BE(8), low: header.readUInt32BE(12) },
      type: header.readUInt16BE(6),
      done: (header.readUInt16BE(4) & CHUNK_DONE) !== 0,
      leftBytes: header.readUInt32BE(16),
    };
  }

  #takeSimple(queue: ByteQueue): Chunk | undefined {
    const header = queue.take(NBD_SIMPLE_REPLY_BYTES);
    if (header === undefined) return undefined;
    const cookie = { high: header.readUInt32BE(8), low: header.readUInt32BE(12) };
    const error = header.readUInt32BE(4);
    const chunk = { cookie, type: CHUNK.none, done: true, leftBytes: 0 };
    const { read } = this.#targetOf(chunk);
    if (error !== 0) this.#errors.set(cookie.low, error);
    else if (read !== undefined) this.#filling = { chunk, target: read.into, filledBytes: 0 };
    return chunk;
  }

  #takeBody(queue: ByteQueue, chunk: Chunk): boolean {
    if (chunk.type === CHUNK.data) return this.#beginData(queue, chunk);
    if (chunk.leftBytes > NBD_OPTION_BYTES_MAX) throw violation(`a chunk of ${chunk.leftBytes} bytes`);
    const body = queue.take(chunk.leftBytes);
    if (body === undefined) return false;
    const target = this.#targetOf(chunk);
    if (chunk.type === CHUNK.hole && body.length === 12) {
      this.#place(target, { offset: readUint64(body, 0), lengthBytes: body.readUInt32BE(8) }).fill(0);
    } else if (chunk.type === CHUNK.blockStatus && body.length % 8 === 4) {
      for (let at = 4; at < body.length; at += 8) {
        target.onStatus?.(body.readUInt32BE(at), body.readUInt32BE(at + 4));
      }
    } else if (chunk.type >= CHUNK.error && body.length >= 6) {
      this.#errors.set(chunk.cookie.low, body.readUInt32BE(0));
    } else if (chunk.type !== CHUNK.none || body.length > 0) {
      throw violation(`a chunk of type ${chunk.type} with ${body.length} bytes`);
    }
    return this.#end(chunk);
  }

  #beginData(queue: ByteQueue, chunk: Chunk): boolean {
    if (chunk.leftBytes < 8) throw violation('a chunk of data without its offset');
    const head = queue.take(8);
    if (head === undefined) return false;
    const lengthBytes = chunk.leftBytes - 8;
    const target = this.#place(this.#targetOf(chunk), { offset: readUint64(head, 0), lengthBytes });
    this.#filling = { chunk, target, filledBytes: 0 };
    return true;
  }

  #fill(queue: ByteQueue, filling: Filling): boolean {
    filling.filledBytes += queue.takeInto(filling.target.subarray(filling.filledBytes));
    if (filling.filledBytes < filling.target.length) return false;
    this.#filling = undefined;
    return this.#end(filling.chunk);
  }

  #end(chunk: Chunk): boolean {
    this.#chunk = undefined;
    if (!chunk.done) return true;
    const target = this.#targetOf(chunk);
    const { low } = chunk.cookie;
    const error = this.#errors.get(low) ?? 0;
    this.#errors.delete(low);
    this.#targets.delete(low);
    target.onDone(error);
    return true;
  }

  #targetOf({ cookie }: Chunk): ReplyTarget {
    const target = cookie.high === 0 ? this.#targets.get(cookie.low) : undefined;
    if (target === undefined) throw violation('an answer to nothing');
    return target;
  }

  #place({ read }: ReplyTarget, piece: { offset: number; lengthBytes: number }): Uint8Array {
    const at = piece.offset - (read?.offset ?? 0);
    if (read === undefined || at < 0 || at + piece.lengthBytes > read.into.length) {
      throw violation('data that was not asked for');
    }
    return read.into.subarray(at, at + piece.lengthBytes);
  }
}
