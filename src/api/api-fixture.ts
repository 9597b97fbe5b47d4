import { mkdtempSync, rmSync } from 'node:fs';
import { request as httpRequest, type IncomingHttpHeaders } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Clock, systemClock } from '../base/clock.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import { ApiClient } from './api-client.ts';
import { ApiServer } from './api-server.ts';
import { MemoryService } from './memory-service.ts';

export interface ServedApi extends AsyncDisposable {
  readonly service: MemoryService;
  readonly socketPath: string;
  readonly client: ApiClient;
}

/** A directory for sockets, removed at the end. */
export function socketDirectory(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), 'us-api-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}

/** A real server on a real socket, with nothing behind it but memory. */
export async function serveApi({
  clock = systemClock,
  log = silentLogger,
}: {
  clock?: Clock;
  log?: Logger;
} = {}): Promise<ServedApi> {
  const directory = socketDirectory();
  const socketPath = join(directory.path, 'api.sock');
  const service = new MemoryService();
  const server = await ApiServer.listen({ service, socketPath, clock, log });
  return {
    service,
    socketPath,
    client: new ApiClient({ socketPath, clock: systemClock }),
    [Symbol.asyncDispose]: async () => {
      await server[Symbol.asyncDispose]();
      directory[Symbol.dispose]();
    },
  };
}

export interface RawRequest {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Record<string, string | string[]>;
  readonly body?: string;
}

export interface RawAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

/** A request with nothing checked on this side. JSON unless the headers say otherwise. */
export async function ask(
  socketPath: string,
  { method = 'GET', path, headers, body }: RawRequest,
): Promise<RawAnswer> {
  const { promise, resolve, reject } = Promise.withResolvers<RawAnswer>();
  const request = httpRequest({
    socketPath,
    agent: false,
    method,
    path,
    headers: {
      // Not left to Node, which gives a GET or DELETE with a body no length.
      ...(body !== undefined && {
        'content-type': 'application/json',
        'content-length': String(Buffer.byteLength(body)),
      }),
      ...headers,
    },
  });
  request.on('error', reject);
  // What is switched to is not spoken here.
  request.on('upgrade', (response, socket) => {
    socket.destroy();
    resolve({ status: response.statusCode ?? 0, headers: response.headers, text: '' });
  });
  request.on('response', (response) => {
    let text = '';
    response.setEncoding('utf8');
    response.on('data', (chunk: string) => {
      text += chunk;
    });
    response.on('error', reject);
    response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text }));
  });
  request.end(body);
  return promise;
}

/** Time that stands still until it is moved. */
export class ManualClock implements Clock {
  #nowMs = 0;
  #tasks: { readonly atMs: number; readonly task: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  wallMs(): number {
    return this.#nowMs;
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => this.after(ms, resolve));
  }

  after(ms: number, task: () => void): () => void {
    const entry = { atMs: this.#nowMs + ms, task };
    this.#tasks.push(entry);
    return () => {
      this.#tasks = this.#tasks.filter((other) => other !== entry);
    };
  }

  /** Whether something is to happen in exactly so many milliseconds. */
  awaits(ms: number): boolean {
    return this.#tasks.some(({ atMs }) => atMs === this.#nowMs + ms);
  }

  advance(ms: number): void {
    this.#nowMs += ms;
    const due = this.#tasks.filter(({ atMs }) => atMs <= this.#nowMs);
    this.#tasks = this.#tasks.filter((entry) => !due.includes(entry));
    for (const { task } of due) task();
  }
}
