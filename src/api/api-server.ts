import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import swagger from '@fastify/swagger';
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify';
import { serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod';
import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { isTrace } from '../base/trace.ts';
import { KIB, MIB } from '../base/units.ts';
import { Admission } from './admission.ts';
import { AnswerLog } from './answer-log.ts';
import { ApiMetrics } from './api-metrics.ts';
import { AuditTrail } from './audit-trail.ts';
import { Authentication } from './authentication.ts';
import type { HostService } from './host-service.ts';
import { KeyedRequests } from './keyed-requests.ts';
import { operationOf } from './known-request.ts';
import { HTTP_OPTIONS, Listeners, type Places, REQUEST_MAX_MS, SILENCE_MAX_MS } from './listeners.ts';
import { Newcomers } from './newcomers.ts';
import { OpenAnswers } from './open-answers.ts';
import { fastifyPath, fastifySchemaOf, swaggerOptions } from './openapi.ts';
import { Operations } from './operations.ts';
import { problemOf } from './problem.ts';
import { notFound, otherMethod, refuse } from './refusals.ts';
import { type Asked, type RouteId, routeOf, routes } from './routes.ts';
import { UnparsedRequests } from './unparsed-request.ts';

/** A specification of the largest size, escaped for JSON, and what is around it. */
const BODY_BYTES_MAX = MIB + 128 * KIB;
/** Of the text format of Prometheus. */
const METRICS_TYPE = 'text/plain; version=0.0.4; charset=utf-8';

export interface ApiServerOptions extends Places {
  readonly service: HostService;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Offers a host to everybody who may open its unix socket, and over TLS to whoever can say who they are. */
export class ApiServer implements AsyncDisposable {
  readonly #app: FastifyInstance;
  readonly #options: ApiServerOptions;
  readonly #metrics = new ApiMetrics({ streams: () => this.#open.streams });
  readonly #trail: AuditTrail;
  readonly #log: AnswerLog;
  readonly #keyed: KeyedRequests;
  readonly #admission: Admission;
  readonly #operations: Operations;
  readonly #open: OpenAnswers;
  readonly #listeners: Listeners;

  private constructor(options: ApiServerOptions) {
    const { service } = options;
    const authentication = new Authentication({
      ...options,
      findToken: (id) => service.findToken(id),
      tenantId: (name) => service.tenants.idOf(name),
    });
    const trail = new AuditTrail(options);
    const newcomers = new Newcomers();
    this.#options = options;
    this.#trail = trail;
    this.#log = new AnswerLog(options);
    const unparsed = new UnparsedRequests(this.#log);
    this.#keyed = new KeyedRequests(service);
    this.#admission = new Admission({ authentication, newcomers });
    this.#operations = new Operations({ service, trail, keyed: this.#keyed });
    this.#open = new OpenAnswers({ ...options, authentication, trail });
    this.#app = this.#makeApp(unparsed);
    authentication.trust(this.#app.server);
    this.#listeners = new Listeners({ ...options, app: this.#app, unparsed, newcomers });
  }

  get socketPath(): string {
    return this.#options.socketPath;
  }

  /** Where it listens over TLS, if it does: `127.0.0.1:7443`. */
  get tlsAddress(): string | undefined {
    return this.#listeners.tlsAddress;
  }

  /**
   * One that listens on a socket of mode 0660. The caller holds a lock against a second one that starts.
   * @throws ApiError API_SOCKET_TAKEN, API_LISTEN_FAILED, API_TLS_UNUSABLE
   */
  static async listen(options: ApiServerOptions): Promise<ApiServer> {
    const api = new ApiServer(options);
    try {
      await api.#prepare();
      await api.#listeners.open();
    } catch (thrown) {
      await api[Symbol.asyncDispose]();
      throw thrown;
    }
    return api;
  }

  /** Ends the streams of events and the consoles, lets the last answers out, closes and removes the socket. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#open[Symbol.dispose]();
    await this.#listeners[Symbol.asyncDispose]();
    this.#trail[Symbol.dispose]();
    this.#log[Symbol.dispose]();
  }

  #makeApp(unparsed: UnparsedRequests): FastifyInstance {
    return fastify({
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
        setCommonHeaders(request, reply);
        // No route was found, so that nothing is known but that it is none that strangers may take.
        this.#refuse(this.#admission.strangerIn(request) ?? error, request, reply);
        this.#logAnswer(request, reply);
      },
      clientErrorHandler: (error, socket) => unparsed.refuse(error, socket),
    });
  }

  async #prepare(): Promise<void> {
    const app = this.#app;
    app.removeContentTypeParser('text/plain');
    app.setValidatorCompiler(validatorCompiler);
    app.setSerializerCompiler(serializerCompiler);
    app.setErrorHandler((error, request, reply) => this.#refuse(error, request, reply));
    app.addHook('onRequest', async (request, reply) => {
      setCommonHeaders(request, reply);
      // Before its body is read, and before anything is said about what there is.
      this.#admission.admit(request);
      if (request.is404) throw notFound();
    });
    app.addHook('preHandler', async (request, reply) => this.#keyed.replay(request, reply));
    app.addHook('onSend', async (request, reply, payload) => {
      if (this.#keyed.has(request)) this.#keyed.remember(request, reply, String(payload));
      return payload;
    });
    app.addHook('onResponse', async (request, reply) => this.#logAnswer(request, reply));
    app.setNotFoundHandler(() => {
      throw notFound();
    });
    await app.register(swagger, swaggerOptions(this.#options.service.describe().version));
    for (const id of Object.keys(routes) as RouteId[]) this.#addRoute(id);
    this.#refuseOtherMethods();
    await app.ready();
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
          throw otherMethod(request.method, allowed);
        },
        handler: notFound,
      });
    }
  }

  /** What it returns is sent; undefined means an answer without a body, or one that sends itself. */
  async #handle(id: RouteId, request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
    this.#operations.ensureReach(id, request);
    if (id === 'getOpenApi') return this.#app.swagger();
    if (id === 'getMetrics') {
      reply.type(METRICS_TYPE);
      return (await this.#options.service.exposition()) + (await this.#metrics.exposition());
    }
    if (id === 'streamEvents') {
      this.#open.openStream(request as FastifyRequest & Asked<'streamEvents'>, reply);
      return undefined;
    }
    if (id === 'openConsole') {
      const { upgrades } = this.#listeners;
      await this.#open.openConsole(request as FastifyRequest & Asked<'openConsole'>, { reply, upgrades });
      return undefined;
    }
    const sent = await this.#operations.carryOut(id, request, reply);
    if (id === 'revokeToken' || id === 'deleteTenant') this.#open.recheck();
    return sent;
  }

  #refuse(thrown: unknown, request: FastifyRequest, reply: FastifyReply): void {
    const { log } = this.#options;
    try {
      this.#trail.failed(request, { status: problemOf(thrown).status });
    } catch (fault) {
      // What cannot be written down is a fault, whatever it was before.
      log.error('a failed change could not be written down', {
        requestId: request.id,
        ...errorFacts(thrown),
      });
      refuse(fault, { request, reply, log });
      return;
    }
    refuse(thrown, { request, reply, log });
  }

  #logAnswer(request: FastifyRequest, reply: FastifyReply): void {
    this.#log.answered(request, reply);
    const status = reply.statusCode;
    this.#metrics.note({ operation: operationOf(request), status, elapsedMs: reply.elapsedTime });
  }
}

function setCommonHeaders(request: FastifyRequest, reply: FastifyReply): void {
  // The state of a VM changes without its ETag, which is that of the specification: nothing may be cached.
  reply.headers({ 'x-request-id': request.id, 'cache-control': 'no-store' });
}

function requestIdOf(given: string | string[] | undefined): string {
  return isTrace(given) ? given : randomUUID();
}
