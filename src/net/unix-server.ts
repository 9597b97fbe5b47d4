import { lchownSync, rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { messageOf } from '../base/errors.ts';
import { NetError } from './net-error.ts';

export interface UnixServerOptions {
  readonly onConnection: (socket: Socket) => void;
  /** Who may connect besides root, e.g. the user that QEMU runs as. */
  readonly owner?: { readonly uid: number; readonly gid: number } | undefined;
}

/**
 * Listens on a unix socket that only its owner may connect to. A socket file that an earlier process left
 * behind is replaced: one keeper per VM is made sure of elsewhere. Connections do not read until resumed.
 * Throws `NET_LISTEN_FAILED`.
 */
export async function listenUnix(path: string, { onConnection, owner }: UnixServerOptions): Promise<Server> {
  const server = createServer({ pauseOnConnect: true }, onConnection);
  const listening = new Promise<void>((resolve, reject) => {
    server.once('listening', resolve).once('error', reject);
  });
  try {
    rmSync(path, { force: true });
    // The mode has to be right from the first moment: `listen` binds before it returns.
    const umask = process.umask(0o177);
    try {
      server.listen(path);
    } finally {
      process.umask(umask);
    }
    await listening;
    // Of the socket itself: if somebody put a link in its place, what that points to stays whose it is.
    if (owner !== undefined) lchownSync(path, owner.uid, owner.gid);
    return server;
  } catch (cause) {
    server.close();
    throw new NetError('NET_LISTEN_FAILED', `cannot listen on ${path}: ${messageOf(cause)}`, {
      hint: 'Check that the folder exists, that it is writable and that the path has at most 107 bytes.',
      cause,
      facts: { path },
    });
  }
}

/** Ends when the last connection has ended; removes the socket file. */
export function closeServer(server: Server): Promise<void> {
  return new Promise((resolve) => server.close(() => resolve()));
}
