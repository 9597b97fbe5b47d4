import type { FastifyRequest } from 'fastify';
import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { type AuditEntry, auditEntry, BEGUN, changesSomething } from './audit.ts';
import { FailureTally } from './failure-tally.ts';
import type { HostService } from './host-service.ts';
import { operationOf, principalOf } from './known-request.ts';
import { keyOf } from './principal.ts';

interface AuditTrailOptions {
  readonly service: Pick<HostService, 'audit'>;
  readonly clock: Clock;
  readonly log: Logger;
}

/**
 * Writes down who changed something, or tried to. What fails is written one by one only so often in a minute, lest one who
 * fails in a loop pushes out what else was written; then one entry counts the rest.
 */
export class AuditTrail implements Disposable {
  readonly #options: AuditTrailOptions;
  readonly #failures: FailureTally<AuditEntry>;

  constructor(options: AuditTrailOptions) {
    this.#options = options;
    const onRest = ({ count, last }: { count: number; last: AuditEntry }) => this.#count(last, count);
    this.#failures = new FailureTally({ clock: options.clock, onRest });
  }

  /** What was done. To be called in the transaction that does it. */
  done(request: FastifyRequest, how: { status: number; made?: unknown }): void {
    const entry = entryOf(request, how);
    if (entry !== undefined) this.#options.service.audit(entry);
  }

  /**
   * What takes a while. A host that is killed meanwhile has still said who asked for what it had begun. One whose failures
   * are only counted by now is not written twice.
   */
  begun(request: FastifyRequest): void {
    const entry = entryOf(request, { status: BEGUN });
    if (entry !== undefined && !this.#failures.isFull(whoIn(request))) this.#options.service.audit(entry);
  }

  /** What was refused, or failed after it was begun, when it may have changed something all the same. */
  failed(request: FastifyRequest, how: { status: number }): void {
    const entry = entryOf(request, how);
    if (entry === undefined) return;
    if (this.#failures.note(whoIn(request), entry)) this.#options.service.audit(entry);
  }

  /** Writes down what was counted so far. */
  [Symbol.dispose](): void {
    this.#failures[Symbol.dispose]();
  }

  #count(last: AuditEntry, failures: number): void {
    const { service, log } = this.#options;
    try {
      service.audit({ ...last, failures });
    } catch (thrown) {
      // Nobody waits for this, and the next one may be written.
      log.error('failed changes could not be written down', { failures, ...errorFacts(thrown) });
    }
  }
}

/** Undefined where nothing would be changed, or nobody was asked for. */
function entryOf(request: FastifyRequest, how: { status: number; made?: unknown }): AuditEntry | undefined {
  const principal = principalOf(request);
  const id = operationOf(request);
  if (principal === undefined || id === undefined || !changesSomething(id)) return undefined;
  const { params, id: requestId } = request;
  return auditEntry(principal, { ...how, id, params, requestId });
}

function whoIn(request: FastifyRequest): string {
  const principal = principalOf(request);
  return principal === undefined ? '' : keyOf(principal, '');
}
