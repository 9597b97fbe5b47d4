import { KeeperError } from '../control/keeper-error.ts';
import type { ProtectionState } from '../shadow/protection.ts';
import { admit } from './admission.ts';
import type { Instance } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { LimitActuator } from './limit-actuator.ts';
import type { MemoryArrival } from './memory-arrival.ts';
import { withShadow } from './shadow-wish.ts';

interface ReadyVm {
  readonly options: Pick<KeeperOptions, 'spec'>;
  readonly state: () => ProtectionState;
  readonly memory: Pick<MemoryArrival, 'isWhole'>;
}

/**
 * Guest memory that has pages of the host before its guest asks for them: then it does not wait for any when it needs them, and
 * a host that has too few says so now, instead of a SIGBUS. None are taken back as long as the VM lives.
 */
export class MemoryReadiness implements LimitActuator {
  readonly isLowerBound = true;
  readonly #vm: ReadyVm;

  constructor(vm: ReadyVm) {
    this.#vm = vm;
  }

  read({ memory }: Instance): number {
    return memory.residentBytes();
  }

  async set({ memory }: Instance, limit: number | null): Promise<number | null> {
    if (limit === null) return null;
    const { options, state } = this.#vm;
    if (limit > memory.sizeBytes)
      throw new KeeperError(
        'KEEPER_LIMIT_REFUSED',
        `more than ${memory.sizeBytes} bytes, all of its memory`,
        {
          hint: 'Order less, or give it more memory in its specification.',
        },
      );
    // A page that is there is not fetched from where it was saved.
    if (!this.#vm.memory.isWhole)
      throw new KeeperError('KEEPER_LIMIT_IMPOSSIBLE', 'its memory is still being restored from a snapshot', {
        hint: 'Wait for the event memory-whole.',
      });
    // Beyond what all VMs here were promised, this one's shadow and epochs included.
    admit(withShadow(options.spec, state().wanted), { runs: true });
    await memory.populate(limit);
    return limit;
  }
}
