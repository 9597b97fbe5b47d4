import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { assert } from '../base/assert.ts';
import { GIB } from '../base/units.ts';
import { callFailed } from '../linux/linux-error.ts';
import {
  appendExtent,
  type BlockDevice,
  type DiskExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';
import { BlockError } from './block-error.ts';
import { ByteQueue } from './byte-queue.ts';
import { agree, type ClientAgreement } from './nbd-agreement.ts';
import { violation } from './nbd-reader.ts';
import { ReplyReader, type ReplyTarget } from './nbd-replies.ts';
import {
  ALLOCATION,
  COMMAND,
  COMMAND_FLAG,
  EXPORT_FLAG,
  NBD_ERRNO,
  NBD_PAYLOAD_BYTES_MAX,
  request,
} from './nbd-wire.ts';

/** For what is still to be answered when the disk is closed. */
const LEAVE_MS = 10_000;
/** Of zeros, trims and questions about extents at a time. */
const RANGE_BYTES_MAX = GIB;

interface Asked {
  readonly command: number;
  readonly offset?: number;
  readonly lengthBytes?: number;
  readonly flags?: number;
}

export interface NbdClientOptions {
  readonly exportName?: string;
  /** What goes when the disk is closed, after the connection. */
  readonly afterClose?: () => Promise<void>;
}

/** A disk that another program serves at a unix socket: what a format that is not ours has for a lower layer. */
export class NbdClientDevice implements BlockDevice, AsyncDisposable {
  readonly sizeBytes: number;
  readonly fastZero = false;
  /** Resolves when the connection is over and nobody here has closed it: the disk is of no more use. */
  readonly lost: Promise<BlockError>;
  readonly #losing = Promise.withResolvers<BlockError>();
  readonly #socket: Socket;
  readonly #agreement: ClientAgreement;
  readonly #afterClose: () => Promise<void>;
  readonly #targets = new Map<number, ReplyTarget>();
  readonly #replies = new ReplyReader(this.#targets);
  readonly #rejects = new Map<number, (failure: unknown) => void>();
  #nextCookie = 1;
  #lost: BlockError | undefined;
  #closed: Promise<void> | undefined;

  private constructor(
    socket: Socket,
    queue: ByteQueue,
    { agreement, afterClose }: { agreement: ClientAgreement; afterClose: () => Promise<void> },
  ) {
    this.#socket = socket;
    this.#agreement = agreement;
    this.#afterClose = afterClose;
    this.lost = this.#losing.promise;
    this.sizeBytes = agreement.sizeBytes;
    socket.on('data', (chunk) => {
      queue.push(chunk);
      try {
        this.#replies.advance(queue);
      } catch (thrown) {
        this.#loseAll(thrown);
        socket.destroy();
      }
    });
    socket.on('close', () => this.#loseAll(undefined));
    socket.resume();
  }

  /** @throws BlockError BLOCK_NBD_REFUSED, BLOCK_NBD_VIOLATION, BLOCK_NBD_LOST; Error of Node: no connection */
  static async connect(
    socketPath: string,
    { exportName = '', afterClose = async () => {} }: NbdClientOptions = {},
  ): Promise<NbdClientDevice> {
    const socket = connect(socketPath);
    await once(socket, 'connect');
    // What follows an error is 'close', which says the same.
    socket.on('error', () => {});
    const queue = new ByteQueue();
    try {
      const agreement = await agree(socket, queue, { exportName });
      return new NbdClientDevice(socket, queue, { agreement, afterClose });
    } catch (thrown) {
      socket.destroy();
      throw thrown;
    }
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    for (let at = 0; at < into.length; at += NBD_PAYLOAD_BYTES_MAX) {
      const piece = into.subarray(at, at + NBD_PAYLOAD_BYTES_MAX);
      const read = { offset: offset + at, into: piece };
      await this.#ask({ command: COMMAND.read, offset: offset + at, lengthBytes: piece.length }, { read });
    }
  }

  async write(offset: number, bytes: Uint8Array, options: WriteOptions = {}): Promise<void> {
    for (let at = 0; at < bytes.length; at += NBD_PAYLOAD_BYTES_MAX) {
      const payload = bytes.subarray(at, at + NBD_PAYLOAD_BYTES_MAX);
      const place = { offset: offset + at, lengthBytes: payload.length, flags: fuaFlag(options) };
      await this.#ask({ command: COMMAND.write, ...place }, { payload });
    }
  }

  async zero(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    const flags = fuaFlag(options) | (options.mayPunch ? 0 : COMMAND_FLAG.noHole);
    for (const range of ranges(offset, lengthBytes)) {
      await this.#ask({ command: COMMAND.writeZeroes, flags, ...range });
    }
  }

  async trim(offset: number, lengthBytes: number, options: WriteOptions = {}): Promise<void> {
    if (!this.#has(EXPORT_FLAG.trim)) return;
    for (const range of ranges(offset, lengthBytes)) {
      await this.#ask({ command: COMMAND.trim, flags: fuaFlag(options), ...range });
    }
  }

  async flush(): Promise<void> {
    await this.#ask({ command: COMMAND.flush });
  }

  async extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    const bounded = Math.min(lengthBytes, RANGE_BYTES_MAX);
    if (!this.#agreement.allocation) return [{ lengthBytes: bounded, hole: false, zero: false }];
    const found: DiskExtent[] = [];
    let left = bounded;
    const onStatus = (length: number, state: number) => {
      // The last one may reach beyond what was asked for.
      const known = Math.min(length, left);
      left -= known;
      const hole = (state & ALLOCATION.hole) !== 0;
      appendExtent(found, { lengthBytes: known, hole, zero: (state & ALLOCATION.zero) !== 0 });
    };
    await this.#ask({ command: COMMAND.blockStatus, offset, lengthBytes: bounded }, { onStatus });
    if (found.length === 0) throw violation('no status');
    return found;
  }

  close(): Promise<void> {
    this.#closed ??= this.#takeLeave().finally(this.#afterClose);
    return this.#closed;
  }

  async #takeLeave(): Promise<void> {
    if (this.#socket.destroyed) return;
    const closed = once(this.#socket, 'close', { signal: AbortSignal.timeout(LEAVE_MS) });
    this.#socket.end(
      request({ command: COMMAND.disconnect, flags: 0, high: 0, low: 0, offset: 0, lengthBytes: 0 }),
    );
    this.#socket.resume();
    // One that is dead, or hangs, has nothing more to say, and what comes after this ends it.
    await closed.catch(() => this.#socket.destroy());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #has(flag: number): boolean {
    return (this.#agreement.flags & flag) !== 0;
  }

  #ask(asked: Asked, more: Partial<ReplyTarget> & { payload?: Uint8Array } = {}): Promise<void> {
    const { command, offset = 0, lengthBytes = 0, flags = 0 } = asked;
    if (this.#lost !== undefined) return Promise.reject(this.#lost);
    const low = this.#nextCookie;
    this.#nextCookie = (low % 0xffffffff) + 1;
    assert(!this.#targets.has(low), 'no request is as old as that');
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#rejects.set(low, reject);
    const onDone = (error: number) => {
      this.#rejects.delete(low);
      if (error === 0) resolve();
      else reject(callFailed('NBD', errnoName(error), { facts: { command, offset, lengthBytes } }));
    };
    this.#targets.set(low, { read: more.read, ...(more.onStatus && { onStatus: more.onStatus }), onDone });
    this.#socket.cork();
    this.#socket.write(request({ command, flags, high: 0, low, offset, lengthBytes }));
    if (more.payload !== undefined) this.#socket.write(more.payload);
    this.#socket.uncork();
    return promise;
  }

  #loseAll(cause: unknown): void {
    this.#lost ??=
      cause instanceof BlockError
        ? cause
        : new BlockError('BLOCK_NBD_LOST', 'the program that holds an image of a disk is gone', {
            hint: 'Start the VM again: the journal of the disk has what is missing.',
          });
    if (this.#closed === undefined) this.#losing.resolve(this.#lost);
    this.#targets.clear();
    for (const reject of this.#rejects.values()) reject(this.#lost);
    this.#rejects.clear();
  }
}

function fuaFlag({ fua = false }: WriteOptions): number {
  return fua ? COMMAND_FLAG.fua : 0;
}

function* ranges(offset: number, lengthBytes: number): Generator<{ offset: number; lengthBytes: number }> {
  for (let at = 0; at < lengthBytes; at += RANGE_BYTES_MAX) {
    yield { offset: offset + at, lengthBytes: Math.min(RANGE_BYTES_MAX, lengthBytes - at) };
  }
}

function errnoName(error: number): string {
  return Object.entries(NBD_ERRNO).find(([, number]) => number === error)?.[0] ?? 'EIO';
}
