/** What the thread that fills memory and the one that asked for it tell each other. */

/** Of the shared numbers. */
export const SHARED = { stop: 0, background: 1, filledChunks: 2, faults: 3, held: 4 } as const;
export const SHARED_BYTES = 5 * 4;

export interface FillWork {
  readonly path: string;
  readonly key: Uint8Array | undefined;
  readonly shared: SharedArrayBuffer;
}

export interface FillBegin {
  readonly userfaultfd: number;
  /** Where guest memory lies in the address space of QEMU. */
  readonly startAddress: number;
}

export type FillReport =
  | { readonly kind: 'ready' }
  /** `asked` are the chunks that the guest asked for, in that order. */
  | { readonly kind: 'done'; readonly asked: readonly number[] }
  /** The process whose memory it is has ended, or it was told to stop. */
  | { readonly kind: 'stopped' }
  | { readonly kind: 'failed'; readonly code: string | undefined; readonly message: string };
