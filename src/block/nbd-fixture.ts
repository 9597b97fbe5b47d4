import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { appendExtent, type BlockDevice, type DiskExtent } from './block-device.ts';
import { ByteQueue } from './byte-queue.ts';
import { lengthAndText, NBD_REQUEST_BYTES, OPTION, optionRequest, request } from './nbd-wire.ts';

/** A folder of a test's own. */
export class TestFolder implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), 'us-block-'));

  file(name: string): string {
    return join(this.path, name);
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** A disk in memory, whose requests can be made to wait or to fail. */
export class MemoryDisk implements BlockDevice {
  readonly fastZero = true;
  readonly bytes: Buffer;
  readonly calls: string[] = [];
  /** Awaited by everything. */
  before: (call: string) => Promise<void> | void = () => {};

  constructor(sizeBytes: number) {
    this.bytes = Buffer.alloc(sizeBytes);
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#begin('read');
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  async write(offset: number, bytes: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    await this.#begin(options.fua ? 'write fua' : 'write');
    this.bytes.set(bytes, offset);
  }

  async zero(offset: number, lengthBytes: number, options: { mayPunch: boolean }): Promise<void> {
    await this.#begin(options.mayPunch ? 'zero' : 'zero no-hole');
    this.bytes.fill(0, offset, offset + lengthBytes);
  }

  async trim(offset: number, lengthBytes: number): Promise<void> {
    await this.#begin('trim');
    this.bytes.fill(0, offset, offset + lengthBytes);
  }

  async flush(): Promise<void> {
    await this.#begin('flush');
  }

  async extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    await this.#begin('extents');
    const found: DiskExtent[] = [];
    for (const byte of this.bytes.subarray(offset, offset + lengthBytes)) {
      appendExtent(found, { lengthBytes: 1, hole: byte === 0, zero: byte === 0 });
    }
    return found;
  }

  async close(): Promise<void> {}

  async #begin(call: string): Promise<void> {
    this.calls.push(call);
    await this.before(call);
  }
}

/** The other end, byte by byte: for what a decent client would not do. */
export class RawClient implements Disposable {
  readonly socket: Socket;
  readonly #queue = new ByteQueue();
  #wake: () => void = () => {};

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on('error', () => {});
    socket.on('data', (chunk) => {
      this.#queue.push(chunk);
      this.#wake();
    });
    socket.on('end', () => this.#wake());
    socket.on('close', () => this.#wake());
  }

  /** Connected and greeted; the client's flags are sent. */
  static async connect(socketPath: string, flags = 3): Promise<RawClient> {
    const client = new RawClient(connect(socketPath));
    await client.take(18);
    client.send(Uint8Array.of(0, 0, 0, flags));
    return client;
  }

  /** Beyond negotiation, with simple or structured replies, on the first export. */
  static async ready(socketPath: string, options: { structured: boolean }): Promise<RawClient> {
    const client = await RawClient.connect(socketPath);
    if (options.structured) {
      client.send(optionRequest(OPTION.structuredReply));
      await client.take(20);
    }
    client.send(optionRequest(OPTION.exportName, Buffer.from('disk')));
    await client.take(10);
    return client;
  }

  send(...parts: readonly Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  /** Exactly so many bytes. Rejects when the connection ends before. */
  async take(lengthBytes: number): Promise<Buffer> {
    for (;;) {
      const bytes = this.#queue.take(lengthBytes);
      if (bytes !== undefined) return bytes;
      if (this.socket.readableEnded || this.socket.destroyed) throw new Error('the server hung up');
      await this.#happening();
    }
  }

  /** Waits until the server hangs up, and returns what it said before. */
  async rest(): Promise<Buffer> {
    while (!this.socket.readableEnded && !this.socket.destroyed) {
      await this.#happening();
    }
    return this.#queue.take(this.#queue.lengthBytes) ?? Buffer.alloc(0);
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }

  #happening(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}

/** A request with the number `low` as its name. */
export function requestOf(
  command: number,
  low: number,
  place: { offset?: number; lengthBytes?: number; flags?: number } = {},
): Buffer {
  const { offset = 0, lengthBytes = 0, flags = 0 } = place;
  const bytes = request({ command, low, high: 0xfeed, offset, lengthBytes, flags });
  return bytes.subarray(0, NBD_REQUEST_BYTES);
}

/** The data of INFO and GO. */
export function goData(name: string, ...infos: readonly number[]): Buffer {
  const numbers = Buffer.alloc(2 + 2 * infos.length);
  numbers.writeUInt16BE(infos.length, 0);
  for (const [index, info] of infos.entries()) numbers.writeUInt16BE(info, 2 + 2 * index);
  return Buffer.concat([lengthAndText(name), numbers]);
}

/** The data of LIST_META_CONTEXT and SET_META_CONTEXT. */
export function metaData(name: string, ...queries: readonly string[]): Buffer {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length, 0);
  return Buffer.concat([lengthAndText(name), count, ...queries.map(lengthAndText)]);
}
