import { KeeperError } from '../control/keeper-error.ts';
import type { Cgroup } from '../linux/cgroup.ts';
import type { Instance } from './instance.ts';
import type { LimitActuator } from './limit-actuator.ts';

/**
 * Processor time of the QEMU that acts, by quota and weight of its cgroup. Its keeper, which makes the epochs, is never in
 * there.
 */
export class CpuLimit implements LimitActuator {
  readonly #maxMillicores: number;

  /** `shareMax`: what its VM was given for good, in CPUs. */
  constructor({ shareMax }: { readonly shareMax: number | undefined }) {
    this.#maxMillicores = shareMax === undefined ? Number.POSITIVE_INFINITY : Math.round(shareMax * 1000);
  }

  read(instance: Instance): number | null {
    const share = groupOf(instance).cpuShare();
    return share === null ? null : Math.round(share * 1000);
  }

  /** Without a limit that was ordered, what its VM was given for good is left. */
  set(instance: Instance, limit: number | null): number | null {
    const group = groupOf(instance);
    if (limit !== null && limit > this.#maxMillicores)
      throw new KeeperError(
        'KEEPER_LIMIT_REFUSED',
        `more than ${this.#maxMillicores} millicores, its maximum`,
        {
          hint: 'Order less, or have the policy of its tenant changed.',
        },
      );
    const millicores = Math.min(limit ?? Number.POSITIVE_INFINITY, this.#maxMillicores);
    const held = Number.isFinite(millicores) ? millicores : null;
    group.setCpuShare(held === null ? null : held / 1000);
    group.setCpuWeight(limit === null ? null : limit / 1000);
    return held;
  }
}

/** @throws KeeperError KEEPER_LIMIT_IMPOSSIBLE */
function groupOf({ cgroup, pid }: Instance): Cgroup {
  if (cgroup?.has(pid)) return cgroup;
  throw new KeeperError('KEEPER_LIMIT_IMPOSSIBLE', 'its QEMU is in no cgroup of Understudy', {
    hint: 'See `understudy doctor`: the cpu controller of version 1 or 2 has to be mounted and writable.',
  });
}
