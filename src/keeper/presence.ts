import { once } from 'node:events';
import { type AddressInfo, connect, createServer } from 'node:net';
import { errnoNameOf } from '../linux/linux-error.ts';

export interface Presence extends Disposable {
  readonly port: number;
}

/**
 * Shows that this process lives, to whoever connects: they are sent away at once. When it has ended, however that came, its
 * kernel refuses them. To be stopped makes no difference.
 */
export async function openPresence(host: string): Promise<Presence> {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.destroy();
  });
  // For lack of descriptors: who asks is not answered, and knows nothing.
  server.on('error', () => {});
  server.listen({ host, port: 0 });
  await once(server, 'listening');
  server.unref();
  const { port } = server.address() as AddressInfo;
  return { port, [Symbol.dispose]: () => void server.close() };
}

/** True when nobody is there any more. False says nothing: somebody may be, or nobody answers. */
export async function isGone(at: { host: string; port: number }, signal: AbortSignal): Promise<boolean> {
  const socket = connect({ ...at, signal });
  try {
    await once(socket, 'connect');
    return false;
  } catch (thrown) {
    return errnoNameOf(thrown) === 'ECONNREFUSED';
  } finally {
    socket.on('error', () => {});
    socket.destroy();
  }
}
