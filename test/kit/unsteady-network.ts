import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';

type Way = 'forth' | 'back';

/** TCP between two ends that can stop passing bytes on, or lose an end without a word, as networks do. */
export class UnsteadyNetwork implements AsyncDisposable {
  readonly #server: Server;
  readonly #targetPort: number;
  readonly #pairs: { readonly near: Socket; readonly far: Socket }[] = [];
  readonly #blocked = new Set<Way>();
  readonly passedChunks: Record<Way, number> = { forth: 0, back: 0 };
  #onPass: () => void = () => {};

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

  /** Both ends hear that the connection is gone. */
  cut(): void {
    for (const { near, far } of this.#pairs) {
      near.resetAndDestroy();
      far.resetAndDestroy();
    }
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
      to.write(chunk);
      this.passedChunks[way] += 1;
      this.#onPass();
    });
    from.on('end', () => {
      if (!this.#blocked.has(way)) to.end();
    });
  }
}
