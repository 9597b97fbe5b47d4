import { checked, lastErrno, libc } from './libc.ts';
import { callFailed } from './linux-error.ts';

const POLLIN = 1;
const POLLFD_BYTES = 8;
const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

/**
 * Waits until one of `fds` can be read, has been hung up or failed, and returns those. For worker threads:
 * the calling thread stands still. A negative timeout waits for ever. See poll(2).
 */
export function pollReadable(fds: readonly number[], timeoutMs: number): number[] {
  const pollfds = new DataView(new ArrayBuffer(fds.length * POLLFD_BYTES));
  for (const [index, fd] of fds.entries()) {
    pollfds.setInt32(index * POLLFD_BYTES, fd, true);
    pollfds.setInt16(index * POLLFD_BYTES + 4, POLLIN, true);
  }
  const count = libc.poll(new Uint8Array(pollfds.buffer), fds.length, timeoutMs);
  // A signal came first: nothing is ready, and the caller decides whether to wait again.
  if (count === -1 && lastErrno() === 'EINTR') return [];
  if (checked('poll', count) === 0) return [];
  return fds.filter((_, index) => pollfds.getInt16(index * POLLFD_BYTES + 6, true) !== 0);
}

/**
 * Reads once into `target`: the number of bytes, 0 at the end, undefined when nothing is there yet and `fd`
 * does not block. Without the exception that Node's own call makes of that case.
 */
export function readInto(fd: number, target: Uint8Array): number | undefined {
  return transferred('read', libc.read(fd, target, target.length));
}

/** Writes once from `source`: the number of bytes taken, undefined when `fd` would block. */
export function writeFrom(fd: number, source: Uint8Array): number | undefined {
  return transferred('write', libc.write(fd, source, source.length));
}

function transferred(call: string, count: number): number | undefined {
  if (count !== -1) return count;
  const errno = lastErrno();
  if (errno === 'EAGAIN' || errno === 'EINTR') return undefined;
  throw callFailed(call, errno);
}

/** A counter that wakes whoever polls it, also in another thread: eventfd(2). The caller closes it. */
export function openEventFd(): number {
  return checked('eventfd', libc.eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

export function signalEventFd(fd: number): void {
  // Would block only if the counter were full, and then the sleeper is being woken already.
  writeFrom(fd, ONE);
}

/** Makes it unreadable until the next signal. */
export function clearEventFd(fd: number): void {
  readInto(fd, new Uint8Array(8));
}

const ONE = new Uint8Array(new BigUint64Array([1n]).buffer);
