import { type IncomingMessage, type Server, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { type WebSocket, WebSocketServer } from 'ws';
import { assert } from '../base/assert.ts';
import { KIB } from '../base/units.ts';
import { ApiError } from './api-error.ts';

/** More than anybody types or pastes in one go; clients cut what is longer. */
export const MESSAGE_BYTES_MAX = 64 * KIB;
const KEY = /^[+/0-9A-Za-z]{22}==$/;

interface Upgrade {
  readonly socket: Socket;
  readonly response: ServerResponse;
  /** What had arrived behind the request already. */
  readonly head: Buffer;
}

/** An upgrade that Node is to hand to us; anything else is an ordinary request, whatever its headers say. */
export function isUpgrade({ method, url = '', headers }: IncomingMessage): boolean {
  return (
    method === 'GET' &&
    /^\/v1\/vms\/[^/?]+\/console(?:\?|$)/.test(url) &&
    headers.upgrade?.toLowerCase() === 'websocket'
  );
}

/**
 * Requests that want to become WebSockets. They take the way of all others, through the same hooks and checks, and are
 * refused like them; only what their handler accepts is upgraded.
 */
export class Upgrades {
  readonly #pending = new WeakMap<IncomingMessage, Upgrade>();
  readonly #acceptor = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: MESSAGE_BYTES_MAX,
  });

  /** `route` is what the server does with every request. */
  listenTo(server: Server, route: (request: IncomingMessage, response: ServerResponse) => void): void {
    server.on('upgrade', (request, _, head) => {
      const { socket } = request;
      // A client that goes away is nothing to report; `close` follows.
      socket.on('error', () => {});
      const response = new ServerResponse(request);
      // Node has let go of this connection: after a refusal nobody would read a second request from it.
      response.shouldKeepAlive = false;
      response.assignSocket(socket);
      response.once('finish', () => socket.destroySoon());
      this.#pending.set(request, { socket, response, head });
      route(request, response);
    });
  }

  /** @throws ApiError API_UPGRADE_REQUIRED, API_BAD_REQUEST, API_ORIGIN_REFUSED */
  ensureAcceptable(request: IncomingMessage): void {
    const { headers } = request;
    if (!this.#pending.has(request)) {
      throw new ApiError('API_UPGRADE_REQUIRED', 'this is spoken as WebSocket only', {
        hint: 'Connect with a WebSocket client, or use `understudy console`.',
      });
    }
    if (headers['sec-websocket-version'] !== '13' || !KEY.test(headers['sec-websocket-key'] ?? '')) {
      throw new ApiError('API_BAD_REQUEST', 'that is no opening handshake of WebSocket version 13');
    }
    refuseForeignOrigin(headers);
  }

  /**
   * Becomes a WebSocket, which `begin` has to listen to before it returns: the first messages may have come with the
   * request. `gone` is called instead when the client has left meanwhile.
   */
  accept(
    request: IncomingMessage,
    { begin, gone }: { begin: (socket: WebSocket) => void; gone: () => void },
  ): void {
    const upgrade = this.#pending.get(request);
    assert(upgrade !== undefined, 'what is accepted was found acceptable');
    this.#pending.delete(request);
    const { socket, response, head } = upgrade;
    response.detachSocket(socket);
    let begun = false;
    const closed = () => {
      if (!begun) gone();
    };
    if (socket.destroyed) {
      closed();
      return;
    }
    socket.once('close', closed);
    this.#acceptor.handleUpgrade(request, socket, head, (opened) => {
      begun = true;
      begin(opened);
    });
  }
}

/**
 * A page in a browser may open WebSockets to anywhere, with what the browser knows of that place (RFC 6455, 10.2).
 * Programs send no Origin.
 */
function refuseForeignOrigin({ origin, host }: IncomingMessage['headers']): void {
  if (origin === undefined || (URL.canParse(origin) && new URL(origin).host === host)) return;
  throw new ApiError('API_ORIGIN_REFUSED', 'a page of another origin may not open this', {
    hint: 'Open it from a page of this host, or from a program, which sends no Origin.',
  });
}
