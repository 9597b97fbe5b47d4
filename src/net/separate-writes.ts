import type { Socket } from 'node:net';

/** So many pieces that are written are held before what waits is copied. */
const FORGOTTEN_AT = 1024;

/**
 * Gives each piece to the kernel in a call of its own. Node would put all that waits into one, of which the kernel takes
 * as much as it has room for: the reader can come upon the stream while it ends within the head of a frame. passt
 * before 2024 throws those bytes away, takes what follows for the length of a frame, and the guest's network is gone for
 * good. A piece of up to 36 KiB is taken whole or not at all, a longer one in two parts, which passt puts together.
 */
export class SeparateWrites {
  readonly #socket: Socket;
  readonly #pump = () => this.#writeOn();
  #waiting: Uint8Array[] = [];
  /** What of `#waiting` is written already: to shift an array for each would take as long as it is long. */
  #written = 0;
  #waitingBytes = 0;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  /** What the kernel has not taken yet. */
  get waitingBytes(): number {
    return this.#socket.writableLength + this.#waitingBytes;
  }

  write(piece: Uint8Array): void {
    this.#waiting.push(piece);
    this.#waitingBytes += piece.length;
    this.#writeOn();
  }

  #writeOn(): void {
    // While it is 0, Node hands what it is given to the kernel at once.
    while (this.#socket.writableLength === 0 && !this.#socket.destroyed) {
      const piece = this.#waiting[this.#written];
      if (piece === undefined) break;
      this.#written += 1;
      this.#waitingBytes -= piece.length;
      this.#socket.write(piece, this.#pump);
    }
    if (this.#written < this.#waiting.length && this.#written < FORGOTTEN_AT) return;
    this.#waiting = this.#waiting.slice(this.#written);
    this.#written = 0;
  }
}
