import type { FastifyReply, FastifyRequest } from 'fastify';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { seesAudit } from './audit.ts';
import type { AuditTrail } from './audit-trail.ts';
import type { Authentication } from './authentication.ts';
import { ConsoleSessions } from './console-sessions.ts';
import { EventStreams } from './event-streams.ts';
import type { HostService } from './host-service.ts';
import { principalOf } from './known-request.ts';
import { type Principal, reachOf } from './principal.ts';
import type { Asked } from './routes.ts';
import type { Upgrades } from './upgrades.ts';

interface OpenAnswersOptions {
  readonly service: HostService;
  readonly authentication: Authentication;
  readonly trail: AuditTrail;
  readonly clock: Clock;
  readonly log: Logger;
}

/** Answers that stay open: streams of events and consoles. They end when whoever asked may be here no more. */
export class OpenAnswers implements Disposable {
  readonly #options: OpenAnswersOptions;
  readonly #streams: EventStreams;
  readonly #consoles: ConsoleSessions;

  constructor(options: OpenAnswersOptions) {
    this.#options = options;
    this.#streams = new EventStreams(options);
    this.#consoles = new ConsoleSessions(options);
  }

  /** How many read events. */
  get streams(): number {
    return this.#streams.size;
  }

  openStream(request: FastifyRequest & Asked<'streamEvents'>, reply: FastifyReply): void {
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
    const principal = principalOf(request);
    this.#streams.open(response, {
      after,
      vm: query.vm,
      requestId: id,
      withAudit: seesAudit(principal),
      reach: reachOf(principal),
      mayGoOn: this.#mayGoOn(principal),
    });
  }

  /** All that can be refused is refused before it is a WebSocket, in the form of all refusals. */
  async openConsole(
    request: FastifyRequest & Asked<'openConsole'>,
    { reply, upgrades }: { reply: FastifyReply; upgrades: Upgrades },
  ): Promise<void> {
    const { id, raw, params } = request;
    const { service, trail } = this.#options;
    const vm = params.name;
    upgrades.ensureAcceptable(raw);
    const place = this.#consoles.reserve(vm);
    const left = () => place[Symbol.dispose]();
    try {
      const console = await service.openConsole(vm);
      trail.done(request, { status: 101 });
      const mayGoOn = this.#mayGoOn(principalOf(request));
      console.once('close', left);
      reply.hijack();
      upgrades.accept(raw, {
        begin: (socket) => this.#consoles.join(socket, { console, vm, requestId: id, mayGoOn }),
        gone: () => console.destroy(),
      });
    } catch (thrown) {
      left();
      throw thrown;
    }
  }

  /** Ends those whose readers may read no more. */
  recheck(): void {
    this.#streams.recheck();
    this.#consoles.recheck();
  }

  [Symbol.dispose](): void {
    this.#streams[Symbol.dispose]();
    this.#consoles[Symbol.dispose]();
  }

  #mayGoOn(principal: Principal | undefined): () => boolean {
    return () => principal !== undefined && this.#options.authentication.isStill(principal);
  }
}
