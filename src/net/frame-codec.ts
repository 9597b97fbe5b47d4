import { Buffer } from 'node:buffer';
import { assert } from '../base/assert.ts';
import type { Framing, ItemDecoder } from './framing.ts';
import { NetError } from './net-error.ts';

/** QEMU neither sends nor takes larger frames (`NET_BUFSIZE` in QEMU's include/net/net.h). */
export const FRAME_BYTES_MAX = 4096 + 65536;

const HEADER_BYTES = 4;

/** One frame as `-netdev stream` and passt want it: its length in 4 bytes, big-endian, then the frame. */
export function encodeFrame(frame: Uint8Array): Uint8Array {
  assert(frame.length > 0 && frame.length <= FRAME_BYTES_MAX, `a frame of ${frame.length} bytes is sendable`);
  const encoded = Buffer.allocUnsafe(HEADER_BYTES + frame.length);
  encoded.writeUInt32BE(frame.length, 0);
  encoded.set(frame, HEADER_BYTES);
  return encoded;
}

/**
 * Finds the frames in QEMU's byte stream, however it is split. A frame that lies whole in one chunk is handed
 * out as a view of that chunk, without a copy. Empty frames, which a guest can make QEMU send, are left out.
 * Never holds more than one frame. Throws `NET_FRAME_INVALID` for a length that QEMU would never send.
 */
export class FrameDecoder implements ItemDecoder {
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #headerFill = 0;
  #frame: Uint8Array | undefined;
  #frameFill = 0;

  push(chunk: Uint8Array, onItem: (frame: Uint8Array) => void): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#frame === undefined) {
        at = this.#takeHeader(chunk, at);
        if (this.#headerFill < HEADER_BYTES) return;
        this.#headerFill = 0;
        const frameBytes = this.#checkedLength();
        if (at + frameBytes <= chunk.length) {
          if (frameBytes > 0) onItem(chunk.subarray(at, at + frameBytes));
          at += frameBytes;
        } else {
          this.#frame = new Uint8Array(frameBytes);
          this.#frameFill = 0;
        }
      } else {
        at = this.#takeFrame(this.#frame, { chunk, at, onItem });
      }
    }
  }

  #takeHeader(chunk: Uint8Array, at: number): number {
    let next = at;
    while (this.#headerFill < HEADER_BYTES && next < chunk.length) {
      this.#header[this.#headerFill++] = chunk[next++] as number;
    }
    return next;
  }

  #checkedLength(): number {
    const frameBytes = this.#header.readUInt32BE(0);
    if (frameBytes <= FRAME_BYTES_MAX) return frameBytes;
    throw new NetError('NET_FRAME_INVALID', `no frame has ${frameBytes} bytes: this is no stream of frames`, {
      hint: `Frames have at most ${FRAME_BYTES_MAX} bytes. Check who else writes to the socket of this nic.`,
      facts: { frameBytes },
    });
  }

  #takeFrame(
    frame: Uint8Array,
    { chunk, at, onItem }: { chunk: Uint8Array; at: number; onItem: (frame: Uint8Array) => void },
  ): number {
    const part = chunk.subarray(at, at + frame.length - this.#frameFill);
    frame.set(part, this.#frameFill);
    this.#frameFill += part.length;
    if (this.#frameFill === frame.length) {
      this.#frame = undefined;
      onItem(frame);
    }
    return at + part.length;
  }
}

/** Ethernet frames over a stream socket. */
export const frameFraming: Framing = {
  kind: 'frames',
  inputChunkBytes: undefined,
  isFlushedWhileStopped: false,
  encode: encodeFrame,
  decoder: () => new FrameDecoder(),
};
