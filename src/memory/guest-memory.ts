import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  realpathSync,
  rmSync,
  statSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { assert } from '../base/assert.ts';
import { formatBytes, MIB, PAGE_BYTES } from '../base/units.ts';
import {
  allocate,
  closeElsewhere,
  dataExtents,
  freeBytesOf,
  preadInto,
  punchHole,
  pwriteFrom,
} from '../linux/file.ts';
import { errnoNameOf, fromNodeError } from '../linux/linux-error.ts';
import type { Mapping } from '../linux/mapping.ts';
import { MemoryError } from './memory-error.ts';
import { mergeRuns, type PageRun, runOfBytes } from './page-runs.ts';

/** For which the kernel takes about a millisecond. */
const POPULATED_AT_ONCE_BYTES = 4 * MIB;

/** @throws MemoryError MEMORY_NO_ROOM when the file system of `directory` has less than `neededBytes` free. */
export function assertRoom(directory: string, neededBytes: number): void {
  const freeBytes = freeBytesOf(directory);
  if (freeBytes >= neededBytes) return;
  const mountPoint = mountPointOf(directory);
  const message = `${mountPoint} has ${formatBytes(freeBytes)} free, and the memory needs ${formatBytes(neededBytes)}`;
  throw new MemoryError('MEMORY_NO_ROOM', message, {
    facts: { directory, mountPoint, freeBytes, neededBytes },
    hint: `Stop another VM, give this one less memory, or enlarge it: mount -o remount,size=SIZE ${mountPoint}`,
  });
}

/** Where the file system of `directory` is mounted. */
function mountPointOf(directory: string): string {
  let path = realpathSync(directory);
  while (statSync(dirname(path)).dev === statSync(path).dev && path !== '/') path = dirname(path);
  return path;
}

/**
 * The memory of one VM as a file that QEMU maps shared (`memory-backend-file,share=on`). We never map it:
 * reading a hole through a mapping would fill it. Nor does any dirty log see what is written here: whoever
 * writes or discards pages of a VM that is protected marks them.
 */
export class GuestMemory implements Disposable, AsyncDisposable {
  readonly path: string;
  readonly fd: number;
  readonly sizeBytes: number;
  #disposed = false;

  private constructor(path: string, fd: number, sizeBytes: number) {
    this.path = path;
    this.fd = fd;
    this.sizeBytes = sizeBytes;
  }

  /**
   * Makes the file, all holes, for this user only. `path` is usually in /dev/shm.
   * @throws MemoryError MEMORY_NO_ROOM when the file system has less free than the VM may come to use,
   * MEMORY_EXISTS.
   */
  static create(path: string, sizeBytes: number): GuestMemory {
    assert(
      sizeBytes > 0 && sizeBytes % PAGE_BYTES === 0,
      `guest memory is whole pages, not ${sizeBytes} bytes`,
    );
    assertRoom(dirname(path), sizeBytes);
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
    const fd = openMemory(path, flags);
    try {
      ftruncateSync(fd, sizeBytes);
    } catch (thrown) {
      closeSync(fd);
      rmSync(path);
      throw fromNodeError('ftruncate', thrown, { facts: { path } });
    }
    return new GuestMemory(path, fd, sizeBytes);
  }

  /** @throws MemoryError MEMORY_MISSING. */
  static open(path: string): GuestMemory {
    const fd = openMemory(path, constants.O_RDWR);
    return new GuestMemory(path, fd, fstatSync(fd).size);
  }

  get pageCount(): number {
    return this.sizeBytes / PAGE_BYTES;
  }

  /** Bytes that the file really takes up. */
  residentBytes(): number {
    return fstatSync(this.fd).blocks * 512;
  }

  /** Pages that hold data. All others are holes, which read as zeros. */
  dataRuns(): PageRun[] {
    const extents = dataExtents(this.fd, { endBytes: this.sizeBytes });
    return mergeRuns(extents.map(({ startByte, endByte }) => runOfBytes(startByte, endByte - startByte)));
  }

