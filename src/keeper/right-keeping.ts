import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { GuestLink } from '../net/guest-link.ts';
import { isActing, type ProtectionEvent, type ProtectionState } from '../shadow/protection.ts';
import type { ActingRight } from './acting-right.ts';
import type { Instance } from './instance.ts';

export interface RightHolder {
  readonly log: Logger;
  readonly state: () => ProtectionState;
  readonly primary: () => Instance | undefined;
  readonly links: () => readonly GuestLink[];
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
  readonly dispatch: (event: ProtectionEvent) => void;
  /** The guest runs again after it stood still: its clock is behind. */
  readonly onGoesOn: () => void;
}

/**
 * Does what the right to act asks for: the VM stands still as long as the right has ended, and ends when another host has it.
 * What may leave is looked at elsewhere, for each frame.
 */
export class RightKeeping {
  readonly #right: ActingRight;
  readonly #vm: RightHolder;
  #isSuperseded = false;

  constructor(right: ActingRight, vm: RightHolder) {
    this.#right = right;
    this.#vm = vm;
  }

  /** From now on: the VM acts. */
  watch(): void {
    this.#right.watch({
      onEnded: () => this.#standStill(),
      onRegained: () => this.#goOn(),
      onSuperseded: () => this.#giveWay(),
      onSure: () => this.#releaseDue(),
      onDoubt: (what, forMs) => this.#vm.publish(`output-${what}`, { [`${what}Ms`]: forMs }),
      onStore: (contact, why) => {
        const facts = why === undefined ? undefined : { error: why };
        this.#vm.publish(contact === 'away' ? 'lease-store-away' : 'lease-store-back', facts);
      },
    });
  }

  /** Whether the guest may run. */
  get mayRun(): boolean {
    return !this.#right.hasEnded;
  }

  /** Another QEMU begins to act. What came before it has been seen to. */
  settle(): void {
    if (this.#isSuperseded) this.#giveWay();
    else if (!this.mayRun) this.#stopGuest();
  }

  #standStill(): void {
    this.#vm.publish('right-ended', { token: this.#right.token });
    // Its epochs would let the guest run; there is no shadow in sync, or the right would not end.
    if (this.#vm.state().phase === 'syncing') this.#vm.dispatch({ kind: 'shadow-lost' });
    if (isActing(this.#vm.state())) this.#stopGuest();
  }

  #goOn(): void {
    this.#vm.publish('right-regained', { token: this.#right.token });
    this.#releaseDue();
    const state = this.#vm.state();
    // Who saves its state lets it go on, or does not.
    if (!isActing(state) || state.phase === 'saving') return;
    this.#vm
      .primary()
      ?.machine.cont()
      .then(this.#vm.onGoesOn, (cause) => this.#fail(cause));
  }

  #releaseDue(): void {
    for (const link of this.#vm.links()) link.releaseDue();
  }

  #giveWay(): void {
    this.#isSuperseded = true;
    // Its shadow was told to act and is about to say that it does.
    const { phase } = this.#vm.state();
    if (phase !== 'fencing' && phase !== 'promoting') this.#vm.dispatch({ kind: 'superseded' });
  }

  #stopGuest(): void {
    this.#vm
      .primary()
      ?.machine.stop()
      .catch((cause) => this.#fail(cause));
  }

  /** Who watches the QEMU that acts notices as well. Nothing leaves meanwhile. */
  #fail(cause: unknown): void {
    this.#vm.log.warn('QEMU does not do what the right to act asks for', { error: messageOf(cause) });
  }
}
