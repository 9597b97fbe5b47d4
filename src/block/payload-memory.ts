import type { Clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';

/** Larger ones are rare, and take longer to be filled than to be made. */
const LENT_BYTES_MAX = 2 * MIB;
/** What is kept for the next ones. */
const FREE_BYTES_MAX = 64 * MIB;
const IDLE_MS = 1000;

/**
 * Memory of large payloads, used again. New memory for each costs more than all that is done with it: the kernel has to
 * clear its pages, and the garbage collector marks all there is after every few of them. What was not asked for in some
 * time is given up.
 */
export class PayloadMemory implements Disposable {
  readonly #clock: Clock;
  readonly #free = new Map<number, ArrayBuffer[]>();
  #freeBytes = 0;
  #isUsed = false;
  #cancel: (() => void) | undefined;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get freeBytes(): number {
    return this.#freeBytes;
  }

  /** Holds anything. Not given back, it is left to the garbage collector. */
  take(lengthBytes: number): Buffer {
    if (lengthBytes > LENT_BYTES_MAX) return Buffer.allocUnsafeSlow(lengthBytes);
    this.#isUsed = true;
    const sizeBytes = roundedUp(lengthBytes);
    const memory = this.#free.get(sizeBytes)?.pop();
    if (memory === undefined) return Buffer.allocUnsafeSlow(sizeBytes).subarray(0, lengthBytes);
    this.#freeBytes -= sizeBytes;
    return Buffer.from(memory, 0, lengthBytes);
  }

  /** Nobody looks at what `take` returned any more. */
  give({ buffer: memory }: Buffer): void {
    const sizeBytes = memory.byteLength;
    if (!(memory instanceof ArrayBuffer) || sizeBytes > LENT_BYTES_MAX) return;
    // Of sizes that nobody asks for now, too.
    if (this.#freeBytes + sizeBytes > FREE_BYTES_MAX) this.#forget();
    const sameSize = this.#free.get(sizeBytes);
    if (sameSize === undefined) this.#free.set(sizeBytes, [memory]);
    else sameSize.push(memory);
    this.#freeBytes += sizeBytes;
    this.#cancel ??= this.#clock.after(IDLE_MS, () => this.#look());
  }

  [Symbol.dispose](): void {
    this.#cancel?.();
    this.#cancel = undefined;
    this.#forget();
  }

  #look(): void {
    this.#cancel = undefined;
    if (!this.#isUsed) this.#forget();
    else this.#cancel = this.#clock.after(IDLE_MS, () => this.#look());
    this.#isUsed = false;
  }

  #forget(): void {
    this.#free.clear();
    this.#freeBytes = 0;
  }
}

/** Few sizes, of which none is a quarter more than what is needed. */
function roundedUp(lengthBytes: number): number {
  const step = 2 ** Math.max(0, Math.floor(Math.log2(lengthBytes)) - 2);
  return Math.ceil(lengthBytes / step) * step;
}
