import type { PeerLink, PeerMessage } from './peer-link.ts';

/** What may be done to messages on their way. Undefined: it is lost. */
export type Tamper = (message: PeerMessage) => PeerMessage | undefined;

/** What a message costs that goes to the far end; it arrives when that is paid. */
export type Toll = (bytes: number) => void;

/**
 * The toll of a link that lets through so many bytes a second, and the time by which it does. What this thread computes takes
 * the CPU time that it takes, however busy the machine is; what the link carries advances the time without anybody waiting.
 */
export function computedLink(bytesPerSecond: number): { nowMs: () => number; toll: Toll } {
  let carriedMs = 0;
  return {
    nowMs: () => {
      const { user, system } = process.threadCpuUsage();
      return (user + system) / 1000 + carriedMs;
    },
    toll: (bytes) => {
      carriedMs += (bytes / bytesPerSecond) * 1000;
    },
  };
}

/** Two ends of a link within this process, for tests of what is said over one. Each end holds one message at a time. */
export function linkWithin(
  tamper: Tamper = (message) => message,
  toll: Toll = () => {},
): { near: PeerLink; far: PeerLink } {
  const near = new End();
  const far = new End();
  near.connect(far, (message) => {
    toll(message.body.length);
    return tamper(message);
  });
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

  get unacknowledgedBytes(): number {
    return this.#other?.heldBytes ?? 0;
  }

  get heldBytes(): number {
    return this.#queue.reduce((sum, { body }) => sum + body.length, 0);
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
