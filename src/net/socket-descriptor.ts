import type { Socket } from 'node:net';

/**
 * The descriptor of a socket, to ask the kernel about its queues; undefined once it is closed. The one place
 * that looks below Node's sockets: there is no public way. The package brings its own Node along, so that
 * this does not change underneath.
 */
export function descriptorOf(socket: Socket): number | undefined {
  const fd = (socket as unknown as { _handle: { readonly fd: number } | null })._handle?.fd;
  return fd === undefined || fd < 0 ? undefined : fd;
}
