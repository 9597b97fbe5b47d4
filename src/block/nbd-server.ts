import { createServer, type Server, type Socket } from 'node:net';
import { assert } from '../base/assert.ts';
import { systemClock } from '../base/clock.ts';
import { duplicate } from '../linux/file.ts';
import { descriptorOf } from '../linux/socket-descriptor.ts';
import { NbdConnection } from './nbd-connection.ts';
import type { NbdExport } from './nbd-negotiation.ts';
import { PayloadMemory } from './payload-memory.ts';

const CONNECTIONS_MAX = 64;
/** Only who runs the server, and root. */
const SOCKET_UMASK = 0o177;

export interface NbdServerOptions {
  readonly socketPath: string;
  readonly exports: readonly NbdExport[];
  /** Told of clients that break the protocol, and of disks that fail. */
  readonly onTrouble?: (thrown: unknown) => void;
}

/** Serves disks over NBD at a unix socket. The devices are not its own: whoever made them closes them afterwards. */
export class NbdServer implements AsyncDisposable {
  readonly #server: Server;
  readonly #connections = new Set<NbdConnection>();
  readonly #memory = new PayloadMemory(systemClock);
  #closing: Promise<void> | undefined;

  private constructor(options: NbdServerOptions) {
    const exports = new Map(options.exports.map((served) => [served.name, served]));
    assert(exports.size === options.exports.length, 'exports have different names');
    const onTrouble = options.onTrouble ?? (() => {});
    this.#server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, (accepted) => {
      if (this.#connections.size >= CONNECTIONS_MAX) {
        accepted.destroy();
        return;
      }
      try {
        const fd = takeOver(accepted);
        if (fd !== undefined) this.#serve(fd, { exports, memory: this.#memory, onTrouble });
      } catch (thrown) {
        onTrouble(thrown);
      }
    });
  }

  /** @throws Error of Node: the socket cannot be made, or something is at its path */
  static async listen(options: NbdServerOptions): Promise<NbdServer> {
    const served = new NbdServer(options);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    served.#server.once('error', reject);
    // The socket is made within this call, and is never wider open than this, not even for a moment.
    const umask = process.umask(SOCKET_UMASK);
    try {
      served.#server.listen(options.socketPath, resolve);
    } finally {
      process.umask(umask);
    }
    await promise;
    return served;
  }

  #serve(fd: number, options: ConstructorParameters<typeof NbdConnection>[1]): void {
    const connection = new NbdConnection(fd, options);
    this.#connections.add(connection);
    void connection.closed.then(() => this.#connections.delete(connection));
    // Accepted by the kernel before it was told to stop.
    if (this.#closing !== undefined) void connection.close();
  }

  /** Answers what was asked, then closes all connections and removes the socket. */
  close(): Promise<void> {
    this.#closing ??= (async () => {
      const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
      await Promise.all([...this.#connections].map((connection) => connection.close()));
      await closed;
      this.#memory[Symbol.dispose]();
    })();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** A socket that Node has accepted cannot be told where to read to; one that is made of a descriptor can. */
function takeOver(accepted: Socket): number | undefined {
  const fd = descriptorOf(accepted);
  try {
    return fd === undefined ? undefined : duplicate(fd);
  } finally {
    accepted.destroy();
  }
}
