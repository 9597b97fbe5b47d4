import type { FarEnd, FarEndStats } from './far-end.ts';

/** A nic whose cable is not plugged in: nothing arrives, output goes nowhere. */
export class NoUplink implements FarEnd {
  #refusedItems = 0;

  send(): void {
    this.#refusedItems += 1;
  }

  receive(): void {}
  pause(): void {}
  resume(): void {}

  async close(): Promise<void> {}

  stats(): FarEndStats {
    return { sentItems: 0, refusedItems: this.#refusedItems };
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
