import type { Socket } from 'node:net';

/**
 * The one place that looks below Node's sockets: there is no public way. The package brings its own Node along,
 * so that this does not change underneath.
 */
interface Handle {
  readonly fd: number;
  /** Whether Node believes that it reads. While that is true it does not begin to. */
  reading: boolean;
  readStop(): number;
  readStart(): number;
}

/** The descriptor of a socket, to ask the kernel about its queues; undefined once it is closed. */
export function descriptorOf(socket: Socket): number | undefined {
  const fd = handleOf(socket)?.fd;
  return fd === undefined || fd < 0 ? undefined : fd;
}

/**
 * From this moment Node takes nothing from the kernel, whatever is done to the socket meanwhile. `pause` is no
 * such thing: after it Node still reads until its own buffer is full.
 */
export function stopReading(socket: Socket): void {
  const handle = handleOf(socket);
  if (handle === null) return;
  handle.readStop();
  handle.reading = true;
}

/** Node reads on; a paused socket until its own buffer is full. */
export function startReading(socket: Socket): void {
  handleOf(socket)?.readStart();
}

function handleOf(socket: Socket): Handle | null {
  return (socket as unknown as { readonly _handle: Handle | null })._handle;
}
