import { closeSync, fstatSync, ftruncateSync, openSync, renameSync, writeSync } from 'node:fs';
import { messageOf } from '../base/errors.ts';
import { MIB } from '../base/units.ts';

export interface BoundedLogOptions {
  /** The file is renamed to `PATH.1`, replacing the one before, when it would grow beyond this. */
  readonly bytesMax?: number;
  /**
   * The line that tells of entries that could not be written, before the next one that can. Left out where entries
   * are numbered and only they are expected.
   */
  readonly lossNote?: (entries: number, reason: string) => string;
}

/**
 * A log file that takes at most twice `bytesMax` on disk: a guest can make QEMU write to it without end.
 * Written synchronously, so that the last words before a crash are in it. A log that cannot be written to, e.g. on
 * a full disk, loses entries; whoever writes to it goes on.
 */
export class BoundedLog implements Disposable {
  readonly #path: string;
  readonly #bytesMax: number;
  readonly #lossNote: BoundedLogOptions['lossNote'];
  /** Undefined while it could not be opened again. */
  #fd: number | undefined;
  #bytes: number;
  #disposed = false;
  #lost = { entries: 0, reason: '' };

  /** @throws what opening the file throws */
  constructor(path: string, { bytesMax = 8 * MIB, lossNote }: BoundedLogOptions = {}) {
    this.#path = path;
    this.#bytesMax = bytesMax;
    this.#lossNote = lossNote;
    this.#fd = openSync(path, 'a', 0o600);
    this.#bytes = fstatSync(this.#fd).size;
  }

  /** Never throws. An entry is written whole or not at all; what comes after the end of the log is dropped. */
  append(text: string | Uint8Array): void {
    if (this.#disposed) return;
    try {
      const entry = typeof text === 'string' ? Buffer.from(text) : text;
      this.#write(Buffer.concat([this.#note(), entry]));
      this.#lost.entries = 0;
    } catch (thrown) {
      this.#lost = { entries: this.#lost.entries + 1, reason: messageOf(thrown) };
    }
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    this.#close();
  }

  #note(): Buffer {
    const { entries, reason } = this.#lost;
    return Buffer.from(entries > 0 ? (this.#lossNote?.(entries, reason) ?? '') : '');
  }

  #write(bytes: Uint8Array): void {
    if (this.#bytes + bytes.length > this.#bytesMax) this.#rotate();
    this.#fd ??= openSync(this.#path, 'a', 0o600);
    const fd = this.#fd;
    try {
      // A disk that becomes full takes a part of it; the second write says why no more.
      for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
    } catch (thrown) {
      ftruncateSync(fd, this.#bytes);
      throw thrown;
    }
    this.#bytes += bytes.length;
  }

  #rotate(): void {
    this.#close();
    renameSync(this.#path, `${this.#path}.1`);
    this.#bytes = 0;
  }

  #close(): void {
    const fd = this.#fd;
    this.#fd = undefined;
    if (fd !== undefined) closeSync(fd);
  }
}

/** For logs of JSON lines. */
export function jsonLossNote(entries: number, reason: string): string {
  return `${JSON.stringify({ lostEntries: entries, reason })}\n`;
}
