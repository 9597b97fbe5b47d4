import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { Clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import { askForConsole } from './console-client.ts';
import { FrameReader } from './event-frames.ts';
import { HEARTBEAT_MS } from './event-streams.ts';
import { type HostAddress, requestTo, whereIs } from './host-address.ts';
import { type HostEvent, hostEventSchema, problemSchema } from './resources.ts';
import { type AnswerTo, type Question, type RouteId, routeOf } from './routes.ts';

const DEADLINE_MS = 10_000;
const ANSWER_BYTES_MAX = 64 * MIB;
const RESUME_AFTER_MS = 100;
const RESUME_AFTER_MAX_MS = 5000;
/** A host that is upgraded is back long before. */
const RESUMING_MAX_MS = 60_000;
const SILENCE_MAX_MS = 3 * HEARTBEAT_MS;

export type ApiClientOptions = HostAddress & { readonly clock: Clock };

export interface EventsAsked {
  /** Number of the last event that is known already; 0 for all; without it only those from now on. */
  readonly after?: number;
  readonly vm?: string;
  readonly signal?: AbortSignal;
}

interface Sent {
  readonly id: RouteId;
  readonly question: LooseQuestion;
  readonly signal?: AbortSignal | undefined;
}

interface LooseQuestion {
  readonly params?: Readonly<Record<string, string>>;
  readonly query?: Readonly<Record<string, unknown>>;
  readonly headers?: Readonly<Record<string, string | undefined>>;
  readonly body?: unknown;
}

/** What a stream tells at once: from where it goes on when it breaks, and mostly an event. */
interface StreamStep {
  readonly id?: number;
  readonly event?: HostEvent;
}

/** Speaks with a host over its unix socket or TLS. Every call is a connection of its own: nothing is to be closed. */
export class ApiClient {
  readonly #options: ApiClientOptions;

  constructor(options: ApiClientOptions) {
    this.#options = options;
  }

  /**
   * @throws ApiError with the code that the host answered with, which may be one of another module;
   * API_UNREACHABLE, API_NO_ANSWER; the reason of `signal`
   */
  async call<Id extends Exclude<RouteId, 'streamEvents' | 'openConsole'>>(
    id: Id,
    question: Question<Id>,
    signal?: AbortSignal,
  ): Promise<AnswerTo<Id>> {
    const { clock } = this.#options;
    const deadline = new AbortController();
    const cancel = clock.after(routeOf(id).deadlineMs ?? DEADLINE_MS, () =>
      deadline.abort(noAnswer('in time')),
    );
    const either = AbortSignal.any(signal === undefined ? [deadline.signal] : [signal, deadline.signal]);
    try {
      const response = await this.#send({ id, question: question as LooseQuestion, signal: either });
      const text = await textOf(response);
      const { answer: schema, mediaType } = routeOf(id);
      const answer = schema.safeParse(mediaType === undefined ? parsed(text) : text);
      if (!answer.success) throw noAnswer('that makes sense');
      return answer.data as AnswerTo<Id>;
    } catch (thrown) {
      either.throwIfAborted();
      throw thrown;
    } finally {
      cancel();
    }
  }

  /**
   * Events after number `after`, if it is given, and those to come, each once and in order. Where the connection breaks it goes on
   * with the next event, as soon as the host is there again. Ends by `signal` only, with its reason.
   * @throws ApiError like `call`; API_UNREACHABLE also when the host stays away
   */
  async *events({ after, vm, signal }: EventsAsked): AsyncGenerator<HostEvent, never> {
    const { clock } = this.#options;
    let lastId = after;
    let waitMs = RESUME_AFTER_MS;
    let brokenSinceMs: number | undefined;
    for (let connected = false; ; ) {
      try {
        for await (const { id, event } of this.#stream({
          ...(lastId !== undefined && { after: lastId }),
          ...(vm && { vm }),
          ...(signal && { signal }),
        })) {
          connected = true;
          brokenSinceMs = undefined;
          waitMs = RESUME_AFTER_MS;
          lastId = id ?? lastId;
          if (event !== undefined) yield event;
        }
      } catch (thrown) {
        signal?.throwIfAborted();
        brokenSinceMs ??= clock.nowMs();
        const mayHeal = connected && isBreak(thrown) && clock.nowMs() - brokenSinceMs < RESUMING_MAX_MS;
        if (!mayHeal) throw thrown;
      }
      await clock.sleep(waitMs, signal);
      waitMs = Math.min(2 * waitMs, RESUME_AFTER_MAX_MS);
    }
  }

  /**
   * Joins the serial console of a VM. Its end is that of the console; destroy it to leave.
   * @throws ApiError like `call`; as an error of the stream API_CONSOLE_CLOSED
   */
  async console(name: string): Promise<Duplex> {
    const path = pathOf('openConsole', { params: { name } });
    try {
      const answer = await askForConsole({ address: this.#options, clock: this.#options.clock, path });
      if (answer.kind === 'joined') return answer.console;
      throw relayed(await textOf(answer.response));
    } catch (thrown) {
      throw thrown instanceof ApiError ? thrown : connectionError(thrown, this.#options);
    }
  }

  /** One connection: where it begins, then events until it breaks or the host ends it. */
  async *#stream({ after, vm, signal }: EventsAsked): AsyncGenerator<StreamStep, void> {
    const question = { query: { vm }, headers: { 'last-event-id': after?.toString() } };
    const silence = new AbortController();
    const either = AbortSignal.any(signal === undefined ? [silence.signal] : [signal, silence.signal]);
    let cancel = () => {};
    const heard = () => {
      cancel();
      cancel = this.#options.clock.after(SILENCE_MAX_MS, () => silence.abort());
    };
    try {
      heard();
      const response = await this.#send({ id: 'streamEvents', question, signal: either });
      yield {};
      const frames = new FrameReader();
      for await (const text of response.setEncoding('utf8')) {
        heard();
        const complete = frames.push(text as string);
        if (complete === undefined) throw noAnswer('that makes sense');
        for (const { id, data } of complete) {
          const event = data === undefined ? undefined : eventFrom(data);
          yield { ...(id !== undefined && { id }), ...(event && { event, id: event.id }) };
        }
      }
    } catch (thrown) {
      throw thrown instanceof ApiError ? thrown : noAnswer('to the end', thrown);
    } finally {
      cancel();
    }
  }

  async #send({ id, question, signal }: Sent): Promise<IncomingMessage> {
    const { method, status } = routeOf(id);
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const body = question.body === undefined ? undefined : JSON.stringify(question.body);
    const request = requestTo(this.#options, {
      method,
      path: pathOf(id, question),
      headers: {
        ...withoutUndefined(question.headers),
        ...(body !== undefined && {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
        }),
      },
      ...(signal && { signal }),
    });
    request.on('response', resolve).on('error', (cause) => reject(connectionError(cause, this.#options)));
    request.end(body);
    const response = await promise;
    if (response.statusCode === status) return response;
    throw relayed(await textOf(response));
  }
}

function pathOf(id: RouteId, { params, query }: LooseQuestion): string {
  const path = routeOf(id).path.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(params?.[name] ?? ''));
  const search = new URLSearchParams(withoutUndefined(query)).toString();
  return search === '' ? path : `${path}?${search}`;
}

function withoutUndefined(record: Readonly<Record<string, unknown>> = {}): Record<string, string> {
  const entries = Object.entries(record).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries.map(([name, value]) => [name, String(value)]));
}

