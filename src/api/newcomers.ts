import type { Server } from 'node:https';
import type { Socket } from 'node:net';

/** Some handshakes at the same time, and some who only ask for health. Fewer than there may be connections. */
const NEWCOMERS_MAX = 1000;

/**
 * Connections over TLS on which nobody has shown yet who they are. There is room for so many; then the one that is here the
 * longest has to go. So strangers, however many and however slow, never take the room of those whom the host knows, and a
 * newcomer that the host would know gets in.
 */
export class Newcomers {
  readonly #max: number;
  /** The longest here first. */
  readonly #sockets = new Map<string, Socket>();

  constructor({ max = NEWCOMERS_MAX }: { max?: number } = {}) {
    this.#max = max;
  }

  get size(): number {
    return this.#sockets.size;
  }

  watch(server: Server): void {
    // Before the handshake: whoever never ends it is one of them.
    server.on('connection', (socket: Socket) => {
      const key = endsOf(socket);
      this.#sockets.set(key, socket);
      socket.once('close', () => {
        if (this.#sockets.get(key) === socket) this.#sockets.delete(key);
      });
      const [longest] = this.#sockets;
      if (longest === undefined || this.#sockets.size <= this.#max) return;
      this.#sockets.delete(longest[0]);
      longest[1].destroy();
    });
  }

  /** Whoever speaks on this connection is known. */
  known(socket: Socket): void {
    this.#sockets.delete(endsOf(socket));
  }
}

/** The same for a connection and for what TLS makes of it; no two that are open have the same. */
function endsOf({ localAddress, localPort, remoteAddress, remotePort }: Socket): string {
  return [localAddress, localPort, remoteAddress, remotePort].join(' ');
}
