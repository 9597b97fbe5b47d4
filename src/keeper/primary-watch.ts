import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import { MemoryError } from '../memory/memory-error.ts';
import { QemuError } from '../qemu/qemu-error.ts';
import type { QmpEvent, QmpEventData } from '../qemu/qmp-events.ts';
import type { LossReason } from '../shadow/protection.ts';
import type { Instance } from './instance.ts';

type Facts = Readonly<Record<string, unknown>>;

export interface PrimaryWatchOptions {
  readonly clock: Clock;
  /** QEMU that does not answer for so long is silent: its shadow takes over, if one is in sync. */
  readonly hangTimeoutMs: number;
  /** One with nobody behind it is given up when it does not answer for so long: its memory is lost with it. */
  readonly restartTimeoutMs: number;
  /** Whether somebody else speaks with QEMU often enough to notice that it hangs. */
  readonly isBusy: () => boolean;
  /** Whether a shadow takes over when it is lost now. */
  readonly hasHeir: () => boolean;
  readonly onLost: (reason: LossReason, facts: Facts) => void;
  /** It does not answer, and may do so yet. */
  readonly onSilent: (facts: Facts) => void;
  /** It answers again: what came of its silence is to be put right. */
  readonly revive: (facts: { readonly isRunning: boolean }) => Promise<void>;
  readonly onRevived: (facts: { readonly silentMs: number }) => void;
  /** What the guest did: SHUTDOWN or RESET. */
  readonly onGuestEvent: (event: QmpEvent) => void;
}

/** Notices when the QEMU that acts is gone, hangs, or its guest panics or ends. */
export class PrimaryWatch implements Disposable {
  readonly #instance: Instance;
  readonly #options: PrimaryWatchOptions;
  #cancelHeartbeat: () => void = () => {};
  #watching = true;
  #isSilent = false;
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

  /** Somebody who spoke with it failed. */
  noteFailure(cause: unknown): void {
    const reason = lossReasonOf(cause);
    const facts = { error: messageOf(cause) };
    if (reason !== 'hung' || this.#options.hasHeir()) this.#lose(reason, facts);
    else if (this.#watching) this.#noteSilent(facts);
  }

  /** It does not answer, and has not been given up. */
  get isSilent(): boolean {
    return this.#watching && this.#isSilent;
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

  #lose(reason: LossReason, facts: Facts): void {
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
      if (this.#isSilent || this.#options.isBusy()) return;
      this.#instance.machine.status().catch((cause) => this.noteFailure(cause));
    });
  }

  /** Asks once more, and waits for the answer: QEMU gives it as soon as it can, and in the order of all that it was told. */
  #noteSilent(facts: Facts): void {
    if (this.#isSilent) return;
    this.#isSilent = true;
    const { clock, hangTimeoutMs, restartTimeoutMs, onSilent } = this.#options;
    const { machine } = this.#instance;
    const sinceMs = machine.qmp.lastHeardMs;
    const deadlineMs = Math.max(1, restartTimeoutMs - hangTimeoutMs);
    onSilent({ ...facts, silentMs: clock.nowMs() - sinceMs });
    machine.status({ deadlineMs }).then(
      ({ running }) => this.#revive({ isRunning: running, sinceMs }),
      (cause) => this.#lose(lossReasonOf(cause), { error: messageOf(cause) }),
    );
  }

  async #revive({ isRunning, sinceMs }: { isRunning: boolean; sinceMs: number }): Promise<void> {
    if (!this.#watching) return;
    const { clock, revive, onRevived } = this.#options;
    try {
      await revive({ isRunning });
      this.#isSilent = false;
      if (this.#watching) onRevived({ silentMs: clock.nowMs() - sinceMs });
    } catch (cause) {
      this.#isSilent = false;
      this.noteFailure(cause);
    }
  }
}

/** Why a primary that failed in this way is taken for lost. */
function lossReasonOf(cause: unknown): LossReason {
  if (cause instanceof QemuError && cause.code === 'QMP_DISCONNECTED') return 'qmp-closed';
  if (cause instanceof MemoryError && cause.code === 'MEMORY_PROCESS_GONE') return 'exited';
  return 'hung';
}
