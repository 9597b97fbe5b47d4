import { readFileSync } from 'node:fs';
import { Agent as HttpAgent, request as requestHttp } from 'node:http';
import { Agent as HttpsAgent, request as requestHttps } from 'node:https';
import { boundedText } from '../base/bounded-text.ts';
import { messageOf } from '../base/errors.ts';
import { isLoopbackHost } from '../base/loopback.ts';
import { MIB } from '../base/units.ts';
import { TelemetryError } from './telemetry-error.ts';

const RESPONSE_BYTES_MAX = 64 * MIB;
const CONNECTIONS_MAX = 4;

export interface VictoriaMetricsAccess {
  /** `https://metrics.example:8428`, with a path in front of its own where a proxy has one. Plain http to loopback only. */
  readonly url: string;
  /** PEM file: who signs its certificate, where that is not one of the CAs that Node knows. */
  readonly ca?: string | undefined;
  /** `bearer`: the file holds a token. `basic`: it holds `user:password`. */
  readonly credentials?: { readonly kind: 'bearer' | 'basic'; readonly file: string } | undefined;
  readonly callDeadlineMs: number;
}

export interface Call {
  readonly path: string;
  /** Sent as a form. */
  readonly form?: readonly (readonly [name: string, value: string])[];
  /** Sent as it is. */
  readonly body?: string;
}

/** VictoriaMetrics' HTTP API. Redirects are not followed: what is sent goes to the place that was named and to no other. */
export class VictoriaMetricsClient {
  readonly #access: VictoriaMetricsAccess;
  readonly #url: URL;
  readonly #agent: HttpAgent;

  /** @throws TelemetryError TELEMETRY_STORE_INSECURE, TELEMETRY_STORE_UNUSABLE */
  constructor(access: VictoriaMetricsAccess) {
    this.#access = access;
    this.#url = checkedUrl(access.url);
    const options = { keepAlive: true, maxSockets: CONNECTIONS_MAX };
    try {
      const ca = access.ca === undefined ? {} : { ca: readFileSync(access.ca, 'utf8') };
      this.#agent =
        this.#url.protocol === 'https:'
          ? new HttpsAgent({ ...options, ...ca, minVersion: 'TLSv1.2' })
          : new HttpAgent(options);
    } catch (cause) {
      throw unusable(cause);
    }
  }

  /**
   * The text of an answer.
   * @throws TelemetryError TELEMETRY_STORE_AWAY, TELEMETRY_STORE_REFUSED; TELEMETRY_STORE_UNUSABLE where the file with the
   * credentials cannot be read
   */
  async call({ path, form, body }: Call): Promise<string> {
    const sent =
      body ?? new URLSearchParams(form?.map(([name, value]): [string, string] => [name, value])).toString();
    const headers = {
      ...this.#credentials(),
      'content-type': body === undefined ? 'application/x-www-form-urlencoded' : 'application/json',
    };
    const { status, text } = await this.#send(path, { sent, headers });
    if (status >= 200 && status < 300) return text;
    const message = `VictoriaMetrics answers ${status} to ${path}: ${text.slice(0, 300).trim()}`;
    const isForNow = status >= 500 || status === 429;
    throw new TelemetryError(isForNow ? 'TELEMETRY_STORE_AWAY' : 'TELEMETRY_STORE_REFUSED', message, {
      hint: 'See whether telemetry.url, its credentials and the flags of VictoriaMetrics fit.',
      facts: { status },
    });
  }

  close(): void {
    this.#agent.destroy();
  }

  /** Read each time, so that they can be renewed. */
  #credentials(): Record<string, string> {
    const { credentials } = this.#access;
    if (credentials === undefined) return {};
    try {
      const text = readFileSync(credentials.file, 'utf8').replace(/\r?\n$/, '');
      if (credentials.kind === 'bearer') return { authorization: `Bearer ${text}` };
      return { authorization: `Basic ${Buffer.from(text).toString('base64')}` };
    } catch (cause) {
      throw unusable(cause);
    }
  }

  #send(
    path: string,
    { sent, headers }: { sent: string; headers: Record<string, string> },
  ): Promise<{ status: number; text: string }> {
    const { hostname, port, protocol, pathname } = this.#url;
    const { callDeadlineMs } = this.#access;
    const request = protocol === 'https:' ? requestHttps : requestHttp;
    return new Promise((resolve, reject) => {
      const fail = (cause: unknown) => {
        clearTimeout(timer);
        outgoing.destroy();
        reject(away(this.#url, cause));
      };
      const outgoing = request({
        agent: this.#agent,
        host: hostname.replace(/^\[|\]$/g, ''),
        port,
        path: pathname.replace(/\/$/, '') + path,
        method: 'POST',
        headers: { ...headers, 'content-length': Buffer.byteLength(sent) },
      });
      const timer = setTimeout(
        () => fail(new Error(`no answer within ${callDeadlineMs} ms`)),
        callDeadlineMs,
      );
      outgoing.on('error', fail);
      outgoing.on('response', (response) => {
        boundedText(response, RESPONSE_BYTES_MAX).then((text) => {
          clearTimeout(timer);
          resolve({ status: response.statusCode ?? 0, text });
        }, fail);
      });
      outgoing.end(sent);
    });
  }
}

function checkedUrl(text: string): URL {
  if (!URL.canParse(text)) throw unusable(new Error(`${text} is no URL`));
  const url = new URL(text);
  if (url.username !== '' || url.password !== '' || url.search !== '' || url.hash !== '')
    throw unusable(new Error('its URL has more than an address and a path'));
  if (url.protocol === 'https:') return url;
  if (url.protocol === 'http:' && isLoopbackHost(url.hostname)) return url;
  throw new TelemetryError('TELEMETRY_STORE_INSECURE', `${url.origin} would be spoken to in the clear`, {
    hint: 'Use https://, with telemetry.ca where a private CA signs; plain http only to a loopback address.',
    facts: { url: url.origin },
  });
}

function away(url: URL, cause: unknown): TelemetryError {
  return new TelemetryError('TELEMETRY_STORE_AWAY', `${url.origin} does not answer: ${messageOf(cause)}`, {
    hint: 'Bring it back, or correct telemetry.url. Samples wait on disk meanwhile.',
    facts: { url: url.origin },
    cause,
  });
}

function unusable(cause: unknown): TelemetryError {
  return new TelemetryError('TELEMETRY_STORE_UNUSABLE', `cannot use VictoriaMetrics: ${messageOf(cause)}`, {
    hint: 'See telemetry.url, ca and credentials in the configuration.',
    cause,
  });
}
