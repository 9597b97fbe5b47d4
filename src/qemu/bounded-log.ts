import { closeSync, fstatSync, openSync, renameSync, writeSync } from 'node:fs';
import { MIB } from '../base/units.ts';

export interface BoundedLogOptions {
  /** The file is renamed to `PATH.1`, replacing the one before, when it would grow beyond this. */
  readonly bytesMax?: number;
}

/**
 * A log file that takes at most twice `bytesMax` on disk: a guest can make QEMU write to it without end.
 * Written synchronously, so that the last words before a crash are in it.
 */
export class BoundedLog implements Disposable {
  readonly #path: string;
  readonly #bytesMax: number;
  #fd: number;
  #bytes: number;

  constructor(path: string, { bytesMax = 8 * MIB }: BoundedLogOptions = {}) {
    this.#path = path;
    this.#bytesMax = bytesMax;
    this.#fd = openSync(path, 'a', 0o600);
    this.#bytes = fstatSync(this.#fd).size;
  }

  /** What comes after the end of the log is dropped. */
  append(text: string | Uint8Array): void {
    if (this.#fd < 0) return;
    const bytes = typeof text === 'string' ? Buffer.from(text) : text;
    if (this.#bytes + bytes.length > this.#bytesMax) this.#rotate();
    writeSync(this.#fd, bytes);
    this.#bytes += bytes.length;
  }

  [Symbol.dispose](): void {
    if (this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
  }

  #rotate(): void {
    closeSync(this.#fd);
    renameSync(this.#path, `${this.#path}.1`);
    this.#fd = openSync(this.#path, 'a', 0o600);
    this.#bytes = 0;
  }
}
