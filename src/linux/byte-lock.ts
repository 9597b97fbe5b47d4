import { lastErrno, libc } from './libc.ts';
import { callFailed } from './linux-error.ts';

const F_OFD_SETLK = 37;
const F_WRLCK = 1;
/** struct flock of a 64-bit kernel: short type, short whence, long start, long length, int pid. */
const FLOCK_BYTES = 32;

/**
 * Locks bytes of a file for the open file alone, as programs do that agree on what they mean; false where another has any of
 * them. Gone when closed. The file has to be open for writing.
 */
export function tryLockBytes(fd: number, startByte: number, options: { lengthBytes: number }): boolean {
  const flock = Buffer.alloc(FLOCK_BYTES);
  flock.writeInt16LE(F_WRLCK, 0);
  flock.writeBigInt64LE(BigInt(startByte), 8);
  flock.writeBigInt64LE(BigInt(options.lengthBytes), 16);
  if (libc.fcntlAt(fd, F_OFD_SETLK, flock) === 0) return true;
  const errno = lastErrno();
  if (errno === 'EAGAIN' || errno === 'EACCES') return false;
  throw callFailed('fcntl F_OFD_SETLK', errno);
}
