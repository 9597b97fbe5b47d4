/** Those who wait until something holds. Whoever changes what they look at calls `check`. */
export class ConditionWaiters {
  readonly #checks = new Set<() => void>();

  check(): void {
    for (const check of this.#checks) check();
  }

  /** Rejects with the signal's reason when it is aborted first. */
  async until(holds: () => boolean, signal?: AbortSignal): Promise<void> {
    if (holds()) return;
    signal?.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const check = () => holds() && resolve();
    const abort = () => reject(signal?.reason);
    this.#checks.add(check);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      await promise;
    } finally {
      this.#checks.delete(check);
      signal?.removeEventListener('abort', abort);
    }
  }
}
