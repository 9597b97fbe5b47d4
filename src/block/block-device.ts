/** Consecutive bytes of a disk that are of one kind. */
export interface DiskExtent {
  readonly lengthBytes: number;
  /** Nothing is kept for them. */
  readonly hole: boolean;
  /** They read as zeros. */
  readonly zero: boolean;
}

export interface WriteOptions {
  /** Resolve only when the bytes survive a loss of power. */
  readonly fua?: boolean;
  /**
   * Called once when the device needs the bytes no more: they may be used again then. A device that cannot tell leaves them
   * to the garbage collector.
   */
  readonly onFree?: (() => void) | undefined;
}

export interface ZeroOptions extends WriteOptions {
  /** The bytes may be given back to whatever holds them. */
  readonly mayPunch: boolean;
}

/**
 * A disk of any make. Ranges lie inside of it, whoever calls has checked that, and need not be aligned. Requests that run
 * at the same time have no order; one that begins after another has resolved sees what that one did. `flush` covers
 * whatever has resolved before it began, whoever asked for it. All reject with the errno name in an error's `code` or
 * `errnoName`.
 */
export interface BlockDevice {
  readonly sizeBytes: number;
  /** True where zeros never cost what writing them would. */
  readonly fastZero: boolean;
  read(offset: number, into: Uint8Array): Promise<void>;
  /** `bytes` belong to the device, also when it has resolved: do not use them again before `onFree`. */
  write(offset: number, bytes: Uint8Array, options?: WriteOptions): Promise<void>;
  zero(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void>;
  /** The content does not matter any more: it may read as anything that was there, or zeros. */
  trim(offset: number, lengthBytes: number, options?: WriteOptions): Promise<void>;
  flush(): Promise<void>;
  /** What lies there, in order and without gaps, from `offset` on; may end early, but is never empty. */
  extents(offset: number, lengthBytes: number): Promise<DiskExtent[]>;
  close(): Promise<void>;
}

/** Adds what follows, as a part of the last extent where it is of the same kind. */
export function appendExtent(extents: DiskExtent[], extent: DiskExtent): void {
  const last = extents.at(-1);
  if (last?.hole === extent.hole && last.zero === extent.zero) {
    extents[extents.length - 1] = { ...last, lengthBytes: last.lengthBytes + extent.lengthBytes };
  } else if (extent.lengthBytes > 0) extents.push(extent);
}
