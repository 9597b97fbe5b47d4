import type { Clock } from '../base/clock.ts';
import type { GuestClockStatus } from '../control/vm-status.ts';

/**
 * Keeps the guest's wall clock right. QEMU's virtual clock stands still in every pause, so the guest falls
 * behind by exactly the time it was paused; nothing inside the guest can notice. The keeper therefore sets the
 * guest's time through the guest agent: at least every `syncIntervalMs`, and sooner when the pauses since the
 * last time add up to `errorMaxMs`.
 *
 * A time that is read late sets the guest's clock back. So the agent is asked first, and is given the time once it
 * has answered; as long as it has not read what was sent, nothing is sent to it.
 *
 * The channel speaks the QEMU guest agent's protocol (JSON lines), so that it works with qemu-ga in any
 * guest. Replies pass the output gate like all that a guest sends, so that they come late; what they say is
 * when the guest read its clock.
 */
export interface GuestClockOptions {
  readonly clock: Clock;
  readonly syncIntervalMs: number;
  readonly errorMaxMs: number;
  /** Sends bytes to the guest agent. */
  readonly send: (bytes: Uint8Array) => void;
  /** Whether something that was sent has not been read by the guest's side of the channel yet. */
  readonly hasUnreadInput?: () => boolean;
}

/** How long an unanswered reading is waited for before the next one replaces it; a later answer tells no error. */
const ANSWER_TIMEOUT_MS = 5000;
/** All that we ask for is answered by a number. */
const ANSWER = /^\xff?\s*\{\s*"return"\s*:\s*(-?\d{1,19})\s*\}\s*$/;
const LINE_CHARS_MAX = 256;

/** A reading under way: answers come in the order of the commands, and the sync id tells where ours begin. */
interface Reading {
  readonly sentMs: number;
  readonly sentWallMs: number;
  readonly syncId: number;
  readonly synced: boolean;
}

export class GuestClock {
  readonly #options: GuestClockOptions;
  #pausedMsSinceSync = 0;
  #cancelNext: () => void = () => {};
  #running = false;
  #reading: Reading | undefined;
  #nextSyncId = 1;
  #buffer = '';
  #errorMs: number | null = null;
  #answeredMs: number | null = null;
  #corrections = 0;

  constructor(options: GuestClockOptions) {
    this.#options = options;
  }

  start(): void {
    this.#running = true;
    this.#sync();
  }

  stop(): void {
    this.#running = false;
    this.#cancelNext();
  }

  /** The VM stood still for so long. */
  notePause(pausedMs: number): void {
    this.#pausedMsSinceSync += pausedMs;
    if (this.#running && this.#pausedMsSinceSync >= this.#options.errorMaxMs) this.#sync();
  }

  /** Another QEMU acts now: the guest missed some time, and half a line from the old one means nothing. */
  notePromotion(): void {
    this.#reading = undefined;
    this.#buffer = '';
    if (this.#running) this.#sync();
  }

  /** Bytes from the guest agent; hostile input: bounded, and anything that is no answer of ours is passed over. */
  receive(bytes: Uint8Array): void {
    const text = this.#buffer + Buffer.from(bytes).toString('latin1');
    let from = 0;
    for (let end = text.indexOf('\n'); end !== -1; end = text.indexOf('\n', from)) {
      if (end - from <= LINE_CHARS_MAX) this.#answer(text.slice(from, end));
      from = end + 1;
    }
    // One character more than a line may have: what grows too long stays too long.
    this.#buffer = text.slice(from, from + LINE_CHARS_MAX + 1);
  }

  status(): GuestClockStatus {
    return {
      errorMs: this.#errorMs,
      answeredAgoMs: this.#answeredMs === null ? null : this.#options.clock.nowMs() - this.#answeredMs,
      corrections: this.#corrections,
    };
  }

  /** Asks for the guest's time, so that its answer shows the error that is corrected then. */
  #sync(): void {
    const { clock, send, syncIntervalMs } = this.#options;
    this.#cancelNext();
    this.#cancelNext = clock.after(syncIntervalMs, () => this.#sync());
    if (this.#mustWait()) return;
    const syncId = this.#nextSyncId++;
    this.#reading = { sentMs: clock.nowMs(), sentWallMs: clock.wallMs(), syncId, synced: false };
    send(
      Buffer.from(`{"execute":"guest-sync","arguments":{"id":${syncId}}}\n{"execute":"guest-get-time"}\n`),
    );
  }

  #mustWait(): boolean {
    const { clock, hasUnreadInput } = this.#options;
    if (this.#reading !== undefined && clock.nowMs() - this.#reading.sentMs <= ANSWER_TIMEOUT_MS) return true;
    return hasUnreadInput?.() ?? false;
  }

  #setTime(): void {
    const { clock, send } = this.#options;
    // Nanoseconds since 1970 do not fit a double: whole microseconds with three zeros are exact as text.
    const time = `${Math.round(clock.wallMs() * 1000)}000`;
    send(Buffer.from(`{"execute":"guest-set-time","arguments":{"time":${time}}}\n`));
    this.#pausedMsSinceSync = 0;
    this.#corrections += 1;
  }

  #answer(line: string): void {
    const reading = this.#reading;
    const value = reading === undefined ? undefined : ANSWER.exec(line)?.[1];
    if (reading === undefined || value === undefined) return;
    if (!reading.synced) {
      if (Number(value) !== reading.syncId) return;
      this.#reading = { ...reading, synced: true };
      if (this.#running) this.#setTime();
      return;
    }
    this.#reading = undefined;
    const nowMs = this.#options.clock.nowMs();
    // Nobody knows when it was read in the time that an answer took.
    if (nowMs - reading.sentMs > ANSWER_TIMEOUT_MS) return;
    this.#answeredMs = nowMs;
    this.#errorMs = Number(value) / 1e6 - reading.sentWallMs;
  }
}
