import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';

/** A way to a server on which answers can be lost: requests arrive, and the connection is cut when the answer comes. */
export class AnswerThief implements AsyncDisposable {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #theft = Promise.withResolvers<void>();
  #isStealing = false;

  private constructor(target: URL) {
    this.#server = createServer((client) => {
      const server = connect(Number(target.port), target.hostname);
      this.#keep(client, server);
      this.#keep(server, client);
      client.pipe(server);
      server.on('data', (bytes) => {
        if (!this.#isStealing) client.write(bytes);
        else {
          client.destroy();
          this.#theft.resolve();
        }
      });
    });
  }

  static async inFrontOf(url: string): Promise<AnswerThief> {
    const thief = new AnswerThief(new URL(url));
    thief.#server.listen(0, '127.0.0.1');
    await once(thief.#server, 'listening');
    return thief;
  }

  get url(): string {
    const address = this.#server.address();
    if (address === null || typeof address === 'string') throw new Error('the thief does not listen');
    return `https://127.0.0.1:${address.port}`;
  }

  /** Resolves when the first answer was lost. */
  get stolen(): Promise<void> {
    return this.#theft.promise;
  }

  steal(): void {
    this.#isStealing = true;
  }

  relent(): void {
    this.#isStealing = false;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, 'close');
  }

  #keep(socket: Socket, other: Socket): void {
    this.#sockets.add(socket);
    socket.on('error', () => other.destroy());
    socket.on('close', () => {
      this.#sockets.delete(socket);
      other.destroy();
    });
  }
}