  /** Copies the pages to `target`, one after the other, holes as zeros. Returns the number of bytes. */
  readRuns(runs: readonly PageRun[], target: Mapping, targetOffset = 0): number {
    let doneBytes = 0;
    for (const run of runs) {
      const { fileOffset, lengthBytes } = this.#bytesOf(run);
      preadInto(this.fd, target, { targetOffset: targetOffset + doneBytes, lengthBytes, fileOffset });
      doneBytes += lengthBytes;
    }
    return doneBytes;
  }

  /** The reverse of `readRuns`. Returns the number of bytes. */
  writeRuns(runs: readonly PageRun[], source: Mapping, sourceOffset = 0): number {
    let doneBytes = 0;
    for (const run of runs) {
      const { fileOffset, lengthBytes } = this.#bytesOf(run);
      pwriteFrom(this.fd, source, { sourceOffset: sourceOffset + doneBytes, lengthBytes, fileOffset });
      doneBytes += lengthBytes;
    }
    return doneBytes;
  }

  /**
   * Gives pages of the host to holes, from the first one on, until so many bytes of this memory have some. They still read as
   * zeros, so that no dirty log misses anything. In pieces: nothing else waits for long.
   * @throws LinuxError LINUX_CALL_FAILED (`ENOSPC`)
   */
  async populate(bytes: number): Promise<void> {
    assert(bytes <= this.sizeBytes, 'no more than there is');
    for (const { startByte, endByte } of this.#holes()) {
      for (let at = startByte; at < endByte; ) {
        const missingBytes = bytes - this.residentBytes();
        if (missingBytes <= 0) return;
        const lengthBytes = Math.min(POPULATED_AT_ONCE_BYTES, endByte - at, wholePages(missingBytes));
        allocate(this.fd, at, { lengthBytes });
        at += lengthBytes;
        await nextTurn();
        // The number of its descriptor may be another file's by now.
        if (this.#disposed) return;
      }
    }
  }

  #holes(): { startByte: number; endByte: number }[] {
    const holes: { startByte: number; endByte: number }[] = [];
    let at = 0;
    for (const { startByte, endByte } of dataExtents(this.fd, { endBytes: this.sizeBytes })) {
      if (startByte > at) holes.push({ startByte: at, endByte: startByte });
      at = endByte;
    }
    if (at < this.sizeBytes) holes.push({ startByte: at, endByte: this.sizeBytes });
    return holes;
  }

  /** Makes holes: the pages read as zeros and take up no memory. */
  discard(runs: readonly PageRun[]): void {
    for (const run of runs) {
      const { fileOffset, lengthBytes } = this.#bytesOf(run);
      punchHole(this.fd, fileOffset, { lengthBytes });
    }
  }

  discardAll(): void {
    this.discard([{ firstPage: 0, pageCount: this.pageCount }]);
  }

  /** Takes the name away; the memory lives on while QEMU or we have it open. No error when it is gone. */
  remove(): void {
    rmSync(this.path, { force: true });
  }

  #bytesOf({ firstPage, pageCount }: PageRun) {
    const inside = firstPage >= 0 && pageCount > 0 && firstPage + pageCount <= this.pageCount;
    assert(inside, `pages ${firstPage}+${pageCount} are outside of guest memory`);
    return { fileOffset: firstPage * PAGE_BYTES, lengthBytes: pageCount * PAGE_BYTES };
  }

  /** Closes the file and leaves it in place. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    closeSync(this.fd);
  }

  /** The same, without holding this thread up: large memory takes tens of milliseconds to go. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    await closeElsewhere(this.fd);
  }
}

function wholePages(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
}

function openMemory(path: string, flags: number): number {
  try {
    return openSync(path, flags, 0o600);
  } catch (thrown) {
    const errno = errnoNameOf(thrown);
    if (errno === 'EEXIST') {
      throw new MemoryError('MEMORY_EXISTS', `${path} is there already`, {
        facts: { path },
        hint: 'Another VM of this name runs, or one left it behind: stop that VM, or delete the file.',
      });
    }
    if (errno === 'ENOENT') {
      throw new MemoryError('MEMORY_MISSING', `there is no guest memory at ${path}`, {
        facts: { path },
        hint: 'The VM was stopped, or its directory is not mounted.',
      });
    }
    throw fromNodeError('open guest memory', thrown, { facts: { path } });
  }
}
