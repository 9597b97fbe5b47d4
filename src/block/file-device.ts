import { close, fdatasync, fstatSync, ftruncate, open, read, write } from 'node:fs';
import { promisify } from 'node:util';
import { assert } from '../base/assert.ts';
import { MIB } from '../base/units.ts';
import { tryLockBytes } from '../linux/byte-lock.ts';
import { dataExtents, punchHole, readCached, zeroRange } from '../linux/file.ts';
import { errnoNameOf, LinuxError } from '../linux/linux-error.ts';
import {
  appendExtent,
  type BlockDevice,
  type DiskExtent,
  type WriteOptions,
  type ZeroOptions,
} from './block-device.ts';

const openFile = promisify(open);
const syncFile = promisify(fdatasync);
const closeFile = promisify(close);
const resizeFile = promisify(ftruncate);

/** Bytes whose locks say what QEMU does with an image, and what it suffers others to do (block/file-posix.c). */
const QEMU_LOCK_AT = 100;
const QEMU_LOCK_BYTES = 200;
/** Longer reads go to another thread also when they are cached: to copy them takes longer than to ask. */
const CACHED_READ_BYTES_MAX = 64 * 1024;
/** Looked at in one question: in a file of many pieces it takes milliseconds. */
const EXTENT_SPAN_BYTES = 128 * MIB;
/** Written at a time where the file system cannot make zeros itself. */
const ZERO_STEP_BYTES = MIB;
/** Punched at a time on the main thread: a few microseconds where there is nothing, so that nobody waits long. */
const PUNCH_STEP_BYTES = 64 * MIB;

/**
 * A raw image. What the page cache has is read at once; all else runs on threads of libuv's pool, so that neither a slow
 * disk nor a flush holds up the process.
 */
export class FileDevice implements BlockDevice, AsyncDisposable {
  readonly fastZero = false;
  readonly #fd: number;
  #sizeBytes: number;
  #closed: Promise<void> | undefined;

  private constructor(fd: number, sizeBytes: number) {
    this.#fd = fd;
    this.#sizeBytes = sizeBytes;
  }

  /** @throws Error of Node: it cannot be opened */
  static async open(path: string, options: { readonly readOnly?: boolean } = {}): Promise<FileDevice> {
    const fd = await openFile(path, options.readOnly ? 'r' : 'r+');
    return new FileDevice(fd, fstatSync(fd).size);
  }

  /** An image without a byte, which was not there. @throws Error of Node: it cannot be made */
  static async create(path: string): Promise<FileDevice> {
    return new FileDevice(await openFile(path, 'wx+', 0o600), 0);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Before anything else uses it. That is on disk when this resolves. */
  async resize(sizeBytes: number): Promise<void> {
    if (sizeBytes !== this.#sizeBytes) await resizeFile(this.#fd, sizeBytes);
    this.#sizeBytes = sizeBytes;
    await this.flush();
  }

  /** Until it is closed nobody else may use the image, as far as they ask: QEMU and its tools do. False: somebody does. */
  tryLock(): boolean {
    return tryLockBytes(this.#fd, QEMU_LOCK_AT, { lengthBytes: QEMU_LOCK_BYTES });
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    this.#assertInside(offset, into.length);
    const cached = into.length <= CACHED_READ_BYTES_MAX ? readCached(this.#fd, into, offset) : undefined;
    if (cached === into.length) return DONE;
    return this.#transfer(read, { bytes: into, offset });
  }

  async write(offset: number, bytes: Uint8Array, { fua = false, onFree }: WriteOptions = {}): Promise<void> {
    this.#assertInside(offset, bytes.length);
    await this.#transfer(write, { bytes, offset });
    onFree?.();
    if (fua) await this.flush();
  }

  async zero(offset: number, lengthBytes: number, { mayPunch, fua = false }: ZeroOptions): Promise<void> {
    this.#assertInside(offset, lengthBytes);
    const make = mayPunch ? punchHole : zeroRange;
    for (let done = 0; done < lengthBytes; ) {
      const stepBytes = Math.min(PUNCH_STEP_BYTES, lengthBytes - done);
      try {
        make(this.#fd, offset + done, { lengthBytes: stepBytes });
      } catch (thrown) {
        if (!(thrown instanceof LinuxError && thrown.errnoName === 'EOPNOTSUPP')) throw thrown;
        await this.#writeZeros(offset + done, stepBytes);
      }
      done += stepBytes;
      if (done < lengthBytes) await turn();
    }
    if (fua) await this.flush();
  }

  trim(offset: number, lengthBytes: number, options: WriteOptions = {}): Promise<void> {
    return this.zero(offset, lengthBytes, { ...options, mayPunch: true });
  }

  flush(): Promise<void> {
    return syncFile(this.#fd);
  }

  extents(offset: number, lengthBytes: number): Promise<DiskExtent[]> {
    this.#assertInside(offset, lengthBytes);
    const endByte = offset + Math.min(lengthBytes, EXTENT_SPAN_BYTES);
    const found: DiskExtent[] = [];
    let at = offset;
    for (const data of dataExtents(this.#fd, { startByte: offset, endBytes: endByte })) {
      appendExtent(found, { lengthBytes: data.startByte - at, hole: true, zero: true });
      appendExtent(found, { lengthBytes: data.endByte - data.startByte, hole: false, zero: false });
      at = data.endByte;
    }
    appendExtent(found, { lengthBytes: endByte - at, hole: true, zero: true });
    return Promise.resolve(found);
  }

  close(): Promise<void> {
    this.#closed ??= closeFile(this.#fd);
    return this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #writeZeros(offset: number, lengthBytes: number): Promise<void> {
    const zeros = new Uint8Array(Math.min(ZERO_STEP_BYTES, lengthBytes));
    for (let done = 0; done < lengthBytes; done += zeros.length) {
      const bytes = zeros.subarray(0, Math.min(zeros.length, lengthBytes - done));
      await this.#transfer(write, { bytes, offset: offset + done });
    }
  }

  /** All of it: the kernel may do less at a time. */
  #transfer(call: PositionedCall, place: { bytes: Uint8Array; offset: number }): Promise<void> {
    const { bytes, offset } = place;
    return new Promise((resolve, reject) => {
      const step = (doneBytes: number) => {
        const left = bytes.length - doneBytes;
        call(this.#fd, bytes, doneBytes, left, offset + doneBytes, (failure, count) => {
          if (failure !== null && errnoNameOf(failure) !== 'EINTR') reject(failure);
          else if (failure === null && count === 0 && left > 0) reject(ended(offset + doneBytes));
          else if ((count ?? 0) < left) step(doneBytes + (count ?? 0));
          else resolve();
        });
      };
      step(0);
    });
  }

  #assertInside(offset: number, lengthBytes: number): void {
    const inside = offset >= 0 && lengthBytes >= 0 && offset + lengthBytes <= this.sizeBytes;
    assert(inside, `${lengthBytes} bytes at ${offset} lie outside of the disk`);
  }
}

const DONE = Promise.resolve();

type PositionedCall = (
  fd: number,
  bytes: Uint8Array,
  at: number,
  lengthBytes: number,
  position: number,
  callback: (failure: NodeJS.ErrnoException | null, count: number) => void,
) => void;

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function ended(at: number): LinuxError {
  return new LinuxError('LINUX_FILE_ENDED', `the image ends at byte ${at}`, {
    call: 'pread',
    errnoName: 'EIO',
    hint: 'Something else cut the image short: nothing but Understudy may touch it while a VM uses it.',
  });
}
