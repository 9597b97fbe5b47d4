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

type Look = 'answers' | 'refuses' | 'silent';

/**
 * Another process that shows that it lives, as it is seen from here. Not every address that is known of its host has to lead to
 * it: what one that never did says is nothing.
 */
export class Presence {
  readonly #at: { readonly hosts: readonly string[]; readonly port: number };
  /** Addresses that led to it once. */
  readonly #led = new Set<string>();
  /** Those that refused while it was there for sure. */
  readonly #strayed = new Set<string>();

  constructor(at: { readonly hosts: readonly string[]; readonly port: number }) {
    this.#at = at;
  }

  /** While it is there for sure: finds out which addresses lead to it. */
  async meet(signal: AbortSignal): Promise<void> {
    await Promise.all(
      this.#at.hosts.map(async (host) => {
        if ((await this.#look(host, signal)) === 'refuses' && !signal.aborted) this.#strayed.add(host);
      }),
    );
  }

  /** True when it is there no more. False says nothing: it may be, or nobody answers at an address that led to it. */
  async isGone(signal: AbortSignal): Promise<boolean> {
    const { hosts } = this.#at;
    const looks = hosts.map((host) => ({ host, look: this.#look(host, signal) }));
    const telling = hosts.filter((host) =>
      this.#led.size > 0 ? this.#led.has(host) : !this.#strayed.has(host),
    );
    const found = Promise.withResolvers<boolean>();
    for (const { look } of looks) void look.then((seen) => seen === 'answers' && found.resolve(false));
    // One that says nothing may also give no answer at all.
    const told = looks.filter(({ host }) => telling.includes(host)).map(({ look }) => look);
    void Promise.all(told).then((seen) =>
      found.resolve(seen.length > 0 && seen.every((each) => each === 'refuses')),
    );
    return await found.promise;
  }

  async #look(host: string, signal: AbortSignal): Promise<Look> {
    const seen = await lookAt({ host, port: this.#at.port }, signal);
    if (seen === 'answers') this.#led.add(host);
    return seen;
  }
}

async function lookAt(at: { host: string; port: number }, signal: AbortSignal): Promise<Look> {
  const socket = connect({ ...at, signal });
  try {
    await once(socket, 'connect');
    return 'answers';
  } catch (thrown) {
    return errnoNameOf(thrown) === 'ECONNREFUSED' ? 'refuses' : 'silent';
  } finally {
    socket.on('error', () => {});
    socket.destroy();
  }
}
