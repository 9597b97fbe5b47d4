import type { Clock } from '../base/clock.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type { Machine } from '../qemu/machine.ts';
import { QemuError } from '../qemu/qemu-error.ts';
import type { Instance } from './instance.ts';
import type { LimitActuator } from './limit-actuator.ts';

/** A guest that gives back no memory for so long will not. */
const PROGRESS_DEADLINE_MS = 2000;
/** Less than who ordered waits: orders come one after the other. */
const REACH_DEADLINE_MS = 15_000;
const LOOK_EVERY_MS = 20;

interface MemoryLimitOptions {
  readonly clock: Clock;
  readonly maxBytes: number;
  /** A shadow is wanted. */
  readonly isProtected: () => boolean;
}

/** What a guest may have of its memory: the rest is in its balloon, and no page of the host's. */
export class MemoryLimit implements LimitActuator {
  readonly #options: MemoryLimitOptions;

  constructor(options: MemoryLimitOptions) {
    this.#options = options;
  }

  async read({ machine }: Instance): Promise<number | null> {
    const { maxBytes } = this.#options;
    const actual = await actualBytes(machine.qmp);
    return actual >= maxBytes ? null : actual;
  }

  async set({ machine }: Instance, limit: number | null): Promise<number | null> {
    const { maxBytes, isProtected } = this.#options;
    if (isProtected() && limit !== null)
      throw new KeeperError(
        'KEEPER_LIMIT_IMPOSSIBLE',
        'a balloon takes pages from the guest unseen by the dirty log, and it is protected',
        { hint: 'Limit its memory by `memory` of its specification, or unprotect it.' },
      );
    if (limit !== null && limit > maxBytes)
      throw new KeeperError('KEEPER_LIMIT_REFUSED', `more than ${maxBytes} bytes, all of its memory`, {
        hint: 'Order less, or give it more memory in its specification.',
      });
    const value = limit ?? maxBytes;
    const before = await actualBytes(machine.qmp);
    // Also where it is there already: an order before may still wait for a driver that never came.
    await machine.qmp.execute('balloon', { value });
    if (before === value) return limit === maxBytes ? null : limit;
    await this.#untilReached(machine.qmp, { value, before });
    return limit === maxBytes ? null : limit;
  }

  /** The guest's driver does it, page by page. @throws KeeperError KEEPER_LIMIT_FAILED: it does not go on with it */
  async #untilReached(
    qmp: Machine['qmp'],
    { value, before }: { value: number; before: number },
  ): Promise<void> {
    const { clock } = this.#options;
    let nearest = Math.abs(before - value);
    const beganAtMs = clock.nowMs();
    let nearedAtMs = beganAtMs;
    while (nearest > 0) {
      await clock.sleep(LOOK_EVERY_MS);
      const actual = await actualBytes(qmp);
      const nowMs = clock.nowMs();
      // Only what comes nearer counts: a guest must not keep everybody waiting by going to and fro.
      if (Math.abs(actual - value) < nearest) nearedAtMs = nowMs;
      nearest = Math.min(nearest, Math.abs(actual - value));
      if (nowMs - nearedAtMs < PROGRESS_DEADLINE_MS && nowMs - beganAtMs < REACH_DEADLINE_MS) continue;
      throw new KeeperError('KEEPER_LIMIT_FAILED', `its guest came to ${actual} bytes and no further`, {
        hint: 'Look whether virtio_balloon is loaded in the guest, and what it uses.',
      });
    }
  }
}

/** @throws KeeperError KEEPER_LIMIT_IMPOSSIBLE */
async function actualBytes(qmp: Machine['qmp']): Promise<number> {
  try {
    return (await qmp.execute<{ readonly actual: number }>('query-balloon')).actual;
  } catch (thrown) {
    if (!(thrown instanceof QemuError) || thrown.facts.class !== 'DeviceNotActive') throw thrown;
    throw new KeeperError('KEEPER_LIMIT_IMPOSSIBLE', 'it has no balloon', {
      hint: 'Give it one: `qemu: {extraArgs: [-device, virtio-balloon-pci]}`; a protected VM cannot have any.',
      cause: thrown,
    });
  }
}
