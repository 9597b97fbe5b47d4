import type { Clock } from '../base/clock.ts';
import type { GuestClockStatus } from '../control/vm-status.ts';

/**
 * Keeps the guest's wall clock right. QEMU's virtual clock stands still in every pause, so the guest falls
 * behind by exactly the time it was paused; nothing inside the guest can notice. The keeper therefore sets the
 * guest's time through the guest agent: at least every `syncIntervalMs`, and sooner when the pauses since the
 * last time add up to `errorMaxMs`.
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
}

/** How long an unanswered reading is waited for before the next one replaces it. */
const ANSWER_TIMEOUT_MS = 5000;
const LINE_CHARS_MAX = 64 * 1024;

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
    this.#buffer += Buffer.from(bytes).toString('latin1');
    const lines = this.#buffer.split('\n');
    this.#buffer = (lines.pop() ?? '').slice(-LINE_CHARS_MAX);
    for (const line of lines) this.#answer(line);
  }

  status(): GuestClockStatus {
    return {
      errorMs: this.#errorMs,
      answeredAgoMs: this.#answeredMs === null ? null : this.#options.clock.nowMs() - this.#answeredMs,
      corrections: this.#corrections,
    };
  }

  /** Reads and sets the guest's time in one message: the reading shows the error that the setting corrects. */
  #sync(): void {
    const { clock, send, syncIntervalMs } = this.#options;
    this.#cancelNext();
    this.#cancelNext = clock.after(syncIntervalMs, () => this.#sync());
    this.#pausedMsSinceSync = 0;
    const nowMs = clock.nowMs();
    const wallMs = clock.wallMs();
    let message = '';
    if (this.#reading === undefined || nowMs - this.#reading.sentMs > ANSWER_TIMEOUT_MS) {
      const syncId = this.#nextSyncId++;
      this.#reading = { sentMs: nowMs, sentWallMs: wallMs, syncId, synced: false };
      message += `{"execute":"guest-sync","arguments":{"id":${syncId}}}\n{"execute":"guest-get-time"}\n`;
    }
    // Nanoseconds since 1970 do not fit a double: whole microseconds with three zeros are exact as text.
    message += `{"execute":"guest-set-time","arguments":{"time":${Math.round(wallMs * 1000)}000}}\n`;
    send(Buffer.from(message));
    this.#corrections += 1;
  }

  #answer(line: string): void {
    const value = returnedNumber(line);
    const reading = this.#reading;
    if (value === undefined || reading === undefined) return;
    if (!reading.synced) {
      if (value === reading.syncId) this.#reading = { ...reading, synced: true };
      return;
    }
    this.#reading = undefined;
    this.#answeredMs = this.#options.clock.nowMs();
    this.#errorMs = value / 1e6 - reading.sentWallMs;
  }
}

function returnedNumber(line: string): number | undefined {
  try {
    const message: unknown = JSON.parse(line.replace(/^\xff/, ''));
    if (typeof message !== 'object' || message === null || !('return' in message)) return undefined;
    return typeof message.return === 'number' ? message.return : undefined;
  } catch {
    return undefined;
  }
}
