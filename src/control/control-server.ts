import { createServer, type Server, type Socket } from 'node:net';
import { messageOf } from '../base/errors.ts';
import { ControlConnection, type ControlOptions } from './control-connection.ts';
import { KeeperError } from './keeper-error.ts';

const CONNECTIONS_MAX = 32;
const CLOSE_DEADLINE_MS = 1000;
const SOCKET_PATH_BYTES_MAX = 107;

/** Offers a keeper on a unix socket to its own user. */
export class ControlServer implements AsyncDisposable {
  readonly #server: Server;
  readonly #options: ControlOptions;
  readonly #connections = new Set<ControlConnection>();

  private constructor(options: ControlOptions) {
    this.#options = options;
    // A client may close its sending side and still wait for the answer.
    this.#server = createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket));
    this.#server.maxConnections = CONNECTIONS_MAX;
  }

  /** @throws KeeperError KEEPER_DIRECTORY_REFUSED */
  static async listen(path: string, options: ControlOptions): Promise<ControlServer> {
    const control = new ControlServer(options);
    const server = control.#server;
    try {
      if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
        throw new Error(`a socket's path has at most ${SOCKET_PATH_BYTES_MAX} bytes`);
      }
      const listening = new Promise<void>((resolve, reject) => {
        server.once('listening', resolve).once('error', reject);
      });
      // The mode has to be right from the first moment: `listen` binds before it returns.
      const umask = process.umask(0o177);
      try {
        server.listen(path);
      } finally {
        process.umask(umask);
      }
      await listening;
    } catch (cause) {
      throw new KeeperError('KEEPER_DIRECTORY_REFUSED', `cannot listen on ${path}: ${messageOf(cause)}`, {
        hint: 'Set UNDERSTUDY_RUN_DIR to a directory of yours with a short path.',
        cause,
      });
    }
    server.on('error', (error) => options.log.error('control socket', { error: messageOf(error) }));
    return control;
  }

  /** Ends the streams of events, lets the last answers out and closes. */
  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const connection of this.#connections) connection.finish();
    const cancel = this.#options.clock.after(CLOSE_DEADLINE_MS, () => {
      for (const connection of this.#connections) connection.drop();
    });
    await closed;
    cancel();
  }

  #accept(socket: Socket): void {
    const connection = new ControlConnection(socket, this.#options);
    this.#connections.add(connection);
    socket.once('close', () => this.#connections.delete(connection));
  }
}
