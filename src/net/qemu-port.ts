import { Buffer } from 'node:buffer';
import { readSync } from 'node:fs';
import type { Server, Socket } from 'node:net';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { descriptorOf, startReading, stopReading } from '../linux/socket-descriptor.ts';
import { unreadBytes, unsentBytes } from '../linux/socket-queue.ts';
import type { Framing, ItemDecoder } from './framing.ts';
import { NetError } from './net-error.ts';
import { closeServer, listenUnix, type UnixServerOptions } from './unix-server.ts';

export interface PortListener {
  onItem(item: Uint8Array): void;
  /** QEMU connected, or its socket took what had to wait. */
  onRoom(): void;
  /** The connection is gone, with an error if QEMU broke the protocol. */
  onClosed(error: NetError | undefined): void;
}

/**
 * Our end of one of a QEMU's channels: the unix socket that its `-netdev stream` or `-chardev socket` connects
 * to. One connection at a time; another one is refused while it lives. Until somebody listens, what QEMU sends
 * is thrown away.
 */
export class QemuPort implements AsyncDisposable {
  readonly path: string;
  readonly framing: Framing;
  #server: Server | undefined;
  #socket: Socket | undefined;
  #decoder: ItemDecoder;
  #listener: PortListener | undefined;
  #error: NetError | undefined;
  #waiting: (() => void)[] = [];
  #readingPaused = false;
  #leftUnread = false;
  #hasMadeRoom = false;

  private constructor(path: string, framing: Framing) {
    this.path = path;
    this.framing = framing;
    this.#decoder = framing.decoder();
  }

  /** Listens for a QEMU at `path`, mode 0600. Throws `NET_LISTEN_FAILED`. */
  static async listen(
    path: string,
    { framing, owner }: { framing: Framing } & Pick<UnixServerOptions, 'owner'>,
  ): Promise<QemuPort> {
    const port = new QemuPort(path, framing);
    port.#server = await listenUnix(path, { owner, onConnection: (socket) => port.#accept(socket) });
    return port;
  }

  get isConnected(): boolean {
    return this.#socket !== undefined;
  }

  /** Resolves once a QEMU is connected. Throws `NET_NO_CONNECTION` after `deadlineMs`. */
  async awaitConnection({ deadlineMs, clock }: { deadlineMs: number; clock: Clock }): Promise<void> {
    if (this.isConnected) return;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#waiting.push(resolve);
    const cancel = clock.after(deadlineMs, () => {
      this.#waiting = this.#waiting.filter((waiting) => waiting !== resolve);
      reject(
        new NetError('NET_NO_CONNECTION', `no QEMU connected to ${this.path} within ${deadlineMs} ms`, {
          hint: "See QEMU's log for why it did not start, or whether it may reach the path.",
          facts: { path: this.path, deadlineMs },
        }),
      );
    });
    await promise.finally(cancel);
  }

  /** From now on `listener` gets what QEMU sends. Once in the life of a port. */
  open(listener: PortListener): void {
    assert(this.#listener === undefined, `one listener at ${this.path}`);
    this.#listener = listener;
  }

  /** Whether the socket takes an item at once. */
  get canSend(): boolean {
    return this.#socket !== undefined && !this.#socket.destroyed && this.#socket.writableLength === 0;
  }

  send(item: Uint8Array): void {
    assert(this.#socket !== undefined, `a QEMU is connected to ${this.path}`);
    this.#socket.write(this.framing.encode(item), this.#onWritten);
  }

  /** Whether QEMU has read everything that was sent (SIOCOUTQ: what lies unread at the other end of a unix socket). */
  allRead(): boolean {
    const fd = this.#descriptor;
    return this.canSend && fd !== undefined && unsentBytes(fd) === 0;
  }

  /** Back-pressure: QEMU, and then its guest, waits once the socket is full. */
  pauseReading(): void {
    this.#readingPaused = true;
    this.#socket?.pause();
  }

  resumeReading(): void {
    this.#readingPaused = false;
    this.#socket?.resume();
  }

  /**
   * Nothing is taken from the socket until `readOn`, but by `drain`: no room is made in it.
   * Returns whether room was made since the last time, of which QEMU may not have made use yet.
   */
  leaveUnread(): boolean {
    const hasMadeRoom = this.#hasMadeRoom;
    this.#hasMadeRoom = false;
    this.#leftUnread = true;
    if (this.#socket !== undefined) stopReading(this.#socket);
    return hasMadeRoom;
  }

  readOn(): void {
    if (!this.#leftUnread) return;
    this.#leftUnread = false;
    if (this.#socket !== undefined) startReading(this.#socket);
  }

  /**
   * Hands out what QEMU has written until now, without going through the event loop. After QEMU answered `stop`,
   * that is everything the guest sent before it. Reads on although reading is paused: at most what fits into
   * the socket. What QEMU writes into the room that this makes stays where it is.
   */
  drain(): void {
    // What Node read before it was paused comes first; `read` hands it out as a 'data' event.
    while (this.#socket?.read() != null);
    const atFirst = this.#descriptor;
    let bytes = atFirst === undefined ? 0 : unreadBytes(atFirst);
    while (bytes > 0) {
      const fd = this.#descriptor;
      if (fd === undefined) return;
      const chunk = Buffer.allocUnsafe(bytes);
      const got = readSync(fd, chunk);
      assert(got > 0, 'what lies in a socket can be read');
      bytes -= got;
      this.#decode(chunk.subarray(0, got));
    }
  }

  /** Fence: from this moment nothing from this QEMU is looked at and nothing is sent to it, for good. */
  disconnect(): void {
    this.#listener = undefined;
    this.#server?.close();
    this.#server = undefined;
    this.#drop();
  }

  /** Disconnects and removes the socket file. */
  async close(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    this.disconnect();
    if (server !== undefined) await closeServer(server);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Asked anew each time: Node closes a descriptor before it says so, and the kernel gives its number away again. */
  get #descriptor(): number | undefined {
    return this.#socket === undefined ? undefined : descriptorOf(this.#socket);
  }

  #accept(socket: Socket): void {
    if (this.#socket !== undefined || this.#server === undefined) {
      socket.destroy();
      return;
    }
    this.#socket = socket;
    this.#decoder = this.framing.decoder();
    this.#error = undefined;
    socket.on('data', (chunk) => this.#decode(chunk));
    // A reset is no news: 'close' follows, and a QEMU that was killed is no error of the port.
    socket.on('error', () => {});
    socket.on('close', () => this.#onClosed(socket));
    if (!this.#readingPaused) socket.resume();
    if (this.#leftUnread) stopReading(socket);
    for (const resolve of this.#waiting.splice(0)) resolve();
    this.#listener?.onRoom();
  }

  #decode(chunk: Uint8Array): void {
    if (this.#descriptor === undefined) return;
    this.#hasMadeRoom = true;
    try {
      this.#decoder.push(chunk, (item) => this.#listener?.onItem(item));
    } catch (thrown) {
      if (!(thrown instanceof NetError)) throw thrown;
      // A stream that makes no sense cannot be found into again; the guest may have broken into QEMU.
      this.#error = thrown;
      this.#drop();
    }
  }

  readonly #onWritten = (): void => {
    if (this.canSend) this.#listener?.onRoom();
  };

  /** Forgets the connection at once; its 'close' event comes later. */
  #drop(): void {
    this.#socket?.destroy();
  }

  #onClosed(socket: Socket): void {
    assert(this.#socket === socket, 'one connection at a time');
    this.#socket = undefined;
    this.#listener?.onClosed(this.#error);
  }
}
