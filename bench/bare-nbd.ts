import { close, open, write } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { promisify } from 'node:util';
import { ByteQueue } from '../src/block/byte-queue.ts';
import { FileDevice } from '../src/block/file-device.ts';
import { Negotiation } from '../src/block/nbd-negotiation.ts';
import { OptionReader, takeClientFlags } from '../src/block/nbd-reader.ts';
import { doneReply } from '../src/block/nbd-reply.ts';
import { COMMAND, greeting, NBD_REQUEST_BYTES, readUint64 } from '../src/block/nbd-wire.ts';

interface Request {
  readonly high: number;
  readonly low: number;
  readonly command: number;
  readonly offset: number;
  readonly payload: Buffer;
}

/**
 * The least that a server does with writes, by what Node has for it: what a stream brings goes to a buffer that is used
 * again, from there to the page cache on a thread of the pool, and is answered. No journal, no epochs, no checks, no bounds.
 */
export class BareNbd implements AsyncDisposable {
  readonly #server: Server;
  readonly #device: FileDevice;
  readonly #fd: number;
  readonly #free: Buffer[] = [];

  private constructor(device: FileDevice, fd: number) {
    this.#device = device;
    this.#fd = fd;
    this.#server = createServer((socket) => void this.#negotiate(socket));
  }

  static async start({ socketPath, image }: { socketPath: string; image: string }): Promise<BareNbd> {
    const bare = new BareNbd(await FileDevice.open(image), await promisify(open)(image, 'r+'));
    await new Promise<void>((resolve) => bare.#server.listen(socketPath, resolve));
    return bare;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise((resolve) => this.#server.close(resolve));
    await this.#device.close();
    await promisify(close)(this.#fd);
  }

  #negotiate(socket: Socket): void {
    const queue = new ByteQueue();
    const options = new OptionReader();
    const exports = new Map([['', { name: '', device: this.#device, readOnly: false }]]);
    let negotiation: Negotiation | undefined;
    socket.on('error', () => {}).write(greeting());
    socket.on('data', (chunk) => {
      queue.push(chunk);
      if (negotiation === undefined) {
        const flags = takeClientFlags(queue);
        if (flags === undefined) return;
        negotiation = new Negotiation(exports, flags);
      }
      for (let option = options.next(queue); option !== undefined; option = options.next(queue)) {
        const { send, next } = negotiation.answer(option);
        for (const bytes of send) socket.write(bytes);
        if (typeof next !== 'object') continue;
        // Nothing follows it before it is answered.
        socket.removeAllListeners('data');
        this.#serve(socket, next.structured);
      }
    });
  }

  #serve(socket: Socket, structured: boolean): void {
    const head = Buffer.alloc(NBD_REQUEST_BYTES);
    let headBytes = 0;
    let request: Request | undefined;
    let filledBytes = 0;
    socket.on('data', (chunk) => {
      for (let at = 0; at < chunk.length; ) {
        if (request === undefined) {
          const count = chunk.copy(head, headBytes, at);
          at += count;
          headBytes += count;
          if (headBytes < NBD_REQUEST_BYTES) return;
          headBytes = 0;
          request = this.#requestOf(head);
        } else {
          const count = chunk.copy(request.payload, filledBytes, at);
          at += count;
          filledBytes += count;
        }
        if (filledBytes < request.payload.length) continue;
        this.#carryOut(request, { socket, structured });
        request = undefined;
        filledBytes = 0;
      }
    });
  }

  #requestOf(head: Buffer): Request {
    const command = head.readUInt16BE(6);
    const lengthBytes = command === COMMAND.write ? head.readUInt32BE(24) : 0;
    const free = lengthBytes === 0 ? undefined : this.#free.pop();
    const payload = free?.length === lengthBytes ? free : Buffer.allocUnsafeSlow(lengthBytes);
    const [high, low] = [head.readUInt32BE(8), head.readUInt32BE(12)];
    return { high, low, command, offset: readUint64(head, 16), payload };
  }

  #carryOut(request: Request, { socket, structured }: { socket: Socket; structured: boolean }): void {
    const { command, payload, offset } = request;
    if (command === COMMAND.disconnect) socket.end();
    else if (command !== COMMAND.write) socket.write(doneReply(request, structured));
    else {
      write(this.#fd, payload, 0, payload.length, offset, (failure, count) => {
        if (failure !== null || count < payload.length) socket.destroy();
        this.#free.push(payload);
        socket.write(doneReply(request, structured));
      });
    }
  }
}
