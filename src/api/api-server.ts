import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Server as TlsServer } from 'node:https';
import type { Socket } from 'node:net';
import swagger from '@fastify/swagger';
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import { assert, InvariantViolation } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { isTrace } from '../base/trace.ts';
import { KIB, MIB } from '../base/units.ts';
import { type Answer, jsonOf, rawAnswer, replyWith } from './answer.ts';
import { ApiError } from './api-error.ts';
import { ApiMetrics } from './api-metrics.ts';
import { auditEntry, BEGUN, changesSomething, seesAudit } from './audit.ts';
import { Authentication, forbidden, forHostOnly, stranger } from './authentication.ts';
import { ConsoleSessions } from './console-sessions.ts';
import { EventStreams } from './event-streams.ts';
import { FailureBudget } from './failure-budget.ts';
import { type HandledId, handlers } from './handlers.ts';
import type { HostService, RequestContext } from './host-service.ts';
import { Idempotency, type KeyedRequest } from './idempotency.ts';
import { fastifyPath, fastifySchemaOf, PROBLEM_TYPE, swaggerOptions } from './openapi.ts';
import { keyOf, mayAct, type Principal, reachOf } from './principal.ts';
import { problemOf } from './problem.ts';
import { type Asked, type RouteId, routeOf, routes, takesKey } from './routes.ts';
import { listenOnTls, type TlsListen, tlsServer } from './tls-listener.ts';
import { listenOnUnixSocket, type SocketAccess } from './unix-listener.ts';
import { HEADER_BYTES_MAX, unparsedProblem } from './unparsed-request.ts';
import { isUpgrade, Upgrades } from './upgrades.ts';

/** A specification of the largest size, escaped for JSON, and what is around it. */
const BODY_BYTES_MAX = MIB + 128 * KIB;
/** More than there may be readers of events, so that others get through. */
const CONNECTIONS_MAX = 4000;
/** For a request to arrive whole. */
const REQUEST_MAX_MS = 30_000;
/** Without a byte in either direction; longer than any request waits for a VM. */
const SILENCE_MAX_MS = 180_000;
/** For answers that are under way when the server ends. */
const CLOSE_DEADLINE_MS = 5000;
const LOGGED_URL_CHARACTERS_MAX = 300;
const HTTP_OPTIONS = { maxHeaderSize: HEADER_BYTES_MAX, shouldUpgradeCallback: isUpgrade };
type AnyHandler = (
  service: HostService,
  asked: unknown,
  context: RequestContext,
) => ReturnType<(typeof handlers)[HandledId]>;

/** Of the text format of Prometheus. */
const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8';
const STORED_HEADERS = ['content-type', 'etag', 'location'];

export interface ApiServerOptions {
  readonly service: HostService;
  /** Also for others than those of this machine. */
  readonly tls?: TlsListen | undefined;
  readonly socketPath: string;
  /** Who may open it; by default the owner and the group of this process. */
  readonly socketAccess?: SocketAccess;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Offers a host to everybody who may open its unix socket. */
export class ApiServer implements AsyncDisposable {
  readonly #app: FastifyInstance;
  readonly #options: ApiServerOptions;
  readonly #streams: EventStreams;
  readonly #metrics = new ApiMetrics({ streams: () => this.#streams.size });
  readonly #consoles: ConsoleSessions;
  readonly #upgrades = new Upgrades();
  readonly #idempotency: Idempotency;
  /** Requests that came with an Idempotency-Key and are being carried out. */
  readonly #keyed = new WeakMap<FastifyRequest, KeyedRequest>();
  readonly #lastResponse = new WeakMap<Socket, ServerResponse>();
  readonly #authentication: Authentication;
  /** What is refused is written down, and must not push out what else was. */
  readonly #refusals: FailureBudget;
  readonly #principals = new WeakMap<FastifyRequest, Principal>();
  #tls: TlsServer | undefined;

