import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { errnoNameOf } from '../linux/linux-error.ts';
import { type OpenPort, openSamePort } from './same-port.ts';

/**
 * Shows that this process lives, to whoever connects: they are sent away at once. When it has ended, however that came, its
 * kernel refuses them. To be stopped makes no difference.
 */
export async function openPresence(hosts: readonly string[]): Promise<OpenPort> {
  return await openSamePort(hosts, {
    port: 0,
    open: async (at) => {
      const server = await listen(at);
      const { port } = server.address() as AddressInfo;
      return { port, [Symbol.dispose]: () => void server.close() };
    },
  });
}

async function listen(at: { host: string; port: number }): Promise<Server> {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.destroy();
  });
  server.listen(at);
  await once(server, 'listening');
  // For lack of descriptors: who asks is not answered, and knows nothing.
  server.on('error', () => {});
  server.unref();
  return server;
}

/** True when nobody is there any more. False says nothing: somebody may be, or nobody answers at any of the addresses. */
export async function isGone(
  { hosts, port }: { hosts: readonly string[]; port: number },
  signal: AbortSignal,
): Promise<boolean> {
  const looks = hosts.map((host) => isRefused({ host, port }, signal));
  const found = Promise.withResolvers<boolean>();
  // One address may give no answer at all where another one gives it at once.
  for (const look of looks) void look.then((isRefusal) => isRefusal && found.resolve(true));
  void Promise.all(looks).then(() => found.resolve(false));
  return await found.promise;
}

async function isRefused(at: { host: string; port: number }, signal: AbortSignal): Promise<boolean> {
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
