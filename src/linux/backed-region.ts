import { assert } from '../base/assert.ts';
import { MIB } from '../base/units.ts';
import { allocate, punchHole } from './file.ts';

/**
 * A part of a sparse file that is written through a mapping. What is written is backed before, so that lack of room is an
 * error here and not a SIGBUS later.
 */
export class BackedRegion {
  readonly startByte: number;
  readonly #fd: number;
  readonly #lengthBytes: number;
  readonly #keepBytes: number;
  #backedBytes = 0;

  /** `keepBytes`: so much stays backed between two uses. */
  constructor(
    fd: number,
    { startByte, lengthBytes, keepBytes }: { startByte: number; lengthBytes: number; keepBytes: number },
  ) {
    this.startByte = startByte;
    this.#fd = fd;
    this.#lengthBytes = lengthBytes;
    this.#keepBytes = keepBytes;
  }

  /** The first `lengthBytes` of it can be written. @throws LinuxError ENOSPC */
  back(lengthBytes: number): void {
    if (lengthBytes <= this.#backedBytes) return;
    assert(lengthBytes <= this.#lengthBytes, `${lengthBytes} bytes lie in a region of ${this.#lengthBytes}`);
    const target = Math.min(this.#lengthBytes, Math.ceil(lengthBytes / MIB) * MIB);
    allocate(this.#fd, this.startByte + this.#backedBytes, { lengthBytes: target - this.#backedBytes });
    this.#backedBytes = target;
  }

  /** Gives back what one large use took. */
  trim(): void {
    if (this.#backedBytes <= this.#keepBytes) return;
    punchHole(this.#fd, this.startByte + this.#keepBytes, {
      lengthBytes: this.#lengthBytes - this.#keepBytes,
    });
    this.#backedBytes = this.#keepBytes;
  }
}
