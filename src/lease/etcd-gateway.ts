import type { ClientRequest, IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { boundedText } from '../base/bounded-text.ts';
import { messageOf } from '../base/errors.ts';
import { LeaseError } from './lease-error.ts';

const RESPONSE_BYTES_MAX = 1 << 20;
const CONNECTIONS_MAX = 8;

/** PEM: who signs the nodes' certificates, and what this host shows them. */
export interface EtcdCredentials {
  readonly ca: string;
  readonly certificate: string;
  readonly key: string;
}

export interface EtcdAccess {
  /** `https://10.0.0.1:2379`, one for each node. */
  readonly endpoints: readonly string[];
  readonly tls: EtcdCredentials;
  /** Asked before each call: what is to be shown from now on; undefined where nothing has changed. */
  readonly renewed?: () => EtcdCredentials | undefined;
  /** For a call, over all nodes that are tried. */
  readonly callDeadlineMs: number;
}

/** What became of a call. */
export type CallOutcome =
  | { readonly kind: 'answered'; readonly body: unknown }
  /** A node may have got it, and may have done it, or may do it yet. */
  | { readonly kind: 'unknown'; readonly cause: unknown }
  /** No node got it. */
  | { readonly kind: 'unsent'; readonly cause: unknown };

type TryOutcome = CallOutcome | { readonly kind: 'refused'; readonly cause: LeaseError };

/**
 * etcd's JSON gateway. Every call has a deadline, and is tried on one node after the other: it has to be one that may be
 * carried out twice. Whether a request ever left this host is known exactly, for the decision depends on it.
 */
export class EtcdGateway implements Disposable {
  readonly #endpoints: readonly URL[];
  readonly #access: EtcdAccess;
  #agent: Agent;
  readonly #streams = new Set<ClientRequest>();
  /** The node that answered last is asked first. */
  #first = 0;

  /** @throws LeaseError LEASE_STORE_UNUSABLE */
  constructor(access: EtcdAccess) {
    try {
      this.#endpoints = access.endpoints.map((endpoint) => httpsUrl(endpoint));
      if (this.#endpoints.length === 0) throw new Error('no endpoint is given');
      this.#agent = agentFor(access.tls);
    } catch (cause) {
      throw new LeaseError('LEASE_STORE_UNUSABLE', `cannot use etcd: ${messageOf(cause)}`, {
        hint: 'Give https:// URLs of all nodes, and PEM files of CA, certificate and key.',
        cause,
      });
    }
    this.#access = access;
  }

  /** @throws LeaseError LEASE_STORE_REFUSED when a node says that the request makes no sense to it */
  async call(path: string, body: unknown): Promise<CallOutcome> {
    this.#renew();
    const count = this.#endpoints.length;
    const begin = this.#first;
    const tryMs = Math.max(1, Math.floor(this.#access.callDeadlineMs / count));
    let uncertain: CallOutcome | undefined;
    let unsent: CallOutcome = { kind: 'unsent', cause: undefined };
    for (let step = 0; step < count; step += 1) {
      const index = (begin + step) % count;
      const outcome = await this.#try(index, { path, body, deadlineMs: tryMs });
      if (outcome.kind === 'refused') {
        // One node refuses what another may have begun.
        if (uncertain !== undefined) return uncertain;
        throw outcome.cause;
      }
      if (outcome.kind === 'answered') {
        this.#first = index;
        return outcome;
      }
      // A node that does not answer now is asked last the next time.
      this.#first = (index + 1) % count;
      if (outcome.kind === 'unknown') uncertain ??= outcome;
      else unsent = outcome;
    }
    return uncertain ?? unsent;
  }

  /** A response that goes on and on. `ended` is called once, when it is over for whatever reason. */
  stream(
    path: string,
    body: unknown,
    listener: { readonly line: (text: string) => void; readonly ended: () => void },
  ): Disposable {
    this.#renew();
    const index = this.#first;
    const sent = request(this.#options(index, path));
    this.#streams.add(sent);
    const end = () => {
      if (!this.#streams.delete(sent)) return;
      sent.destroy();
      this.#first = (index + 1) % this.#endpoints.length;
      listener.ended();
    };
    sent.on('error', end);
    sent.on('response', (response) => {
      response.on('close', end);
      response.on('error', end);
      splitLines(response, listener.line, end);
    });
    sent.end(JSON.stringify(body));
    return {
      [Symbol.dispose]: () => {
        this.#streams.delete(sent);
        sent.destroy();
      },
    };
  }

  [Symbol.dispose](): void {
    for (const sent of this.#streams) sent.destroy();
    this.#streams.clear();
    this.#agent.destroy();
  }

  /** Connections on which the old certificate was shown are used for what is under way, and for nothing after it. */
  #renew(): void {
    const next = this.#access.renewed?.();
    if (next === undefined) return;
    const before = this.#agent;
    this.#agent = agentFor(next);
    before.maxFreeSockets = 0;
    for (const socket of Object.values(before.freeSockets).flatMap((free) => free ?? [])) socket.destroy();
  }

  #options(index: number, path: string) {
    const endpoint = this.#endpoints[index];
    const { hostname, port } = endpoint ?? {};
    return {
      agent: this.#agent,
      host: hostname?.replace(/^\[|\]$/g, ''),
      port,
      path,
      method: 'POST',
      headers: { 'content-type': 'application/json' },
    };
  }

  #try(
    index: number,
    { path, body, deadlineMs }: { path: string; body: unknown; deadlineMs: number },
  ): Promise<TryOutcome> {
    return new Promise((resolve) => {
      let mayHaveLeft = false;
      const fail = (cause: unknown) => {
        clearTimeout(timer);
        sent.destroy();
        resolve({ kind: mayHaveLeft ? 'unknown' : 'unsent', cause });
      };
      const timer = setTimeout(() => fail(new Error(`no answer within ${deadlineMs} ms`)), deadlineMs);
      const sent = request(this.#options(index, path));
      sent.on('error', fail);
      // Nothing goes to a new connection before it is authenticated. One that was kept takes it at once.
      sent.on('socket', (socket) => {
        if (sent.reusedSocket) mayHaveLeft = true;
        else socket.once('secureConnect', () => (mayHaveLeft = true));
      });
      sent.on('response', (response) => {
        boundedText(response, RESPONSE_BYTES_MAX).then((text) => {
          clearTimeout(timer);
          resolve(judge(response.statusCode ?? 0, text));
        }, fail);
      });
      sent.end(JSON.stringify(body));
    });
  }
}

function agentFor({ ca, certificate: cert, key }: EtcdCredentials): Agent {
  return new Agent({
    ...{ keepAlive: true, maxSockets: CONNECTIONS_MAX, minVersion: 'TLSv1.2' },
    ...{ ca, cert, key },
  });
}

function httpsUrl(endpoint: string): URL {
  const url = new URL(endpoint);
  if (url.protocol !== 'https:') throw new Error(`${endpoint} does not begin with https://`);
  return url;
}

/** gRPC codes of requests that this etcd will never carry out: invalid argument, denied, not implemented, nobody. */
const NEVER = new Set([3, 7, 12, 16]);
const REFUSALS = new Set([401, 403, 404]);

function judge(status: number, text: string): TryOutcome {
  let body: unknown;
  try {
    body = JSON.parse(text);
    if (status === 200) return { kind: 'answered', body };
  } catch (cause) {
    if (!REFUSALS.has(status)) return { kind: 'unknown', cause };
  }
  const code = body instanceof Object && 'code' in body ? Number(body.code) : Number.NaN;
  const cause = new LeaseError('LEASE_STORE_REFUSED', `etcd answers ${status}: ${text.slice(0, 200)}`, {
    hint: 'See whether etcd is 3.4 or newer, and whether the certificate is one that it lets in.',
    facts: { status },
  });
  // Others are "timed out", "no leader", "too many requests": the proposal may have got through all the same.
  return NEVER.has(code) || REFUSALS.has(status) ? { kind: 'refused', cause } : { kind: 'unknown', cause };
}

function splitLines(response: IncomingMessage, line: (text: string) => void, end: () => void): void {
  let rest = '';
  response.setEncoding('utf8');
  response.on('data', (text: string) => {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    if (rest.length > RESPONSE_BYTES_MAX) end();
    for (const each of lines) line(each);
  });
}
