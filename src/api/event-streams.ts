import type { ServerResponse } from 'node:http';
import { InvariantViolation } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import { ApiError } from './api-error.ts';
import { AUDIT_KIND } from './audit.ts';
import { encodeFrame, encodePlace, HEARTBEAT } from './event-frames.ts';
import type { HostService } from './host-service.ts';
import { isWithin, type Reach, WHOLE_REACH } from './principal.ts';
import type { HostEvent } from './resources.ts';

const STREAMS_MAX = 3000;
const PAGE_EVENTS = 100;
export const HEARTBEAT_MS = 15_000;
/** A reader that takes nothing for so long is disconnected. */
export const STALL_MAX_MS = 10_000;

export interface EventStreamsOptions {
  readonly service: Pick<HostService, 'listEvents' | 'onEvent'>;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface EventStreamStart {
  /** Number of the last event that the reader has. */
  readonly after: number;
  readonly vm: string | undefined;
  readonly requestId: string;
  readonly withAudit?: boolean;
  /** What its reader may hear of. */
  readonly reach?: Reach;
  /** Whether its reader may still read: asked now and then, and when a token is revoked. */
  readonly mayGoOn?: () => boolean;
}

/** All readers of the live events. */
export class EventStreams implements Disposable {
  readonly #options: EventStreamsOptions;
  readonly #streams = new Set<EventStream>();
  readonly #stopListening: () => void;

  constructor(options: EventStreamsOptions) {
    this.#options = options;
    this.#stopListening = options.service.onEvent((event) => this.#offer(event));
  }

  get size(): number {
    return this.#streams.size;
  }

  /** @throws ApiError API_STREAMS_MAX, before anything is written */
  ensureRoom(): void {
    if (this.#streams.size < STREAMS_MAX) return;
    throw new ApiError('API_STREAMS_MAX', `there are ${STREAMS_MAX} readers of events already`, {
      hint: 'Close some, or ask for pages of /v1/events instead.',
    });
  }

  /** Sends events until the reader goes away. The response is the stream's from here on. */
  open(response: ServerResponse, start: EventStreamStart): void {
    const stream = new EventStream(response, { ...this.#options, ...start });
    this.#streams.add(stream);
    response.once('close', () => {
      this.#streams.delete(stream);
      stream[Symbol.dispose]();
    });
    stream.begin();
  }

  /** Ends those whose readers may read no more. */
  recheck(): void {
    for (const stream of this.#streams) stream.recheck();
  }

  [Symbol.dispose](): void {
    this.#stopListening();
    for (const stream of this.#streams) stream.end();
  }

  #offer(event: HostEvent): void {
    if (this.#streams.size === 0) return;
    const frame = encodeFrame(event);
    for (const stream of this.#streams) stream.offer(event, frame);
  }
}

/**
 * One reader. It is fed from the journal, page by page and only as fast as it takes them; when it has all, new
 * events are handed to it directly. As soon as it does not keep up, it is fed from the journal again. So there is
 * never more in memory than what one write left in the socket.
 */
class EventStream implements Disposable {
  readonly #response: ServerResponse;
  readonly #options: EventStreamsOptions & EventStreamStart;
  #lastId: number;
  /** Has every event of the journal, and room for more. */
  #live = false;
  #cancelStall: (() => void) | undefined;
  #cancelHeartbeat = () => {};

  constructor(response: ServerResponse, options: EventStreamsOptions & EventStreamStart) {
    this.#response = response;
    this.#options = options;
    this.#lastId = options.after;
  }

  begin(): void {
    this.#response.on('drain', () => this.#drained());
    // A reader that goes away is nothing to report; `close` follows.
    this.#response.on('error', () => {});
    this.#beatLater();
    this.#write(encodePlace(this.#lastId));
    this.#catchUp();
  }

  offer(event: HostEvent, frame: string): void {
    const { vm, withAudit = false, reach = WHOLE_REACH } = this.#options;
    if ((event.kind === AUDIT_KIND && !withAudit) || !isWithin(event.tenant, reach)) return;
    if (!this.#live || event.id <= this.#lastId || (vm !== undefined && event.vm !== vm)) return;
    this.#send(event.id, frame);
  }

  recheck(): void {
    if (this.#options.mayGoOn?.() === false) this.end();
  }

  end(): void {
    this.#live = false;
    this.#response.end();
  }

  [Symbol.dispose](): void {
    this.#live = false;
    this.#cancelHeartbeat();
    this.#cancelStall?.();
  }

  #catchUp(): void {
    const { service, vm, log, requestId, withAudit = false, reach = WHOLE_REACH } = this.#options;
    try {
      while (this.#response.writable && this.#cancelStall === undefined) {
        const { events } = service.listEvents({
          after: this.#lastId,
          limit: PAGE_EVENTS,
          vm,
          withAudit,
          reach,
        });
        this.#live = events.length === 0;
        if (this.#live) return;
        for (const event of events) {
          if (this.#cancelStall !== undefined) break;
          this.#send(event.id, encodeFrame(event));
        }
      }
    } catch (thrown) {
      if (thrown instanceof InvariantViolation) throw thrown;
      log.error('a stream of events broke', { requestId, ...errorFacts(thrown) });
      this.#response.destroy();
    }
  }

  #send(id: number, frame: string): void {
    this.#lastId = id;
    this.#write(frame);
  }

  #write(text: string): void {
    if (this.#response.write(text) || this.#cancelStall !== undefined) return;
    const { clock, log, requestId } = this.#options;
    this.#live = false;
    this.#cancelStall = clock.after(STALL_MAX_MS, () => {
      log.warn('a reader of events does not read', { requestId });
      this.#response.destroy();
    });
  }

  #drained(): void {
    this.#cancelStall?.();
    this.#cancelStall = undefined;
    this.#catchUp();
  }

  #beatLater(): void {
    this.#cancelHeartbeat = this.#options.clock.after(HEARTBEAT_MS, () => {
      this.recheck();
      if (this.#live) this.#write(HEARTBEAT);
      this.#beatLater();
    });
  }
}
