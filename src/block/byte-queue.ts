import { assert } from '../base/assert.ts';

/** Bytes as they arrive, taken in pieces of the size that the reader needs. Copies only where a piece is spread. */
export class ByteQueue {
  readonly #chunks: Buffer[] = [];
  #lengthBytes = 0;

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  push(chunk: Buffer): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#lengthBytes += chunk.length;
  }

  /** The next `lengthBytes`, or undefined as long as there are fewer. They may be a view of what was pushed. */
  take(lengthBytes: number): Buffer | undefined {
    if (this.#lengthBytes < lengthBytes) return undefined;
    const first = this.#chunks[0];
    if (first !== undefined && first.length >= lengthBytes) return this.#takeFrom(first, lengthBytes);
    const bytes = Buffer.allocUnsafe(lengthBytes);
    this.takeInto(bytes);
    return bytes;
  }

  /** The next four bytes as a number, which stay where they are. */
  peekUint32(): number | undefined {
    if (this.#lengthBytes < 4) return undefined;
    const first = this.#chunks[0];
    if (first !== undefined && first.length >= 4) return first.readUInt32BE(0);
    const joined = Buffer.concat(this.#chunks);
    this.#chunks.splice(0, this.#chunks.length, joined);
    return joined.readUInt32BE(0);
  }

  /** Fills the target from its beginning with what is there, and returns how much that was. */
  takeInto(target: Uint8Array): number {
    let done = 0;
    while (done < target.length) {
      const first = this.#chunks[0];
      if (first === undefined) break;
      const part = this.#takeFrom(first, Math.min(first.length, target.length - done));
      target.set(part, done);
      done += part.length;
    }
    return done;
  }

  clear(): void {
    this.#chunks.length = 0;
    this.#lengthBytes = 0;
  }

  #takeFrom(first: Buffer, lengthBytes: number): Buffer {
    assert(lengthBytes <= first.length, 'no more is taken from a chunk than it has');
    this.#lengthBytes -= lengthBytes;
    if (lengthBytes === first.length) {
      this.#chunks.shift();
      return first;
    }
    this.#chunks[0] = first.subarray(lengthBytes);
    return first.subarray(0, lengthBytes);
  }
}
