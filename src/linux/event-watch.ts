import { fstatSync } from 'node:fs';
import koffi from 'koffi';
import { assert } from '../base/assert.ts';

/**
 * Calls `onReadable` on the event loop whenever `fd` (a socket, pipe, pidfd, eventfd or TAP) can be read or
 * was hung up, again and again until it is read empty; after an error of the descriptor itself only once.
 * One watch per descriptor at a time. Dispose it before the descriptor is closed. Keeps the process running
 * unless `keepsRunning` is false.
 */
export function watchReadable(
  fd: number,
  onReadable: () => void,
  options: { keepsRunning?: boolean } = {},
): Disposable {
  // The binding ends the whole process when the kernel refuses the descriptor.
  assert(!fstatSync(fd).isFile(), `files are always readable: no watch on descriptor ${fd}`);
  let watched = true;
  const handle = koffi.node.poll(fd, { readable: true }, () => {
    // Straight from libuv, promises that are settled here would wait for the next event: go through Node.
    setImmediate(() => {
      // Naming the handle here keeps it from being collected, which would end the watch unnoticed.
      if (watched && handle !== undefined) onReadable();
    });
  });
  if (options.keepsRunning === false) handle.unref();
  return {
    [Symbol.dispose]() {
      if (!watched) return;
      watched = false;
      handle.close();
    },
  };
}