  private constructor(options: ApiServerOptions) {
    const { service } = options;
    this.#options = options;
    this.#streams = new EventStreams(options);
    this.#consoles = new ConsoleSessions(options);
    this.#idempotency = new Idempotency(service);
    this.#authentication = new Authentication({
      ...options,
      findToken: (id) => service.findToken(id),
      tenantId: (name) => service.tenants.idOf(name),
    });
    this.#refusals = new FailureBudget(
      options.clock,
      'too many changes were asked for that this role may not make',
    );
    this.#app = fastify({
      logger: false,
      bodyLimit: BODY_BYTES_MAX,
      http: HTTP_OPTIONS,
      requestTimeout: REQUEST_MAX_MS,
      connectionTimeout: SILENCE_MAX_MS,
      exposeHeadRoutes: false,
      return503OnClosing: false,
      requestIdHeader: false,
      genReqId: (request: IncomingMessage) => requestIdOf(request.headers['x-request-id']),
      frameworkErrors: (error, request, reply) => {
        this.#setCommonHeaders(request, reply);
        // No route was found, so that nothing is known but that it is none that strangers may take.
        this.#refuse(this.#strangerIn(request) ?? error, request, reply);
        this.#logAnswer(request, reply);
      },
      clientErrorHandler: (error, socket) => this.#refuseUnparsed(error, socket),
    });
    this.#authentication.trust(this.#app.server);
    this.#app.server.maxConnections = CONNECTIONS_MAX;
    this.#app.server.on('request', ({ socket }, response) => this.#lastResponse.set(socket, response));
  }

  get socketPath(): string {
    return this.#options.socketPath;
  }

  /** Where it listens over TLS, if it does: `127.0.0.1:7443`. */
  get tlsAddress(): string | undefined {
    const address = this.#tls?.address();
    return typeof address === 'object' && address !== null ? `${address.address}:${address.port}` : undefined;
  }

  /**
   * One that listens on a socket of mode 0660. The caller holds a lock against a second one that starts.
   * @throws ApiError API_SOCKET_TAKEN, API_LISTEN_FAILED, API_TLS_UNUSABLE
   */
  static async listen(options: ApiServerOptions): Promise<ApiServer> {
    const api = new ApiServer(options);
    try {
      await api.#prepare();
      if (options.tls !== undefined) await api.#listenOnTls(options.tls);
      await listenOnUnixSocket(api.#app.server, options.socketPath, options.socketAccess);
    } catch (thrown) {
      await api[Symbol.asyncDispose]();
      throw thrown;
    }
    api.#app.server.on('error', (error) => options.log.error('API socket', { error: messageOf(error) }));
    return api;
  }

  /** Ends the streams of events and the consoles, lets the last answers out, closes and removes the socket. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#streams[Symbol.dispose]();
    this.#consoles[Symbol.dispose]();
    const servers = [this.#app.server, this.#tls];
    const cancel = this.#options.clock.after(CLOSE_DEADLINE_MS, () => {
      for (const server of servers) server?.closeAllConnections();
    });
    const tlsClosed = this.#tls?.listening ? once(this.#tls, 'close') : undefined;
    this.#tls?.close();
    this.#tls?.closeIdleConnections();
    await this.#app.close();
    await tlsClosed;
    cancel();
  }

  async #prepare(): Promise<void> {
    const app = this.#app;
    app.removeContentTypeParser('text/plain');
    app.setValidatorCompiler(validatorCompiler);
    app.setSerializerCompiler(serializerCompiler);
    app.setErrorHandler((error, request, reply) => this.#refuse(error, request, reply));
    app.addHook('onRequest', async (request, reply) => {
      this.#setCommonHeaders(request, reply);
      // Before its body is read, and before anything is said about what there is.
      this.#admit(request);
      if (request.is404) throw notFound();
    });
    app.addHook('preHandler', async (request, reply) => this.#replay(request, reply));
    app.addHook('onSend', async (request, reply, payload) => this.#remember(request, reply, payload));
    app.addHook('onResponse', async (request, reply) => this.#logAnswer(request, reply));
    app.setNotFoundHandler(() => {
      throw notFound();
    });
    await app.register(swagger, swaggerOptions(this.#options.service.describe().version));
    for (const id of Object.keys(routes) as RouteId[]) this.#addRoute(id);
    this.#refuseOtherMethods();
    await app.ready();
    this.#upgrades.listenTo(app.server, (request, response) => app.routing(request, response));
  }

  /** The same server to whoever can say who they are. */
  async #listenOnTls(listen: TlsListen): Promise<void> {
    const server = tlsServer(listen, { ...HTTP_OPTIONS, requestTimeout: REQUEST_MAX_MS });
    this.#tls = server;
    server.maxConnections = CONNECTIONS_MAX;
    server.setTimeout(SILENCE_MAX_MS);
    const route = (request: IncomingMessage, response: ServerResponse) =>
      this.#app.routing(request, response);
    server.on('request', ({ socket }, response) => this.#lastResponse.set(socket, response));
    server.on('request', route);
    server.on('clientError', (error, socket) => this.#refuseUnparsed(error, socket as Socket));
    this.#upgrades.listenTo(server, route);
    await listenOnTls(server, listen);
    server.on('error', (error) => this.#options.log.error('API over TLS', { error: messageOf(error) }));
  }

  /**
   * Who asks, and whether they may. What is refused though somebody is known is written down.
   * @throws ApiError API_UNAUTHENTICATED, API_FORBIDDEN, API_TOO_MANY_FAILURES
   */
  #admit(request: FastifyRequest): void {
    const { operationId: id } = request.routeOptions.config as { operationId?: RouteId };
    const needed = id === undefined ? 'viewer' : routeOf(id).role;
    if (needed === 'anyone') return;
    const principal = this.#authentication.identify(request.raw);
    if (principal === undefined) throw stranger();
    this.#principals.set(request, principal);
    const isApart = id !== undefined && routeOf(id).hostOnly === true && principal.tenant !== null;
    if (mayAct(principal, needed) && !isApart) return;
    if (id !== undefined && changesSomething(id)) {
      const who = keyOf(principal, '');
      this.#refusals.assertLeft(who);
      this.#refusals.note(who);
      this.#audit(id, request, { status: 403 });
    }
    throw isApart ? forHostOnly(principal) : forbidden(principal, needed);
  }

  /** Why nothing is to be said to who sent this; undefined where that is known and may look. */
  #strangerIn({ raw }: FastifyRequest): unknown {
    try {
      return this.#authentication.identify(raw) === undefined ? stranger() : undefined;
    } catch (thrown) {
      return thrown;
    }
  }

  #audit(id: RouteId, request: FastifyRequest, how: { status: number; made?: unknown }): void {
    const principal = this.#principals.get(request);
    if (principal === undefined || !changesSomething(id)) return;
    const { params, id: requestId } = request;
    this.#options.service.audit(auditEntry(principal, { ...how, id, params, requestId }));
  }

  /** What fails after it was begun may have changed something all the same. */
  async #audited(id: RouteId, request: FastifyRequest, outcome: Promise<Answer>): Promise<Answer> {
    try {
      return await outcome;
    } catch (thrown) {
      this.#audit(id, request, { status: problemOf(thrown).status });
      throw thrown;
    }
  }

  #addRoute(id: RouteId): void {
    const { method, path } = routeOf(id);
    this.#app.route({
      method,
      url: fastifyPath(path),
      schema: fastifySchemaOf(id),
      config: { operationId: id },
      handler: (request, reply) => this.#handle(id, request, reply),
    });
  }

  #refuseOtherMethods(): void {
    for (const [path, rows] of Map.groupBy(Object.values(routes), (route) => route.path)) {
      const allowed: string[] = rows.map(({ method }) => method);
      this.#app.route({
        method: this.#app.supportedMethods.filter((method) => !allowed.includes(method)),
        url: fastifyPath(path),
        schema: { hide: true },
        onRequest: async (request, reply) => {
          reply.header('allow', allowed.join(', '));
          throw new ApiError('API_METHOD_NOT_ALLOWED', `${request.method} means nothing here`, {
            hint: `Allowed: ${allowed.join(', ')}.`,
          });
        },
        handler: notFound,
      });
    }
  }

  /** What it returns is sent; undefined means an answer without a body, or one that sends itself. */
  async #handle(id: RouteId, request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
    const { params, query, headers, body } = request;
    this.#ensureReach(id, request);
    if (id === 'getOpenApi') return this.#app.swagger();
    if (id === 'getMetrics') {
      reply.type(METRICS_TYPE);
      return (await this.#options.service.exposition()) + (await this.#metrics.exposition());
    }
    if (id === 'streamEvents') {
      this.#openStream(request as FastifyRequest & Asked<'streamEvents'>, reply);
      return undefined;
    }
    if (id === 'openConsole') {
      await this.#openConsole(request as FastifyRequest & Asked<'openConsole'>, reply);
      return undefined;
    }
    const handle = handlers[id] as AnyHandler;
    const { service } = this.#options;
    const asked = { params, query, headers, body };
    const context = { trace: request.id, principal: this.#principals.get(request) };
    const { status } = routeOf(id);
    const answered = (outcome: Answer) => {
      const body = replyWith(outcome, { reply, status });
      this.#audit(id, request, { status, made: outcome.body });
      return body;
    };
    const keyed = this.#keyed.get(request);
    if (!changesSomething(id)) return answered(await handle(service, asked, context));
    // What was done, who did it, and that it was answered is written at once: a host that is killed in between would
    // refuse the repeated request because of its own effect.
    const answer = service.transaction(() => {
      const outcome = handle(service, asked, context);
      if (outcome instanceof Promise) {
        // It takes a while. A host that is killed meanwhile has still said who asked for what it had begun.
        this.#audit(id, request, { status: BEGUN });
        return outcome;
      }
      const body = answered(outcome);
      if (keyed === undefined) return { sent: body };
      const text = body === undefined ? '' : jsonOf(body, { reply, status });
      this.#finish(keyed, { request, reply, text });
      return { sent: text };
    });
    // One that waits for a VM cannot be part of a transaction; it is remembered when it is sent.
    const sent = 'sent' in answer ? answer.sent : answered(await this.#audited(id, request, answer));
    if (id === 'revokeToken' || id === 'deleteTenant')
      for (const open of [this.#streams, this.#consoles]) open.recheck();
    return sent;
  }

  /** A VM of somebody else is one that does not exist. @throws HostError HOST_VM_UNKNOWN */
  #ensureReach(id: RouteId, request: FastifyRequest): void {
    if (!routeOf(id).path.startsWith('/v1/vms/{name}')) return;
    const { name } = request.params as { name: string };
    this.#options.service.ensureWithin(name, reachOf(this.#principals.get(request)));
  }

  #openStream(request: FastifyRequest & Asked<'streamEvents'>, reply: FastifyReply): void {
    const { id, query, headers } = request;
    this.#streams.ensureRoom();
    reply.hijack();
    const response = reply.raw;
    response.socket?.setTimeout(0);
    response.writeHead(200, {
      ...(reply.getHeaders() as Record<string, string>),
      'content-type': 'text/event-stream',
      connection: 'close',
    });
    // A reader that comes back names what it saw last; what it asked for at first is older.
    const after = headers['last-event-id'] ?? query.after ?? this.#options.service.newestEvent();
    const principal = this.#principals.get(request);
    const mayGoOn = this.#mayGoOn(principal);
    this.#streams.open(response, {
      after,
      vm: query.vm,
      requestId: id,
      withAudit: seesAudit(principal),
      reach: reachOf(principal),
      mayGoOn,
    });
  }

  #mayGoOn(principal: Principal | undefined): () => boolean {
    return () => principal !== undefined && this.#authentication.isStill(principal);
  }

  /** All that can be refused is refused before it is a WebSocket, in the form of all refusals. */
  async #openConsole(request: FastifyRequest & Asked<'openConsole'>, reply: FastifyReply): Promise<void> {
    const { id, raw, params } = request;
    const vm = params.name;
    this.#upgrades.ensureAcceptable(raw);
    const place = this.#consoles.reserve(vm);
    const left = () => place[Symbol.dispose]();
    try {
      const console = await this.#options.service.openConsole(vm);
      this.#audit('openConsole', request, { status: 101 });
      const mayGoOn = this.#mayGoOn(this.#principals.get(request));
      console.once('close', left);
      reply.hijack();
      this.#upgrades.accept(raw, {
        begin: (socket) => this.#consoles.join(socket, { console, vm, requestId: id, mayGoOn }),
        gone: () => console.destroy(),
      });
    } catch (thrown) {
      left();
      throw thrown;
    }
  }

  #replay(request: FastifyRequest, reply: FastifyReply): FastifyReply | undefined {
    const { operationId } = request.routeOptions.config as { operationId?: RouteId };
    const key = request.headers['idempotency-key'];
    if (typeof key !== 'string' || operationId === undefined || !takesKey(operationId)) return undefined;
    const principal = this.#principals.get(request);
    assert(principal !== undefined, 'who carries a key was admitted');
    const admission = this.#idempotency.admit(keyOf(principal, key), [
      operationId,
      request.params,
      request.body,
    ]);
    if (admission.kind === 'first') {
      this.#keyed.set(request, admission.request);
      return undefined;
    }
    const { status, headers, body } = admission.answer;
    return reply.code(status).headers(headers).header('idempotency-replayed', 'true').send(body);
  }

  /** The answer is stored before it is sent: who has seen it gets the same again. */
  #remember(request: FastifyRequest, reply: FastifyReply, payload: unknown): unknown {
    const keyed = this.#keyed.get(request);
    if (keyed !== undefined) this.#finish(keyed, { request, reply, text: String(payload) });
    return payload;
  }

  #finish(keyed: KeyedRequest, { request, reply, text }: FinishOptions): void {
    const stored = STORED_HEADERS.filter((name) => reply.hasHeader(name));
    this.#idempotency.finish(keyed, {
      status: reply.statusCode,
      headers: Object.fromEntries(stored.map((name) => [name, String(reply.getHeader(name))])),
      body: text,
    });
    this.#keyed.delete(request);
  }

  #setCommonHeaders(request: FastifyRequest, reply: FastifyReply): void {
    // The state of a VM changes without its ETag, which is that of the specification: nothing may be cached.
    reply.headers({ 'x-request-id': request.id, 'cache-control': 'no-store' });
  }

  #refuse(thrown: unknown, request: FastifyRequest, reply: FastifyReply): void {
    const problem = problemOf(thrown);
    if (problem.status === 500) {
      const stack = thrown instanceof Error ? thrown.stack : undefined;
      const { code } = problem;
      this.#options.log.error('a request failed', {
        requestId: request.id,
        code,
        error: messageOf(thrown),
        stack,
      });
    }
    if (problem.status === 401) reply.header('www-authenticate', 'Bearer realm="understudy"');
    reply.code(problem.status).type(PROBLEM_TYPE).send(JSON.stringify(problem));
    // A broken invariant must end the host, whoever happened to ask.
    if (thrown instanceof InvariantViolation) {
      setImmediate(() => {
        throw thrown;
      });
    }
  }

  /** What is no HTTP. It is only answered where that cannot be taken for the answer to an earlier request. */
  #refuseUnparsed(error: Error & { code?: string }, socket: Socket): void {
    const last = this.#lastResponse.get(socket);
    const expectsAnswer = last === undefined || (last.writableFinished && last.shouldKeepAlive);
    if (expectsAnswer && socket.writable && error.code !== 'ECONNRESET') {
      const requestId = randomUUID();
      const problem = unparsedProblem(error);
      this.#options.log.info('API', { requestId, status: problem.status, error: error.message });
      socket.write(rawAnswer(problem, requestId));
    }
    socket.destroySoon();
  }

  #logAnswer(request: FastifyRequest, reply: FastifyReply): void {
    this.#options.log.info('API', {
      requestId: request.id,
      method: request.method,
      url: request.url.slice(0, LOGGED_URL_CHARACTERS_MAX),
      status: reply.statusCode,
      ms: Number(reply.elapsedTime.toFixed(1)),
    });
    const { operationId: operation } = request.routeOptions.config as { operationId?: RouteId };
    this.#metrics.note({ operation, status: reply.statusCode, elapsedMs: reply.elapsedTime });
  }
}

interface FinishOptions {
  readonly request: FastifyRequest;
  readonly reply: FastifyReply;
  readonly text: string;
}

function requestIdOf(given: string | string[] | undefined): string {
  return isTrace(given) ? given : randomUUID();
}

function notFound(): ApiError {
  return new ApiError('API_NOT_FOUND', 'there is nothing of this name', {
    hint: '/openapi.json lists all that there is.',
  });
}
