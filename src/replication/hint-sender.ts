import type { Clock } from '../base/clock.ts';
import type { ReadHints } from '../block/read-hints.ts';
import { encodeHints, HINTS_MAX } from './disk-messages.ts';
import type { PeerLink } from './peer-link.ts';
import { MESSAGE } from './peer-messages.ts';

export interface HintSenderOptions {
  readonly link: PeerLink;
  /** In the order of the hello; undefined where nobody notes what is read. */
  readonly disks: readonly (ReadHints | undefined)[];
  /** Nothing of an epoch is on its way. */
  readonly isIdle: () => boolean;
  readonly clock: Clock;
}

/** A message of a few KiB each time at most: what is cut right after it waits for that. */
const INTERVAL_MS = 20;

/**
 * Tells the host of a shadow what the guest reads. Whatever is about epochs comes first: hints wait until the link has nothing
 * else to do, one message at a time, and are forgotten where that takes too long.
 */
export class HintSender implements Disposable {
  readonly #options: HintSenderOptions;
  #cancel: () => void = () => {};
  #isSending = false;
  #isOver = false;
  #sentBytes = 0;

  constructor(options: HintSenderOptions) {
    this.#options = options;
    for (const hints of options.disks) hints?.listen();
    this.#later();
  }

  /** Of disks, that hints were about. */
  get hintedBytes(): number {
    return this.#sentBytes;
  }

  [Symbol.dispose](): void {
    this.#isOver = true;
    this.#cancel();
    for (const hints of this.#options.disks) hints?.ignore();
  }

  #later(): void {
    this.#cancel = this.#options.clock.after(INTERVAL_MS, () => {
      this.#send();
      if (!this.#isOver) this.#later();
    });
  }

  #send(): void {
    const { link, disks, isIdle } = this.#options;
    if (this.#isSending || !isIdle()) return;
    let left = HINTS_MAX;
    const hints = disks.flatMap((found, disk) => {
      const ranges = left === 0 ? [] : (found?.take(left) ?? []);
      left -= ranges.length;
      return ranges.map((range) => ({ disk, ...range }));
    });
    if (hints.length === 0) return;
    this.#sentBytes += hints.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
    this.#isSending = true;
    // Lost with the link they are not missed.
    const done = () => {
      this.#isSending = false;
    };
    link.send(MESSAGE.diskHints, [encodeHints(hints)]).then(done, done);
  }
}
