import { once } from 'node:events';
import { chownSync, lstatSync, rmSync } from 'node:fs';
import { createConnection, type Server } from 'node:net';
import { messageOf } from '../base/errors.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { ApiError } from './api-error.ts';

const SOCKET_PATH_BYTES_MAX = 107;

/** Who may connect. */
export interface SocketAccess {
  /** 0o660: owner and group. */
  readonly mode: number;
  /** Undefined: that of this process. */
  readonly groupId: number | undefined;
}

const OWNER_AND_GROUP: SocketAccess = { mode: 0o660, groupId: undefined };

/**
 * Listens on a unix socket, by default of mode 0660. What a killed process left at `path` is replaced. Two that start
 * at the same time may both find a stale socket: the caller holds a lock against that.
 * @throws ApiError API_SOCKET_TAKEN, API_LISTEN_FAILED
 */
export async function listenOnUnixSocket(
  server: Server,
  path: string,
  { mode, groupId }: SocketAccess = OWNER_AND_GROUP,
): Promise<void> {
  try {
    if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
      throw new Error(`a socket's path has at most ${SOCKET_PATH_BYTES_MAX} bytes`);
    }
    await removeStaleSocket(path);
    const listening = once(server, 'listening');
    // The mode has to be right from the first moment: `listen` binds before it returns.
    const umask = process.umask(0o777 & ~mode);
    try {
      server.listen(path);
    } finally {
      process.umask(umask);
    }
    await listening;
    if (groupId !== undefined) chownSync(path, process.geteuid?.() ?? 0, groupId);
  } catch (cause) {
    if (cause instanceof ApiError) throw cause;
    throw new ApiError('API_LISTEN_FAILED', `cannot listen on ${path}: ${messageOf(cause)}`, {
      hint: 'Choose a path in a folder that exists and that the host may write to.',
      cause,
    });
  }
}

async function removeStaleSocket(path: string): Promise<void> {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  // Somebody's file is not ours to remove.
  if (!found.isSocket()) throw new Error('there is something that is no socket');
  const probe = createConnection(path);
  try {
    await once(probe, 'connect');
  } catch (thrown) {
    const errno = errnoNameOf(thrown);
    if (errno === 'ECONNREFUSED') rmSync(path, { force: true });
    if (errno === 'ECONNREFUSED' || errno === 'ENOENT') return;
    // EAGAIN: one that lives, with a full queue.
    if (errno !== 'EAGAIN') throw thrown;
  } finally {
    probe.destroy();
  }
  throw new ApiError('API_SOCKET_TAKEN', `another process listens on ${path}`, {
    hint: 'A host is running already: use it, or stop it first.',
    facts: { path },
  });
}
