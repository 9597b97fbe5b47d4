import { once } from 'node:events';
import type { IncomingMessage, Server, ServerResponse } from 'node:http';
import type { Server as TlsServer } from 'node:https';
import type { Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Newcomers } from './newcomers.ts';
import { listenOnTls, type TlsListen, tlsServer } from './tls-listener.ts';
import { listenOnUnixSocket, type SocketAccess } from './unix-listener.ts';
import { HEADER_BYTES_MAX, type UnparsedRequests } from './unparsed-request.ts';
import { isUpgrade, Upgrades } from './upgrades.ts';

/** More than there may be readers of events, so that others get through. */
const CONNECTIONS_MAX = 4000;
const HANDSHAKE_MAX_MS = 10_000;
/** For a request to arrive whole. */
export const REQUEST_MAX_MS = 30_000;
/** Without a byte in either direction; longer than any request waits for a VM. */
export const SILENCE_MAX_MS = 180_000;
/** For answers that are under way when the server ends. */
const CLOSE_DEADLINE_MS = 5000;
/** Of both servers alike. */
export const HTTP_OPTIONS = { maxHeaderSize: HEADER_BYTES_MAX, shouldUpgradeCallback: isUpgrade };

export interface Places {
  readonly socketPath: string;
  /** Who may open it; by default the owner and the group of this process. */
  readonly socketAccess?: SocketAccess;
  /** Also for others than those of this machine. */
  readonly tls?: TlsListen | undefined;
}

interface ListenersOptions extends Places {
  /** Its own server listens on the unix socket, and routes what comes over TLS, too. */
  readonly app: FastifyInstance;
  readonly unparsed: UnparsedRequests;
  readonly newcomers: Newcomers;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Where the API listens: a unix socket, and an address for TLS if there is one. */
export class Listeners implements AsyncDisposable {
  readonly #options: ListenersOptions;
  readonly upgrades = new Upgrades();
  #tls: TlsServer | undefined;

  constructor(options: ListenersOptions) {
    this.#options = options;
    this.#limit(options.app.server);
  }

  /** `127.0.0.1:7443`, if it listens over TLS. */
  get tlsAddress(): string | undefined {
    const address = this.#tls?.address();
    return typeof address === 'object' && address !== null ? `${address.address}:${address.port}` : undefined;
  }

  /** Once the app is ready. @throws ApiError API_SOCKET_TAKEN, API_LISTEN_FAILED, API_TLS_UNUSABLE */
  async open(): Promise<void> {
    const { app, tls, socketPath, socketAccess, log } = this.#options;
    this.upgrades.listenTo(app.server, this.#route);
    if (tls !== undefined) await this.#openTls(tls);
    await listenOnUnixSocket(app.server, socketPath, socketAccess);
    app.server.on('error', (error) => log.error('API socket', { error: messageOf(error) }));
  }

  /** Lets the last answers out, closes and removes the socket. */
  async [Symbol.asyncDispose](): Promise<void> {
    const { app, clock } = this.#options;
    const servers = [app.server, this.#tls];
    const cancel = clock.after(CLOSE_DEADLINE_MS, () => {
      for (const server of servers) server?.closeAllConnections();
    });
    const tlsClosed = this.#tls?.listening ? once(this.#tls, 'close') : undefined;
    this.#tls?.close();
    this.#tls?.closeIdleConnections();
    await app.close();
    await tlsClosed;
    cancel();
  }

  /** The same app to whoever can say who they are. */
  async #openTls(listen: TlsListen): Promise<void> {
    const { unparsed, newcomers, log } = this.#options;
    const server = tlsServer(listen, {
      ...HTTP_OPTIONS,
      requestTimeout: REQUEST_MAX_MS,
      handshakeTimeout: HANDSHAKE_MAX_MS,
    });
    this.#tls = server;
    this.#limit(server);
    newcomers.watch(server);
    server.setTimeout(SILENCE_MAX_MS);
    server.on('request', this.#route);
    server.on('clientError', (error, socket) => unparsed.refuse(error, socket as Socket));
    this.upgrades.listenTo(server, this.#route);
    await listenOnTls(server, listen);
    server.on('error', (error) => log.error('API over TLS', { error: messageOf(error) }));
  }

  #limit(server: Server): void {
    server.maxConnections = CONNECTIONS_MAX;
    this.#options.unparsed.watch(server);
  }

  readonly #route = (request: IncomingMessage, response: ServerResponse): void =>
    this.#options.app.routing(request, response);
}
