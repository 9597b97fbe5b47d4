import { close, statfsSync, statSync } from 'node:fs';
import { promisify } from 'node:util';
import { assert } from '../base/assert.ts';
import { checked, lastErrno, libc } from './libc.ts';
import { callFailed, fromNodeError, LinuxError } from './linux-error.ts';
import type { Mapping } from './mapping.ts';

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const F_DUPFD_CLOEXEC = 1030;
const FALLOC_FL_ZERO_RANGE = 16;
const RWF_NOWAIT = 8;
const LOCK_EX = 2;
const LOCK_NB = 4;

/** Bytes of a file, from `startByte` up to but not including `endByte`. */
export interface Extent {
  readonly startByte: number;
  readonly endByte: number;
}

interface ReadPlace {
  readonly targetOffset: number;
  readonly lengthBytes: number;
  readonly fileOffset: number;
}

interface WritePlace {
  readonly sourceOffset: number;
  readonly lengthBytes: number;
  readonly fileOffset: number;
}

/**
 * Reads exactly `lengthBytes`. A hole reads as zeros and, unlike through a mapping, stays a hole.
 * @throws LinuxError LINUX_FILE_ENDED when the file is shorter, LINUX_CALL_FAILED.
 */
export function preadInto(fd: number, target: Mapping, place: ReadPlace): void {
  const { targetOffset, lengthBytes, fileOffset } = place;
  assertInside(target, targetOffset, lengthBytes);
  for (let done = 0; done < lengthBytes; ) {
    const address = target.address + targetOffset + done;
    const count = libc.pread(fd, address, lengthBytes - done, fileOffset + done);
    if (count === -1 && lastErrno() === 'EINTR') continue;
    if (checked('pread', count) === 0) {
      throw new LinuxError('LINUX_FILE_ENDED', `the file ends at byte ${fileOffset + done}`, {
        call: 'pread',
        hint: 'Something else cut the file short: nothing but Understudy and QEMU may touch it.',
      });
    }
    done += count;
  }
}

/**
 * Reads what the page cache has, without waiting for a disk: the number of bytes, or undefined where nothing is there,
 * or the file system cannot tell.
 */
export function readCached(fd: number, into: Uint8Array, fileOffset: number): number | undefined {
  const count = libc.preadv2(fd, { base: into, lengthBytes: into.length }, 1, fileOffset, RWF_NOWAIT);
  return count > 0 ? count : undefined;
}

/** Writes exactly `lengthBytes`. @throws LinuxError LINUX_CALL_FAILED (`ENOSPC`, …). */
export function pwriteFrom(fd: number, source: Mapping, place: WritePlace): void {
  const { sourceOffset, lengthBytes, fileOffset } = place;
  assertInside(source, sourceOffset, lengthBytes);
  for (let done = 0; done < lengthBytes; ) {
    const address = source.address + sourceOffset + done;
    const count = libc.pwrite(fd, address, lengthBytes - done, fileOffset + done);
    if (count === -1 && lastErrno() === 'EINTR') continue;
    done += checked('pwrite', count);
  }
}

/**
 * Where a file has data, in order, from `startByte` (its beginning) up to `endBytes`. What lies between is holes. Moves the file offset of
 * `fd`, which nothing here reads by.
 */
export function dataExtents(
  fd: number,
  options: { readonly startByte?: number; readonly endBytes: number },
): Extent[] {
  const extents: Extent[] = [];
  for (let at = options.startByte ?? 0; at < options.endBytes; ) {
    const startByte = libc.lseek(fd, at, SEEK_DATA);
    if (startByte === -1) {
      const errno = lastErrno();
      if (errno === 'ENXIO') break; // no data behind `at`
      throw callFailed('lseek SEEK_DATA', errno);
    }
    if (startByte >= options.endBytes) break;
    const endByte = Math.min(
      checked('lseek SEEK_HOLE', libc.lseek(fd, startByte, SEEK_HOLE)),
      options.endBytes,
    );
    extents.push({ startByte, endByte });
    at = endByte;
  }
  return extents;
}

/** Gives the bytes back to the file system; they read as zeros. The file keeps its length. */
export function punchHole(fd: number, startByte: number, options: { lengthBytes: number }): void {
  const mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  checked('fallocate PUNCH_HOLE', libc.fallocate(fd, mode, startByte, options.lengthBytes));
}

/** The bytes read as zeros, and their room stays theirs. @throws LinuxError `EOPNOTSUPP`: not in this file system */
export function zeroRange(fd: number, startByte: number, options: { lengthBytes: number }): void {
  const mode = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
  checked('fallocate ZERO_RANGE', libc.fallocate(fd, mode, startByte, options.lengthBytes));
}

/**
 * Reserves room for the bytes, so that a later write through a mapping cannot end in SIGBUS. What is there
 * already stays. @throws LinuxError LINUX_CALL_FAILED (`ENOSPC`)
 */
export function allocate(fd: number, startByte: number, options: { lengthBytes: number }): void {
  checked('fallocate', libc.fallocate(fd, 0, startByte, options.lengthBytes));
}

/** Takes the lock that goes with the open file, or says that another holds it: flock(2). Gone when closed. */
export function tryLockExclusive(fd: number): boolean {
  if (libc.flock(fd, LOCK_EX | LOCK_NB) === 0) return true;
  const errno = lastErrno();
  if (errno === 'EAGAIN') return false;
  throw callFailed('flock', errno);
}

/** A second descriptor of the same open file, for this process only; the caller closes it. */
export function duplicate(fd: number): number {
  return checked('fcntl F_DUPFD_CLOEXEC', libc.fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

/**
 * Closes on another thread. The last one to close a removed memory file waits until the kernel has taken back all
 * of its pages, about 0.2 ms a MiB.
 */
export function closeElsewhere(fd: number): Promise<void> {
  return promisify(close)(fd);
}

/** Of `st_blocks`: stat(2). */
const STAT_BLOCK_BYTES = 512;

/** What a file takes up, without holes. 0 where there is none. */
export function allocatedBytesOf(path: string): number {
  return (statSync(path, { throwIfNoEntry: false })?.blocks ?? 0) * STAT_BLOCK_BYTES;
}

/** Bytes that this user may still write in the file system of `path`. */
export function freeBytesOf(path: string): number {
  try {
    const { bavail, bsize } = statfsSync(path);
    return bavail * bsize;
  } catch (thrown) {
    throw fromNodeError('statfs', thrown, { facts: { path } });
  }
}

function assertInside(mapping: Mapping, offset: number, lengthBytes: number): void {
  // The kernel would write past the mapping into memory of this process without a word.
  const inside = offset >= 0 && lengthBytes >= 0 && offset + lengthBytes <= mapping.lengthBytes;
  assert(
    inside && !mapping.bytes.buffer.detached,
    `${lengthBytes} bytes at ${offset} lie outside of the mapping`,
  );
}
