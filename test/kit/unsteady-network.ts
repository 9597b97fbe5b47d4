import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

type Way = 'forth' | 'back';

/** TCP between two ends that can stop passing bytes on, or lose an end without a word, as networks do. */
export class UnsteadyNetwork implements AsyncDisposable {
  readonly #server: Server;
  readonly #targetPort: number;
  readonly #pairs: { readonly near: Socket; readonly far: Socket }[] = [];
  readonly #strays: Socket[] = [];
  readonly #blocked = new Set<Way>();
  readonly passedChunks: Record<Way, number> = { forth: 0, back: 0 };
  #onPass: () => void = () => {};
  #cutAfterBytes = Number.POSITIVE_INFINITY;

  private constructor(server: Server, targetPort: number) {
    this.#server = server;
    this.#targetPort = targetPort;
    server.on('connection', (near) => this.#carry(near));
  }

  static async to(targetPort: number): Promise<UnsteadyNetwork> {
    const server = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new UnsteadyNetwork(server, targetPort);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Nothing passes that way any more, not even an end. */
  block(...ways: Way[]): void {
    for (const way of ways) this.#blocked.add(way);
  }

  /** Whoever dialled, and whoever was dialled, hears that the connection is gone; by default both. New ones pass. */
  cut({ near = true, far = true } = {}): void {
    for (const pair of this.#pairs.splice(0)) {
      if (near) pair.near.resetAndDestroy();
      if (far) pair.far.resetAndDestroy();
      // Whoever does not hear of it goes on into the void.
      if (!near) this.#strays.push(pair.near.removeAllListeners('data').resume());
      if (!far) this.#strays.push(pair.far.removeAllListeners('data').resume());
    }
  }

  /** Cuts when so many bytes more have passed both ways together, in the middle of whatever that is. */
  cutAfter(bytes: number): void {
    this.#cutAfterBytes = bytes;
  }

  /** Resolves when so many more chunks have passed both ways. */
  async passes(chunks: number): Promise<void> {
    const { forth, back } = this.passedChunks;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#onPass = () => {
      const now = this.passedChunks;
      if (now.forth >= forth + chunks && now.back >= back + chunks) resolve();
    };
    await promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    for (const stray of this.#strays) stray.destroy();
    this.#server.close();
    await once(this.#server, 'close');
  }

  #carry(near: Socket): void {
    const far = connect({ port: this.#targetPort, host: '127.0.0.1', allowHalfOpen: true });
    this.#pairs.push({ near, far });
    this.#pass('forth', near, far);
    this.#pass('back', far, near);
  }

  #pass(way: Way, from: Socket, to: Socket): void {
    from.on('error', () => {});
    from.on('data', (chunk) => {
      if (this.#blocked.has(way)) return;
      const passed = chunk.subarray(0, this.#cutAfterBytes);
      to.write(passed);
      this.#cutAfterBytes -= chunk.length;
      if (this.#cutAfterBytes <= 0) {
        this.#cutAfterBytes = Number.POSITIVE_INFINITY;
        this.cut();
      }
      this.passedChunks[way] += 1;
      this.#onPass();
    });
    from.on('end', () => {
      if (!this.#blocked.has(way)) to.end();
    });
  }
}
