import { ConditionWaiters } from '../base/condition-waiters.ts';
import type { BlockDevice, DiskExtent, WriteOptions, ZeroOptions } from './block-device.ts';
import { BlockError } from './block-error.ts';

export interface DiskDoorOptions {
  /** Writes wait for what it returns. */
  readonly gate: () => Promise<void> | undefined;
  readonly onRead?: (offset: number, lengthBytes: number) => void;
}

/**
 * A disk as one QEMU has it. Once it is closed nothing of that QEMU reaches the disk any more, whatever had arrived from it:
 * another one may go on with the disk then.
 */
export class DiskDoor implements BlockDevice {
  readonly #disk: BlockDevice;
  readonly #gate: () => Promise<void> | undefined;
  readonly #onRead: (offset: number, lengthBytes: number) => void;
  readonly #changes = new ConditionWaiters();
  #inFlight = 0;
  #isClosed = false;

  constructor(disk: BlockDevice, { gate, onRead = () => {} }: DiskDoorOptions) {
    this.#disk = disk;
    this.#gate = gate;
    this.#onRead = onRead;
  }

  get sizeBytes(): number {
    return this.#disk.sizeBytes;
  }

  get fastZero(): boolean {
    return this.#disk.fastZero;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    this.#onRead(offset, into.length);
    return this.#enter(() => this.#disk.read(offset, into));
  }

  write(offset: number, bytes: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#change(() => this.#disk.write(offset, bytes, options));
  }

  zero(offset: number, lengthBytes: number, options: ZeroOptions): Promise<void> {
    return this.#change(() => this.#disk.zero(offset, lengthBytes, options));
  }

  trim(offset: number, lengthBytes: number, options?: WriteOptions): Promise<void> {
    return this.#change(() => this.#disk.trim(offset, lengthBytes, options));
  }

  flush(): Promise<void> {
    return this.#enter(() => this.#disk.flush());
  }

  extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    return this.#enter(() => this.#disk.extents(offset, lengthBytes));
  }

  /** Resolves when the last request that had come through has ended. The disk stays open. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#changes.check();
    await this.#changes.until(() => this.#inFlight === 0);
  }

  async #change(work: () => Promise<void>): Promise<void> {
    for (let gate = this.#gate(); gate !== undefined && !this.#isClosed; gate = this.#gate()) {
      await Promise.race([gate, this.#changes.until(() => this.#isClosed)]);
    }
    await this.#enter(work);
  }

  async #enter<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#isClosed) {
      throw new BlockError('BLOCK_DISK_CLOSED', 'the disk is closed to this QEMU', {
        hint: 'Nothing: another QEMU of the VM goes on, or the VM has ended.',
      });
    }
    this.#inFlight += 1;
    try {
      return await work();
    } finally {
      this.#inFlight -= 1;
      this.#changes.check();
    }
  }
}
