import type { FastifyReply, FastifyRequest } from 'fastify';
import { type Answer, jsonOf, replyWith } from './answer.ts';
import { changesSomething } from './audit.ts';
import type { AuditTrail } from './audit-trail.ts';
import { type HandledId, handlers } from './handlers.ts';
import type { HostService, RequestContext } from './host-service.ts';
import type { KeyedRequests } from './keyed-requests.ts';
import { principalOf } from './known-request.ts';
import { reachOf } from './principal.ts';
import { type RouteId, routeOf } from './routes.ts';

type AnyHandler = (
  service: HostService,
  asked: unknown,
  context: RequestContext,
) => ReturnType<(typeof handlers)[HandledId]>;

interface OperationsOptions {
  readonly service: HostService;
  readonly trail: AuditTrail;
  readonly keyed: KeyedRequests;
}

/** Carries out what the host is asked for and answers with JSON, who did it written down with it. */
export class Operations {
  readonly #options: OperationsOptions;

  constructor(options: OperationsOptions) {
    this.#options = options;
  }

  /** A VM of somebody else is one that does not exist. @throws HostError HOST_VM_UNKNOWN */
  ensureReach(id: RouteId, request: FastifyRequest): void {
    if (!routeOf(id).path.startsWith('/v1/vms/{name}')) return;
    const { name } = request.params as { name: string };
    this.#options.service.ensureWithin(name, reachOf(principalOf(request)));
  }

  /** What it returns is sent; undefined means an answer without a body. */
  async carryOut(id: HandledId, request: FastifyRequest, reply: FastifyReply): Promise<unknown> {
    const { params, query, headers, body } = request;
    const { service, trail, keyed } = this.#options;
    const handle = handlers[id] as AnyHandler;
    const asked = { params, query, headers, body };
    const context = { trace: request.id, principal: principalOf(request) };
    const { status } = routeOf(id);
    const answered = (outcome: Answer) => {
      const body = replyWith(outcome, { reply, status });
      trail.done(request, { status, made: outcome.body });
      return body;
    };
    if (!changesSomething(id)) return answered(await handle(service, asked, context));
    // What was done, who did it, and that it was answered is written at once: a host that is killed in between would
    // refuse the repeated request because of its own effect.
    const answer = service.transaction(() => {
      const outcome = handle(service, asked, context);
      if (outcome instanceof Promise) {
        trail.begun(request);
        return outcome;
      }
      const body = answered(outcome);
      if (!keyed.has(request)) return { sent: body };
      const text = body === undefined ? '' : jsonOf(body, { reply, status });
      keyed.remember(request, reply, text);
      return { sent: text };
    });
    // One that waits for a VM cannot be part of a transaction; it is remembered when it is sent.
    return 'sent' in answer ? answer.sent : answered(await answer);
  }
}
