import { assert } from '../base/assert.ts';
import { checked, libc, viewOf } from './libc.ts';

const PROT_READ = 1;
const PROT_WRITE = 2;
const MAP_SHARED = 0x01;
const MAP_PRIVATE = 0x02;
const MAP_ANONYMOUS = 0x20;

/**
 * Memory mapped into this process: mmap(2). `bytes` shows it without a copy. Disposing detaches `bytes` and
 * every view made of its buffer on this thread, so that late access sees an empty array instead of crashing;
 * views made by other threads from `address` have to be gone before.
 */
export class Mapping implements Disposable {
  readonly address: number;
  readonly lengthBytes: number;
  readonly bytes: Uint8Array<ArrayBuffer>;

  private constructor(address: number, lengthBytes: number) {
    this.address = address;
    this.lengthBytes = lengthBytes;
    this.bytes = new Uint8Array(viewOf(address, lengthBytes));
  }

  /** Zeroed memory of our own, given by the kernel page by page as it is touched. */
  static anonymous(lengthBytes: number): Mapping {
    return Mapping.#map(lengthBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  }

  /**
   * The file itself, shared with whoever maps it. Reading a hole of a memory file through a mapping fills it:
   * read guest memory with `preadInto`. The descriptor may be closed afterwards.
   */
  static ofFile(fd: number, lengthBytes: number, options: { writable: boolean }): Mapping {
    const protection = options.writable ? PROT_READ | PROT_WRITE : PROT_READ;
    return Mapping.#map(lengthBytes, protection, MAP_SHARED, fd);
  }

  static #map(lengthBytes: number, protection: number, flags: number, fd: number): Mapping {
    assert(Number.isSafeInteger(lengthBytes) && lengthBytes > 0, `no mapping of ${lengthBytes} bytes`);
    return new Mapping(checked('mmap', libc.mmap(0, lengthBytes, protection, flags, fd, 0)), lengthBytes);
  }

  [Symbol.dispose](): void {
    if (this.bytes.buffer.detached) return;
    this.bytes.buffer.transfer();
    checked('munmap', libc.munmap(this.address, this.lengthBytes));
  }
}
