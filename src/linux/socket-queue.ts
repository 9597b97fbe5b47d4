import { checked, libc } from './libc.ts';

const SIOCOUTQ = 0x5411;
const FIONREAD = 0x541b;

/** Bytes written to a socket that the other side has not read yet. On a Unix socket: with overhead, 0 means all read. */
export function unsentBytes(fd: number): number {
  return ask('ioctl SIOCOUTQ', fd, SIOCOUTQ);
}

/** Bytes that can be read from a socket at once. */
export function unreadBytes(fd: number): number {
  return ask('ioctl FIONREAD', fd, FIONREAD);
}

function ask(call: string, fd: number, request: number): number {
  const answer = new Int32Array(1);
  checked(call, libc.ioctl(fd, request, new Uint8Array(answer.buffer)));
  return answer[0] ?? 0;
}
