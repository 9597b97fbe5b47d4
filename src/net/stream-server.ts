import type { Server, Socket } from 'node:net';
import { MIB } from '../base/units.ts';
import type { StreamEnd } from './stream-end.ts';
import { closeServer, listenUnix } from './unix-server.ts';

const WATCHERS_MAX = 16;
/** A watcher that reads so much slower than the guest writes is sent away; the guest never waits for one. */
const UNREAD_BYTES_MAX = MIB;

/** Lets other processes, such as `understudy console`, watch a byte channel and type, through a unix socket. */
export class StreamServer implements AsyncDisposable {
  #server: Server | undefined;
  readonly #sockets = new Set<Socket>();

  private constructor() {}

  /** Mode 0600. Throws `NET_LISTEN_FAILED`. */
  static async listen(path: string, end: StreamEnd): Promise<StreamServer> {
    const streams = new StreamServer();
    streams.#server = await listenUnix(path, { onConnection: (socket) => streams.#accept(socket, end) });
    streams.#server.maxConnections = WATCHERS_MAX;
    return streams;
  }

  async close(): Promise<void> {
    const closed = this.#server === undefined ? undefined : closeServer(this.#server);
    this.#server = undefined;
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #accept(socket: Socket, end: StreamEnd): void {
    this.#sockets.add(socket);
    const client = end.connect({
      onOutput: (bytes) => {
        socket.write(bytes);
        if (socket.writableLength > UNREAD_BYTES_MAX) socket.destroy();
      },
      onRoom: () => socket.resume(),
    });
    socket.on('data', (bytes) => {
      if (!client.write(bytes)) socket.pause();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      client.close();
      this.#sockets.delete(socket);
    });
    socket.resume();
  }
}
