import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { MemoryError } from '../memory/memory-error.ts';
import { QemuError } from '../qemu/qemu-error.ts';
import type { QmpEvent, QmpEventData } from '../qemu/qmp-events.ts';
import type { LossReason } from '../shadow/protection.ts';
import type { Instance } from './instance.ts';

export interface PrimaryWatchOptions {
  readonly clock: Clock;
  /** QEMU that does not answer for so long is taken for dead. */
  readonly hangTimeoutMs: number;
  /** Whether somebody else speaks with QEMU often enough to notice that it hangs. */
  readonly isBusy: () => boolean;
  readonly onLost: (reason: LossReason, facts: Readonly<Record<string, unknown>>) => void;
  /** What the guest did: SHUTDOWN or RESET. */
  readonly onGuestEvent: (event: QmpEvent) => void;
}

/** Notices when the QEMU that acts is gone, hangs, or its guest panics or ends. */
export class PrimaryWatch implements Disposable {
  readonly #instance: Instance;
  readonly #options: PrimaryWatchOptions;
  #cancelHeartbeat: () => void = () => {};
  #watching = true;
  #guestEnded = false;
  #guestPanicked = false;

  constructor(instance: Instance, options: PrimaryWatchOptions) {
    this.#instance = instance;
    this.#options = options;
  }

  /** The VM acts from now on, so that a loss is one. What has happened since its guest runs is told first. */
  begin(): void {
    const { machine } = this.#instance;
    const { process, qmp } = machine;
    void process.exited.then(({ code, signal }) => this.#lose('exited', { code, signal }));
    if (qmp.closed !== undefined) this.#lose('qmp-closed', { error: qmp.closed.message });
    qmp.onClosed((error) => this.#lose('qmp-closed', { error: error.message }));
    machine.onGuestEvent((event) => this.#watching && this.#onEvent(event));
    this.#awaitHeartbeat();
  }

  /** The guest powered off or panicked: it stands still for good and must not be continued. */
  get guestEnded(): boolean {
    return this.#guestEnded;
  }

  get guestPanicked(): boolean {
    return this.#guestPanicked;
  }

  [Symbol.dispose](): void {
    this.#watching = false;
    this.#cancelHeartbeat();
  }

  #lose(reason: LossReason, facts: Readonly<Record<string, unknown>>): void {
    if (this.#watching) this.#options.onLost(reason, facts);
  }

  #onEvent(event: QmpEvent): void {
    switch (event.name) {
      case 'GUEST_PANICKED':
        this.#guestEnded = true;
        this.#guestPanicked = true;
        this.#lose('panicked', {});
        return;
      case 'SHUTDOWN':
        // Somebody ended QEMU, with SIGTERM for one: it exits by itself, and that is a loss.
        if ((event.data as QmpEventData['SHUTDOWN']).guest !== true) return;
        this.#guestEnded = true;
        this.#options.onGuestEvent(event);
        return;
      case 'RESET':
        this.#options.onGuestEvent(event);
        return;
    }
  }

  #awaitHeartbeat(): void {
    this.#cancelHeartbeat = this.#options.clock.after(this.#options.hangTimeoutMs / 2, () => {
      this.#awaitHeartbeat();
      if (this.#options.isBusy()) return;
      this.#instance.machine
        .status()
        .catch((cause) => this.#lose(lossReasonOf(cause), { error: messageOf(cause) }));
    });
  }
}

/** Why a primary that failed in this way is taken for lost. */
export function lossReasonOf(cause: unknown): LossReason {
  if (cause instanceof QemuError && cause.code === 'QMP_DISCONNECTED') return 'qmp-closed';
  if (cause instanceof MemoryError && cause.code === 'MEMORY_PROCESS_GONE') return 'exited';
  return 'hung';
}
