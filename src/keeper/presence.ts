import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { errnoNameOf } from '../linux/linux-error.ts';

export interface Presence extends Disposable {
  /** The same one at each address. */
  readonly port: number;
}

const SAME_PORT_TRIES = 20;

/**
 * Shows that this process lives, to whoever connects: they are sent away at once. When it has ended, however that came, its
 * kernel refuses them. To be stopped makes no difference.
 */
export async function openPresence(hosts: readonly string[]): Promise<Presence> {
  for (let tries = 1; ; tries += 1) {
    const servers: Server[] = [];
    const close = () => {
      for (const server of servers) server.close();
    };
    let port = 0;
    try {
      for (const host of hosts) {
        const server = await listen({ host, port });
        servers.push(server);
        port = (server.address() as AddressInfo).port;
      }
      return { port, [Symbol.dispose]: close };
    } catch (thrown) {
      close();
      // The port that was free at one address may be taken at the next one.
      if (servers.length === 0 || tries >= SAME_PORT_TRIES) throw thrown;
    }
  }
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
