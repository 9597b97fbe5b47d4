import type { Clock } from '../base/clock.ts';

/**
 * Keeps the guest's wall clock right. QEMU's virtual clock stands still in every pause, so the guest falls
 * behind by exactly the time it was paused; nothing inside the guest can notice. The keeper therefore sets the
 * guest's time through the guest agent: at least every `syncIntervalMs`, and sooner when the pauses since the
 * last time add up to `errorMaxMs`.
 *
 * The channel speaks the QEMU guest agent's protocol: JSON lines `guest-get-time` (nanoseconds since 1970) and
 * `guest-set-time`. Replies pass the output gate like all that a guest sends, so they say when the guest's
 * clock was read by their own content, not by when they arrive.
 */
export interface GuestClockOptions {
  readonly clock: Clock;
  readonly syncIntervalMs: number;
  readonly errorMaxMs: number;
  /** Sends bytes to the guest agent. */
  readonly send: (bytes: Uint8Array) => void;
}

export interface GuestClockStatus {
  /** Guest minus host at the last reading, before it was corrected; null until the agent has answered once. */
  readonly errorMs: number | null;
  /** Since the agent's last answer; null if there was none. */
  readonly answeredAgoMs: number | null;
  readonly corrections: number;
}

/** How long an unanswered reading is waited for before the next one replaces it. */
const ANSWER_TIMEOUT_MS = 5000;
const LINE_BYTES_MAX = 64 * 1024;

export class GuestClock {
  readonly #options: GuestClockOptions;
  #pausedMsSinceSync = 0;
  #cancelNext: () => void = () => {};
  #running = false;
  /** Host time at which the outstanding reading was sent. */
  #asked: { readonly sentWallMs: number; readonly sentMs: number; readonly id: number } | undefined;
  #nextId = 1;
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

  /** Another QEMU acts now: it missed some time, and half a line from the old one means nothing. */
  notePromotion(): void {
    this.#asked = undefined;
    this.#buffer = '';
    if (this.#running) this.#sync();
  }

  /** Bytes from the guest agent; hostile input: bounded, and anything that is no answer of ours is passed over. */
  receive(bytes: Uint8Array): void {
    this.#buffer += Buffer.from(bytes).toString('latin1');
    for (let end = this.#buffer.indexOf('\n'); end >= 0; end = this.#buffer.indexOf('\n')) {
      this.#answer(this.#buffer.slice(0, end));
      this.#buffer = this.#buffer.slice(end + 1);
    }
    if (this.#buffer.length > LINE_BYTES_MAX) this.#buffer = '';
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
    const { clock, send } = this.#options;
    this.#cancelNext();
    this.#cancelNext = clock.after(this.#options.syncIntervalMs, () => this.#sync());
    this.#pausedMsSinceSync = 0;
    const lines: unknown[] = [];
    const nowMs = clock.nowMs();
    if (this.#asked === undefined || nowMs - this.#asked.sentMs > ANSWER_TIMEOUT_MS) {
      this.#asked = { sentWallMs: clock.wallMs(), sentMs: nowMs, id: this.#nextId };
      lines.push({ execute: 'guest-get-time', id: this.#nextId });
      this.#nextId += 1;
    }
    // Whole milliseconds times a million stay exact as text, not as a double.
    const time = `${Math.round(clock.wallMs())}000000`;
    const set = `{"execute":"guest-set-time","arguments":{"time":${time}}}\n`;
    send(Buffer.from(`${lines.map((line) => `${JSON.stringify(line)}\n`).join('')}${set}`));
    this.#corrections += 1;
  }

  #answer(line: string): void {
    let message: unknown;
    try {
      message = JSON.parse(line.replace(/^\xff/, ''));
    } catch {
      return;
    }
    if (typeof message !== 'object' || message === null || !('return' in message) || !('id' in message))
      return;
    const asked = this.#asked;
    if (asked === undefined || message.id !== asked.id || typeof message.return !== 'number') return;
    this.#asked = undefined;
    this.#answeredMs = this.#options.clock.nowMs();
    this.#errorMs = message.return / 1e6 - asked.sentWallMs;
  }
}
