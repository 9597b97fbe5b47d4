import koffi from 'koffi';
import { callFailed } from './linux-error.ts';

/**
 * The C library, called synchronously (about 0.25 µs a call). Addresses are plain numbers: user space lies
 * below 2^53 on every 64-bit Linux. A `Uint8Array` argument is passed as the address of its bytes, no copy.
 */
const library = koffi.load('libc.so.6');

const IOVEC = koffi.struct({ base: 'void *', lengthBytes: 'size_t' });

export const libc = {
  mmap: library.func('mmap', 'intptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']) as (
    address: number,
    lengthBytes: number,
    protection: number,
    flags: number,
    fd: number,
    offset: number,
  ) => number,
  munmap: library.func('munmap', 'int', ['uintptr_t', 'size_t']) as (
    address: number,
    lengthBytes: number,
  ) => number,
  pread: library.func('pread', 'intptr_t', ['int', 'uintptr_t', 'size_t', 'int64_t']) as PositionedTransfer,
  pwrite: library.func('pwrite', 'intptr_t', ['int', 'uintptr_t', 'size_t', 'int64_t']) as PositionedTransfer,
  /** pread with flags, into one buffer. */
  preadv2: library.func('preadv2', 'intptr_t', ['int', koffi.pointer(IOVEC), 'int', 'int64_t', 'int']) as (
    fd: number,
    place: { readonly base: Uint8Array; readonly lengthBytes: number },
    count: 1,
    fileOffset: number,
    flags: number,
  ) => number,
  read: library.func('read', 'intptr_t', ['int', 'void *', 'size_t']) as Transfer,
  write: library.func('write', 'intptr_t', ['int', 'void *', 'size_t']) as Transfer,
  lseek: library.func('lseek', 'int64_t', ['int', 'int64_t', 'int']) as (
    fd: number,
    offset: number,
    whence: number,
  ) => number,
  fallocate: library.func('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']) as (
    fd: number,
    mode: number,
    offset: number,
    lengthBytes: number,
  ) => number,
  fcntl: library.func('fcntl', 'int', ['int', 'int', 'int']) as (
    fd: number,
    command: number,
    argument: number,
  ) => number,
  /** fcntl with an argument in memory of ours. */
  fcntlAt: library.func('fcntl', 'int', ['int', 'int', 'void *']) as (
    fd: number,
    command: number,
    argument: Uint8Array,
  ) => number,
  flock: library.func('flock', 'int', ['int', 'int']) as (fd: number, operation: number) => number,
  poll: library.func('poll', 'int', ['void *', 'ulong', 'int']) as (
    pollfds: Uint8Array,
    count: number,
    timeoutMs: number,
  ) => number,
  clockGettime: library.func('clock_gettime', 'int', ['int', 'void *']) as (
    clock: number,
    timespec: Uint8Array,
  ) => number,
  eventfd: library.func('eventfd', 'int', ['uint', 'int']) as (initial: number, flags: number) => number,
  socketpair: library.func('socketpair', 'int', ['int', 'int', 'int', 'void *']) as (
    domain: number,
    type: number,
    protocol: number,
    fds: Uint8Array,
  ) => number,
  recvmsg: library.func('recvmsg', 'intptr_t', ['int', 'uintptr_t', 'int']) as (
    fd: number,
    msghdrAddress: number,
    flags: number,
  ) => number,
  socket: library.func('socket', 'int', ['int', 'int', 'int']) as (
    domain: number,
    type: number,
    protocol: number,
  ) => number,
  sendto: library.func('sendto', 'intptr_t', ['int', 'void *', 'size_t', 'int', 'void *', 'uint']) as (
    fd: number,
    bytes: Uint8Array,
    lengthBytes: number,
    flags: number,
    address: Uint8Array,
    addressBytes: number,
  ) => number,
  setsockopt: library.func('setsockopt', 'int', ['int', 'int', 'int', 'void *', 'uint']) as (
    fd: number,
    level: number,
    option: number,
    value: Uint8Array,
    valueBytes: number,
  ) => number,
  getsockopt: library.func('getsockopt', 'int', ['int', 'int', 'int', 'void *', 'void *']) as (
    fd: number,
    level: number,
    option: number,
    value: Uint8Array,
    valueBytes: Uint8Array,
  ) => number,
  /** 1 for an address that is one. */
  inetPton: library.func('inet_pton', 'int', ['int', 'str', 'void *']) as (
    family: number,
    text: string,
    bytes: Uint8Array,
  ) => number,
  setns: library.func('setns', 'int', ['int', 'int']) as (fd: number, type: number) => number,
  schedGetaffinity: library.func('sched_getaffinity', 'int', ['int', 'size_t', 'void *']) as AffinityCall,
  schedSetaffinity: library.func('sched_setaffinity', 'int', ['int', 'size_t', 'void *']) as AffinityCall,
  /** ioctl with an argument in memory of ours. */
  ioctl: library.func('ioctl', 'int', ['int', 'ulong', 'void *']) as (
    fd: number,
    request: number,
    argument: Uint8Array,
  ) => number,
  /** ioctl with a number, or the address of a structure, as its argument. */
  ioctlAt: library.func('ioctl', 'int', ['int', 'ulong', 'uintptr_t']) as (
    fd: number,
    request: number,
    argument: number,
  ) => number,
  /** For calls that older C libraries do not know by name. */
  syscall: library.func('syscall', 'long', ['long', 'long', 'long', 'long', 'long']) as (
    number: number,
    first: number,
    second: number,
    third: number,
    fourth: number,
  ) => number,
};

type PositionedTransfer = (fd: number, address: number, lengthBytes: number, fileOffset: number) => number;
type Transfer = (fd: number, buffer: Uint8Array, lengthBytes: number) => number;
type AffinityCall = (id: number, maskBytes: number, mask: Uint8Array) => number;

/** Numbers of system calls newer than the "unified" table (Linux 5.1) are the same on every architecture. */
export const SYS_PIDFD_SEND_SIGNAL = 424;
export const SYS_PIDFD_OPEN = 434;

/** The result of a call, or its errno as a LinuxError. */
export function checked(call: string, result: number, hint?: string): number {
  if (result !== -1) return result;
  throw callFailed(call, lastErrno(), hint === undefined ? {} : { hint });
}

/** Name of the errno that the last call left behind: `EAGAIN`. Ask before any other call is made. */
export function lastErrno(): string {
  return errnoName(koffi.errno());
}

export function errnoName(errno: number): string {
  return ERRNO_NAMES.get(errno) ?? `errno ${errno}`;
}

// Two names of one number: the first is the one that the manual pages use.
const ALIASES = new Set(['EWOULDBLOCK', 'EDEADLOCK', 'ENOTSUP']);
const ERRNO_NAMES = new Map(
  Object.entries(koffi.os.errno)
    .filter(([name]) => !ALIASES.has(name))
    .map(([name, number]) => [number, name]),
);

/** An ArrayBuffer over memory that the kernel mapped for us. Never unmap it while views are in use. */
export function viewOf(address: number, lengthBytes: number): ArrayBuffer {
  return koffi.view(BigInt(address), lengthBytes);
}
