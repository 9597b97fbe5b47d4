import type { PeerLink, PeerMessage } from './peer-link.ts';

/** What may be done to messages on their way. Undefined: it is lost. */
export type Tamper = (message: PeerMessage) => PeerMessage | undefined;

/** Two ends of a link within this process, for tests of what is said over one. Each end holds one message at a time. */
export function linkWithin(tamper: Tamper = (message) => message): { near: PeerLink; far: PeerLink } {
  const near = new End();
  const far = new End();
  near.connect(far, tamper);
  far.connect(near, (message) => message);
  return { near, far };
}

class End implements PeerLink {
  readonly #closed = Promise.withResolvers<Error | undefined>();
  readonly #queue: PeerMessage[] = [];
  #arrived = Promise.withResolvers<void>();
  #taken = Promise.withResolvers<void>();
  #isClosed = false;
  #other: End | undefined;
  #tamper: Tamper = (message) => message;

  get closed(): Promise<Error | undefined> {
    return this.#closed.promise;
  }

  connect(other: End, tamper: Tamper): void {
    this.#other = other;
    this.#tamper = tamper;
  }

  async send(type: number, parts: readonly Uint8Array[]): Promise<void> {
    if (this.#isClosed) throw new Error('the link is closed');
    const message = this.#tamper({ type, body: Buffer.concat(parts) });
    if (message !== undefined) await this.#other?.deliver(message);
  }

  async deliver(message: PeerMessage): Promise<void> {
    while (this.#queue.length > 0 && !this.#isClosed) await this.#taken.promise;
    this.#queue.push(message);
    this.#arrived.resolve();
  }

  async *messages(): AsyncGenerator<PeerMessage> {
    for (;;) {
      const message = this.#queue.shift();
      if (message !== undefined) {
        this.#taken.resolve();
        this.#taken = Promise.withResolvers();
        yield message;
      } else if (this.#isClosed) {
        return;
      } else {
        this.#arrived = Promise.withResolvers();
        await this.#arrived.promise;
      }
    }
  }

  forgo(): void {}

  renew(): void {}

  close(reason?: Error): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#closed.resolve(reason);
    this.#arrived.resolve();
    this.#taken.resolve();
    this.#other?.close(new Error('the other end closed the link'));
  }
}
