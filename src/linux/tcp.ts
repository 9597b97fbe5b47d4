import type { Socket } from 'node:net';
import { checked, libc } from './libc.ts';
import { descriptorOf } from './socket-descriptor.ts';

const IPPROTO_TCP = 6;
const TCP_USER_TIMEOUT = 18;

/**
 * What was sent and is not acknowledged for so long ends the connection with ETIMEDOUT, also when the other side keeps
 * its window shut: tcp(7). Without it the kernel tries for about a quarter of an hour. The socket has to be connected.
 */
export function setTcpUserTimeout(socket: Socket, timeoutMs: number): void {
  const fd = descriptorOf(socket);
  if (fd === undefined) return;
  const value = new Uint8Array(new Uint32Array([timeoutMs]).buffer);
  checked(
    'setsockopt TCP_USER_TIMEOUT',
    libc.setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, value, value.length),
  );
}

export function tcpUserTimeoutMs(socket: Socket): number | undefined {
  const fd = descriptorOf(socket);
  if (fd === undefined) return undefined;
  const value = new Uint32Array(1);
  const lengthBytes = new Uint8Array(new Uint32Array([value.byteLength]).buffer);
  const bytes = new Uint8Array(value.buffer);
  checked(
    'getsockopt TCP_USER_TIMEOUT',
    libc.getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, bytes, lengthBytes),
  );
  return value[0];
}
