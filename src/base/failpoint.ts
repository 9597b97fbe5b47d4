/**
 * Named places where a test may step in: kill a process, corrupt a file, hold everything up. Every step of
 * every protocol hits one. In production nobody is armed and a hit costs one map look-up.
 */
export class Failpoints {
  readonly #handlers = new Map<string, () => void | Promise<void>>();

  /** Runs `handler` at every hit of `name` until the returned function is called, or another one takes its place. */
  arm(name: string, handler: () => void | Promise<void>): () => void {
    this.#handlers.set(name, handler);
    return () => {
      if (this.#handlers.get(name) === handler) this.#handlers.delete(name);
    };
  }

  /** Synchronous where nobody is armed, so that hot paths do not pay for an empty turn of the event loop. */
  hit(name: string): void | Promise<void> {
    return this.#handlers.size === 0 ? undefined : this.#handlers.get(name)?.();
  }
}