async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of response) {
      bytes += (chunk as Buffer).length;
      if (bytes > ANSWER_BYTES_MAX) throw noAnswer('of a sane size');
      chunks.push(chunk as Buffer);
    }
  } catch (thrown) {
    throw thrown instanceof ApiError ? thrown : noAnswer('to the end', thrown);
  }
  return Buffer.concat(chunks).toString();
}

/** An answer without a body is `null`. */
function parsed(text: string): unknown {
  try {
    return text === '' ? null : JSON.parse(text);
  } catch {
    return undefined;
  }
}

function eventFrom(data: string): HostEvent {
  const event = hostEventSchema.safeParse(parsed(data));
  if (!event.success) throw noAnswer('that makes sense');
  return event.data;
}

/** The problem with the code it had at the host, which may be one of another module. */
function relayed(text: string): ApiError {
  const problem = problemSchema.safeParse(parsed(text));
  if (!problem.success) return noAnswer('that makes sense');
  const { code, detail, hint, problems } = problem.data;
  return new ApiError(code as ApiErrorCode, detail, {
    ...(hint !== undefined && { hint }),
    ...(problems !== undefined && { facts: { problems } }),
  });
}

function isBreak(thrown: unknown): boolean {
  return thrown instanceof ApiError && (thrown.code === 'API_NO_ANSWER' || thrown.code === 'API_UNREACHABLE');
}

function noAnswer(what: string, cause?: unknown): ApiError {
  return new ApiError('API_NO_ANSWER', `the host gave no answer ${what}`, {
    hint: "It ended, hangs, or is of another version. See the host's log.",
    cause,
  });
}

function connectionError(cause: unknown, address: HostAddress): ApiError {
  const isLocal = !('url' in address);
  const hints: Readonly<Record<string, string>> = {
    ...(isLocal && { ENOENT: 'Start it with `understudy host`.' }),
    ECONNREFUSED: isLocal ? 'It was killed: start it with `understudy host`.' : 'Nobody listens there.',
    EACCES: 'Run this as root or as a member of the group that owns the socket.',
    ENOTFOUND: 'Correct the name in UNDERSTUDY_HOST.',
    EHOSTUNREACH: 'There is no way to it from here.',
    ENETUNREACH: 'There is no way to it from here.',
  };
  const hint = hints[errnoNameOf(cause) ?? ''] ?? tlsHint(cause);
  if (hint === undefined) return noAnswer('to the end', cause);
  return new ApiError('API_UNREACHABLE', `no host can be reached at ${whereIs(address)}`, { hint, cause });
}

/** What OpenSSL finds wrong with the other side, by its code. */
function tlsHint(cause: unknown): string | undefined {
  const { code } = cause as { code?: unknown };
  if (typeof code !== 'string' || !/CERT|ALTNAME|SIGNATURE|^ERR_(?:TLS|SSL)|^EPROTO$/.test(code))
    return undefined;
  return `Its certificate is not to be trusted, or that is no TLS (${code}): see UNDERSTUDY_CA in docs/cli.md.`;
}
