import type { TokenBucket } from '../base/token-bucket.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { LimitActuator } from './limit-actuator.ts';

/** What goes through all network cards of a VM, in both directions. They belong to the keeper, whichever QEMU acts. */
export class NetLimit implements LimitActuator {
  readonly #links: () => readonly GuestLink[];

  constructor(links: () => readonly GuestLink[]) {
    this.#links = links;
  }

  read(): number | null {
    return this.#pace.bytesPerSecond;
  }

  set(_: unknown, limit: number | null): number | null {
    const pace = this.#pace;
    // One that holds already goes on with what it owes.
    if (pace.bytesPerSecond !== limit) pace.limit(limit);
    return limit;
  }

  /** The same for all of them. @throws KeeperError KEEPER_LIMIT_IMPOSSIBLE */
  get #pace(): TokenBucket {
    const pace = this.#links().find((link) => link.carriesFrames)?.pace;
    if (pace !== undefined) return pace;
    throw new KeeperError('KEEPER_LIMIT_IMPOSSIBLE', 'it has no network card', {
      hint: 'Give it one in nics of its specification.',
    });
  }
}
