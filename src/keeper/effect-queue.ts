import type { ProtectionEffect } from '../shadow/protection.ts';

interface EffectQueueOptions {
  readonly carryOut: (effect: ProtectionEffect) => Promise<void> | void;
  /** Nobody knows how far it came. What waited is dropped: only a stop is carried out from here on. */
  readonly onFailed: (effect: ProtectionEffect, cause: unknown) => void;
}

/** Carries effects out one after the other, in the order in which they were decided. */
export class EffectQueue {
  readonly #options: EffectQueueOptions;
  #work: Promise<void> = Promise.resolve();
  #admitted: 'all' | 'stop' | 'none' = 'all';

  constructor(options: EffectQueueOptions) {
    this.#options = options;
  }

  push(effect: ProtectionEffect): void {
    this.#work = this.#work.then(() => this.#next(effect));
  }

  /** Nothing more is begun; what is under way is not waited for. */
  freeze(): void {
    this.#admitted = 'none';
  }

  /** What fails from here on does so because everything is being ended by force: it is no news. */
  get isFrozen(): boolean {
    return this.#admitted === 'none';
  }

  async #next(effect: ProtectionEffect): Promise<void> {
    if (this.#admitted === 'none' || (this.#admitted === 'stop' && effect.kind !== 'stop')) return;
    try {
      await this.#options.carryOut(effect);
    } catch (cause) {
      if (this.#admitted === 'all') this.#admitted = 'stop';
      this.#options.onFailed(effect, cause);
    }
  }
}
