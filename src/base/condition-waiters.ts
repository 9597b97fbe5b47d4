/** Those who wait until something holds. Whoever changes what they look at calls `check`. */
export class ConditionWaiters {
  readonly #checks = new Set<() => void>();

  check(): void {
    for (const check of this.#checks) check();
  }

  async until(holds: () => boolean): Promise<void> {
    if (holds()) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const check = () => holds() && resolve();
    this.#checks.add(check);
    await promise.finally(() => this.#checks.delete(check));
  }
}
