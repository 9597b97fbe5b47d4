import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, get } from 'node:https';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Logger, silentLogger } from '../base/logger.ts';
import { serveAccess, TestAuthority } from './access-fixture.ts';
import { ManualClock } from './api-fixture.ts';
import { MemoryService } from './memory-service.ts';
import { Newcomers } from './newcomers.ts';

let authority: TestAuthority;
beforeAll(async () => {
  authority = await TestAuthority.make();
});
afterAll(() => authority[Symbol.dispose]());

const WRONG = { token: `us_0123456789ab_${'x'.repeat(43)}` };
const list = { path: '/v1/vms' };

async function served() {
  const [service, clock, lines] = [new MemoryService(), new ManualClock(), [] as unknown[]];
  const note = (message: string, facts?: object) => lines.push({ message, ...facts });
  const log: Logger = { ...silentLogger, info: note, warn: note };
  const api = await serveAccess(authority, { service, clock, log });
  const { token } = service.createToken({ name: 'ada', role: 'viewer', expiresInSeconds: null });
  return { api, clock, lines, valid: { token }, [Symbol.asyncDispose]: () => api[Symbol.asyncDispose]() };
}

describe('who guesses tokens', () => {
  it('keeps nobody out who shows a valid one or a certificate from the same address', async () => {
    await using host = await served();
    const certified = await authority.client({ name: 'olga', unit: 'viewer' });
    const statuses: number[] = [];
    for (let count = 0; count < 60; count += 1) {
      statuses.push((await host.api.ask(list, WRONG)).status);
      expect((await host.api.ask(list, host.valid)).status).toBe(200);
    }
    // The guesses themselves are told to stop, and cost a handshake each from then on.
    expect(statuses).toEqual([...Array(20).fill(401), ...Array(40).fill(429)]);
    expect((await host.api.ask(list, WRONG)).headers.connection).toBe('close');
    expect((await host.api.ask(list, host.valid)).headers.connection).not.toBe('close');
    expect((await host.api.ask(list, certified)).status).toBe(200);
    // Who shows nothing has guessed nothing.
    expect((await host.api.ask(list)).status).toBe(401);
    expect((await host.api.ask({ path: '/v1/health' })).status).toBe(200);
    host.clock.advance(60_000);
    expect((await host.api.ask(list, WRONG)).status).toBe(401);
  });

  it('does not fill the log: so many lines in a minute, then a number', async () => {
    await using host = await served();
    for (let count = 0; count < 50; count += 1) await host.api.ask(list, WRONG);
    await host.api.ask(list, host.valid);
    await expect.poll(() => host.lines.at(-1)).toMatchObject({ status: 200 });
    const refused = host.lines.filter((line) => /"status":4/.test(JSON.stringify(line)));
    expect(refused).toHaveLength(20);
    host.clock.advance(60_000);
    expect(host.lines.at(-1)).toMatchObject({ message: expect.any(String), from: '127.0.0.1', count: 30 });
    expect(JSON.stringify(host.lines)).not.toContain(WRONG.token);
  });

  it('does not fill the log with what is no TLS or no HTTP either', async () => {
    await using host = await served();
    for (let count = 0; count < 30; count += 1) {
      const socket = connect(host.api.port, '127.0.0.1');
      socket.on('error', () => {}).resume();
      socket.write('GET / HTTP/1.1\r\n\r\n');
      await once(socket, 'close');
    }
    expect(host.lines.length).toBeLessThanOrEqual(20);
  });
});

describe('strangers who only connect', () => {
  const crowd = async (isWatched: boolean) => {
    const { certificate, key } = authority.listen;
    const newcomers = new Newcomers({ max: 3 });
    const server = createServer(
      { cert: readFileSync(certificate), key: readFileSync(key) },
      (request, response) => {
        newcomers.known(request.socket);
        response.end('in');
      },
    );
    server.maxConnections = 6;
    if (isWatched) newcomers.watch(server);
    await once(server.listen(0, '127.0.0.1'), 'listening');
    const { port } = server.address() as AddressInfo;
    const silent: Socket[] = [];
    const ask = () =>
      new Promise<number | undefined>((resolve) => {
        const request = get({ port, ca: authority.certificate, agent: false }, (response) => {
          response.resume();
          resolve(response.statusCode);
        });
        request.on('error', () => resolve(undefined));
      });
    const open = new AsyncDisposableStack();
    open.defer(() => {
      for (const socket of silent) socket.destroy();
      server.closeAllConnections();
      server.close();
    });
    const join = async () => {
      const accepted = once(server, 'connection');
      const socket = connect(port, '127.0.0.1');
      socket.on('error', () => {});
      silent.push(socket);
      await accepted;
      return socket;
    };
    return { ask, join, silent, newcomers, [Symbol.asyncDispose]: () => open.disposeAsync() };
  };

  it('make room for who comes after them, so that those whom the host knows get in', async () => {
    await using host = await crowd(true);
    const first = await host.join();
    const gone = once(first, 'close');
    for (let count = 0; count < 20; count += 1) {
      await host.join();
      if (count % 5 === 0) expect(await host.ask()).toBe(200);
    }
    await gone;
    // Those that have left are not remembered.
    expect(host.newcomers.size).toBeLessThanOrEqual(3);
  });

  it('would keep them out if nobody had to go (control)', async () => {
    await using host = await crowd(false);
    for (let count = 0; count < 6; count += 1) await host.join();
    expect(await host.ask()).toBeUndefined();
  });
});
