import type { Clock } from '../base/clock.ts';

/** Beats in the time after which a silent peer is taken for lost: a few may be late. */
const BEATS = 8;

export interface PeerPulseOptions {
  readonly clock: Clock;
  /** A peer that was not heard for so long is lost. */
  readonly timeoutMs: number;
  readonly beat: (beat: number) => void;
  /** Once. */
  readonly onSilent: (silentMs: number) => void;
}

/** Lets the other side know that this one lives, and notices when the other is silent. */
export class PeerPulse implements Disposable {
  readonly #options: PeerPulseOptions;
  #heardMs: number;
  #lookedMs: number;
  #beats = 0;
  #cancel: () => void = () => {};

  constructor(options: PeerPulseOptions) {
    this.#options = options;
    this.#heardMs = options.clock.nowMs();
    this.#lookedMs = this.#heardMs;
    this.#arrange();
  }

  /** Something came from the other side. */
  heard(): void {
    this.#heardMs = this.#options.clock.nowMs();
  }

  [Symbol.dispose](): void {
    this.#cancel();
  }

  #arrange(): void {
    const { clock, timeoutMs } = this.#options;
    this.#cancel = clock.after(timeoutMs / BEATS, () => this.#turn());
  }

  #turn(): void {
    const { clock, timeoutMs, beat, onSilent } = this.#options;
    const nowMs = clock.nowMs();
    // This process itself stood still, so that it could not have heard anything: what came meanwhile is read first.
    if (nowMs - this.#lookedMs > timeoutMs / 2) this.#heardMs += nowMs - this.#lookedMs;
    this.#lookedMs = nowMs;
    this.#heardMs = Math.min(this.#heardMs, nowMs);
    if (nowMs - this.#heardMs > timeoutMs) {
      onSilent(Math.round(nowMs - this.#heardMs));
      return;
    }
    this.#beats += 1;
    beat(this.#beats);
    this.#arrange();
  }
}
