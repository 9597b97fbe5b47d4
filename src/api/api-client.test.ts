import { readFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { ApiClient } from './api-client.ts';
import { ManualClock, type ServedApi, serveApi, socketDirectory } from './api-fixture.ts';
import { ApiServer } from './api-server.ts';
import { MemoryService } from './memory-service.ts';
import type { HostEvent } from './resources.ts';

describe('the client', () => {
  it('does with VMs what the host offers', async () => {
    await using api = await serveApi();
    const { client } = api;
    const declared = await client.call('declareVm', {
      headers: { 'idempotency-key': 'k1' },
      body: { spec: 'name: alpha' },
    });
    expect(declared).toMatchObject({ name: 'alpha', version: 1, directory: '/', desired: 'running' });
    const changed = await client.call('changeVm', {
      params: { name: 'alpha' },
      headers: { 'if-match': `"${declared.version}"` },
      body: { spec: 'name: alpha', directory: '/srv' },
    });
    expect(changed).toMatchObject({ version: 2, directory: '/srv' });
    expect(await client.call('stopVm', { params: { name: 'alpha' } })).toMatchObject({ desired: 'stopped' });
    expect(await client.call('listVms', { query: { limit: 1 } })).toMatchObject({ vms: [{ name: 'alpha' }] });
    const { hosts } = await client.call('listHosts', {});
    expect(hosts).toMatchObject([{ name: 'here', vms: { declared: 1 } }]);
    expect(await client.call('getHost', { params: { name: 'here' } })).toEqual(hosts[0]);
    expect(await client.call('deleteVm', { params: { name: 'alpha' } })).toBeNull();
    expect(api.service.vms.size).toBe(0);
  });

  it('throws what the host threw, with the code of the module that it came from', async () => {
    await using api = await serveApi();
    await expect(api.client.call('getVm', { params: { name: 'alpha' } })).rejects.toMatchObject({
      code: 'HOST_VM_UNKNOWN',
    });
    await expect(api.client.call('declareVm', { body: { spec: 'x' } })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      hint: 'Correct it.',
      facts: { problems: ['spec:1: name: expected a name'] },
    });
  });

  it('cannot be led to another path by a name', async () => {
    await using api = await serveApi();
    for (const name of ['..', '../host', 'a/start', '', 'a?b', '%2e%2e']) {
      await expect(api.client.call('getVm', { params: { name } })).rejects.toMatchObject({
        code: expect.stringMatching(/^API_(?:BAD_REQUEST|NOT_FOUND)$/),
      });
    }
  });

  it('says what to do when no host listens', async () => {
    using directory = socketDirectory();
    const client = new ApiClient({ socketPath: join(directory.path, 'api.sock'), clock: systemClock });
    const unreachable = { code: 'API_UNREACHABLE', hint: expect.stringContaining('understudy host') };
    await expect(client.call('getHealth', {})).rejects.toMatchObject(unreachable);
    await expect(client.events({ after: 0 }).next()).rejects.toMatchObject(unreachable);
  });

  it.each([
    ['ends the connection', ''],
    ['cuts its answer short', 'HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"status"'],
    ['speaks something else', 'SSH-2.0-OpenSSH_9.2\r\n'],
    ['sends no JSON', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'],
    ['sends what is not described', 'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"hm"}'],
    ['refuses without a problem', 'HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops'],
  ])('trusts no host that %s', async (_, answer) => {
    using directory = socketDirectory();
    const socketPath = join(directory.path, 'api.sock');
    await using _server = await answering(socketPath, (socket) => socket.end(answer));
    const client = new ApiClient({ socketPath, clock: systemClock });
    await expect(client.call('getHealth', {})).rejects.toMatchObject({ code: 'API_NO_ANSWER' });
  });

  it('does not wait for ever for a host that hangs', async () => {
    using directory = socketDirectory();
    const socketPath = join(directory.path, 'api.sock');
    const clock = new ManualClock();
    await using _ = await answering(socketPath, () => clock.advance(60_000));
    const client = new ApiClient({ socketPath, clock });
    await expect(client.call('getHealth', {})).rejects.toMatchObject({ code: 'API_NO_ANSWER' });
    await expect(client.events({ after: 0 }).next()).rejects.toMatchObject({ code: 'API_NO_ANSWER' });
  });

  it('gives up on request', async () => {
    using directory = socketDirectory();
    const socketPath = join(directory.path, 'api.sock');
    const abort = new AbortController();
    await using _ = await answering(socketPath, () => abort.abort(new Error('enough')));
    const client = new ApiClient({ socketPath, clock: systemClock });
    await expect(client.call('getHealth', {}, abort.signal)).rejects.toThrow('enough');
  });
});

describe('events at the client', () => {
  it('come each once and in order, though host and connection are gone time and again', async () => {
    using directory = socketDirectory();
    const socketPath = join(directory.path, 'api.sock');
    const service = new MemoryService();
    const listen = () => ApiServer.listen({ service, socketPath, clock: systemClock, log: silentLogger });
    let server = await listen();
    const abort = new AbortController();
    const client = new ApiClient({ socketPath, clock: systemClock });
    const got: number[] = [];
    const reading = collect(client.events({ after: 2, signal: abort.signal }), (event) => got.push(event.id));
    for (let round = 0; round < 4; round += 1) {
      for (let count = 0; count < 60; count += 1) service.emit('alpha', 'tick');
      await expect.poll(() => got.length, { timeout: 10_000 }).toBeGreaterThan(60 * round);
      await server[Symbol.asyncDispose]();
      service.emit('alpha', 'unseen');
      server = await listen();
    }
    await expect.poll(() => got.at(-1), { timeout: 10_000 }).toBe(244);
    expect(got).toEqual(Array.from({ length: 242 }, (_, index) => index + 3));
    abort.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    await server[Symbol.asyncDispose]();
  });

  it('begin with those to come where nobody says after which, and none is lost when the host ends before the first', async () => {
    using directory = socketDirectory();
    const socketPath = join(directory.path, 'api.sock');
    const service = new MemoryService();
    const listen = () => ApiServer.listen({ service, socketPath, clock: systemClock, log: silentLogger });
    service.emit('alpha', 'early');
    let server = await listen();
    const abort = new AbortController();
    const client = new ApiClient({ socketPath, clock: systemClock });
    const got: number[] = [];
    const reading = collect(client.events({ signal: abort.signal }), (event) => got.push(event.id));
    await expect.poll(() => connectionsTo({ socketPath })).toBe(1);
    // The place has been told with the head of the answer when this one has been answered.
    await client.call('getHealth', {});
    await server[Symbol.asyncDispose]();
    service.emit('alpha', 'unseen');
    server = await listen();
    await expect.poll(() => got, { timeout: 10_000 }).toEqual([2]);
    service.emit('alpha', 'live');
    await expect.poll(() => got).toEqual([2, 3]);
    abort.abort(new Error('enough'));
    await expect(reading).rejects.toThrow('enough');
    await server[Symbol.asyncDispose]();
  });

  it('let their connection go when the reader has enough', async () => {
    await using api = await serveApi();
    api.service.emit('alpha', 'tick');
    for await (const event of api.client.events({ after: 0 })) {
      expect(event.id).toBe(1);
      expect(connectionsTo(api)).toBe(1);
      break;
    }
    await expect.poll(() => connectionsTo(api)).toBe(0);
  });
});

/** Connections that the kernel knows: a listening socket is in state 01, a connected one in 03. */
function connectionsTo({ socketPath }: Pick<ServedApi, 'socketPath'>): number {
  const lines = readFileSync('/proc/net/unix', 'utf8').split('\n');
  return lines.filter((line) => line.endsWith(` ${socketPath}`) && line.split(' ')[5] === '03').length;
}

async function collect(events: AsyncIterable<HostEvent>, take: (event: HostEvent) => void): Promise<void> {
  for await (const event of events) take(event);
}

/** Something that listens where a host is expected, and answers every request in its own way. */
async function answering(path: string, answer: (socket: Socket) => void): Promise<AsyncDisposable> {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => answer(socket));
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  return { [Symbol.asyncDispose]: () => new Promise((resolve) => server.close(() => resolve())) };
}
