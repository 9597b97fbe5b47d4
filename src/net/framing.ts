/** Takes a byte stream apart. Throws a `NetError` when the stream makes no sense; it is of no use afterwards. */
export interface ItemDecoder {
  push(chunk: Uint8Array, onItem: (item: Uint8Array) => void): void;
}

/**
 * How the items of a link (Ethernet frames, or pieces of a byte stream) travel over QEMU's socket.
 */
export interface Framing {
  readonly kind: 'frames' | 'bytes';
  /**
   * Undefined: items stay whole, and any number may be on their way to QEMU; what is delivered twice after a
   * failover does no harm, Ethernet allows it.
   * A number: input is cut into chunks of at most so many bytes, and the next one is handed over only once
   * QEMU has read the one before, so that at most one chunk can reach the guest twice.
   */
  readonly inputChunkBytes: number | undefined;
  /**
   * Whether QEMU keeps output that its socket had no room for, and hands it over when there is room: also while
   * the VM stands still, and for virtio-serial that writes guest memory. A nic completes or drops it at the stop.
   */
  readonly isFlushedWhileStopped: boolean;
  encode(item: Uint8Array): Uint8Array;
  decoder(): ItemDecoder;
}

/**
 * A byte channel: serial console, guest agent. Chunks are larger than a message of the guest agent, so that
 * what arrives twice is as a rule a whole message and not half of one.
 */
export const byteFraming: Framing = {
  kind: 'bytes',
  inputChunkBytes: 256,
  isFlushedWhileStopped: true,
  encode: (item) => item,
  decoder: () => ({ push: (chunk, onItem) => onItem(chunk) }),
};
