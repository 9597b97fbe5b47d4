import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { Agent, request as httpsRequest } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import { issue, readAuthority, type Subject } from '../pki/certificate.ts';
import { CertificateStore } from '../pki/certificate-store.ts';
import { type RawAnswer, type RawRequest, socketDirectory } from './api-fixture.ts';
import { ApiServer } from './api-server.ts';
import { HEARTBEAT } from './event-frames.ts';
import { authorizationOf, type TlsCredentials } from './host-address.ts';
import type { HostService } from './host-service.ts';

/** A CA of its own, for the tests of one file. */
export class TestAuthority implements Disposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'us-authority-'));
  readonly #store = new CertificateStore(this.#folder, { wallMs: Date.now });

  static async make(): Promise<TestAuthority> {
    const made = new TestAuthority();
    await made.#store.init();
    await made.#store.host('host', []);
    return made;
  }

  /** What a server takes. */
  get listen() {
    const [certificate, key] = [join(this.#folder, 'host.crt'), join(this.#folder, 'host.key')];
    return { address: '127.0.0.1:0', certificate, key, clientCa: join(this.#folder, 'ca.crt') };
  }

  get certificate(): Buffer {
    return readFileSync(join(this.#folder, 'ca.crt'));
  }

  /** A client certificate, whatever it says. */
  async client(subject: Pick<Subject, 'name'> & Partial<Subject>): Promise<TlsCredentials> {
    const key = readFileSync(join(this.#folder, 'ca.key'), 'utf8');
    const ca = await readAuthority({ certificate: this.certificate.toString(), key });
    return await issue({ isServer: false, years: 1, ...subject }, { ca, wallMs: Date.now() });
  }

  [Symbol.dispose](): void {
    rmSync(this.#folder, { recursive: true });
  }
}

export interface ServedAccess extends AsyncDisposable {
  readonly server: ApiServer;
  /** Port of TLS, on loopback. */
  readonly port: number;
  /** Over TLS, exactly as given; connections are kept for each of those who show something. */
  ask(request: RawRequest, credentials?: TlsCredentials): Promise<RawAnswer>;
}

interface AccessOptions {
  readonly service: HostService;
  readonly clock: Clock;
  readonly log?: Logger;
  /** Called when a stream of events has begun; has to see to it that a heartbeat follows, at which it is left. */
  readonly onStream?: () => void;
}

/**
 * The server closes a connection that was idle for 5 s. Server and client have one event loop here: when a test kept it busy
 * for so long, a request is on its way before the client has seen the end.
 */
const REUSED_WITHIN_MS = 2000;

/** A real server that listens over TLS. */
export async function serveAccess(
  authority: TestAuthority,
  { service, clock, log = silentLogger, onStream = () => {} }: AccessOptions,
): Promise<ServedAccess> {
  const directory = socketDirectory();
  const socketPath = join(directory.path, 'api.sock');
  const server = await ApiServer.listen({ service, clock, log, socketPath, tls: authority.listen });
  const port = Number(server.tlsAddress?.split(':').at(-1));
  const ca = authority.certificate;
  const agents = new Map<TlsCredentials['certificate'], { agent: Agent; usedMs: number }>();
  const made: Agent[] = [];
  const agentOf = ({ certificate, key }: TlsCredentials) => {
    const options = { ca, keepAlive: true, maxSockets: 4, ...(certificate && { cert: certificate, key }) };
    const known = agents.get(certificate);
    const usedMs = performance.now();
    const isFresh = known !== undefined && usedMs - known.usedMs < REUSED_WITHIN_MS;
    const agent = isFresh ? known.agent : new Agent(options);
    if (!isFresh) made.push(agent);
    agents.set(certificate, { agent, usedMs });
    return agent;
  };
  return {
    server,
    port,
    ask: (request, credentials = {}) =>
      askOver(request, { port, credentials, agent: agentOf(credentials), onStream }),
    [Symbol.asyncDispose]: async () => {
      for (const agent of made) agent.destroy();
      await server[Symbol.asyncDispose]();
      directory[Symbol.dispose]();
    },
  };
}

interface AskOptions {
  readonly port: number;
  readonly credentials: TlsCredentials;
  readonly agent: Agent;
  readonly onStream: () => void;
}

function askOver(
  { method = 'GET', path, headers, body }: RawRequest,
  { port, credentials, agent, onStream }: AskOptions,
): Promise<RawAnswer> {
  const { promise, resolve, reject } = Promise.withResolvers<RawAnswer>();
  const json = body !== undefined && {
    'content-type': 'application/json',
    'content-length': String(Buffer.byteLength(body)),
  };
  const sent = { ...json, ...authorizationOf(credentials), ...headers };
  const request = httpsRequest({ agent, host: '127.0.0.1', port, method, path, headers: sent });
  let answered = false;
  request.on('error', (error) => {
    // An answer may come before all of the request is taken; what the server does not want to hear breaks off then.
    if (!answered) reject(error);
  });
  request.on('upgrade', (response, socket) => {
    socket.destroy();
    resolve({ status: response.statusCode ?? 0, headers: response.headers, text: '' });
  });
  request.on('response', (response) => {
    answered = true;
    const { statusCode: status = 0, headers } = response;
    let text = '';
    response.setEncoding('utf8');
    response.on('data', (chunk: string) => {
      const isFirst = text === '';
      text += chunk;
      if (headers['content-type'] !== 'text/event-stream') return;
      if (isFirst) onStream();
      if (!text.includes(HEARTBEAT)) return;
      // It does not end by itself.
      resolve({ status, headers, text });
      response.destroy();
    });
    response.on('error', reject);
    response.on('end', () => resolve({ status, headers, text }));
  });
  request.end(body);
  return promise;
}
