import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { InvariantViolation } from '../base/assert.ts';
import { systemClock } from '../base/clock.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import { callFailed } from '../linux/linux-error.ts';
import { ask, serveApi, socketDirectory } from './api-fixture.ts';
import { ApiServer } from './api-server.ts';
import { MemoryService } from './memory-service.ts';

const SPEC = JSON.stringify({ spec: 'name: alpha' });

function problem(text: string) {
  return JSON.parse(text) as { code: string; status: number; detail: string; problems?: string[] };
}

describe('the API', () => {
  it('declares a VM, tells where it is, and changes it only for who knows its version', async () => {
    await using api = await serveApi();
    const declared = await ask(api.socketPath, { method: 'POST', path: '/v1/vms', body: SPEC });
    expect(declared).toMatchObject({ status: 201, headers: { location: '/v1/vms/alpha', etag: '"1"' } });

    const path = declared.headers.location ?? '';
    const change = (headers: Record<string, string>) =>
      ask(api.socketPath, { method: 'PUT', path, headers, body: SPEC });
    const unconditional = await change({});
    expect([unconditional.status, problem(unconditional.text).code]).toEqual([
      428,
      'API_PRECONDITION_REQUIRED',
    ]);
    expect((await change({ 'if-match': 'W/"1"' })).status).toBe(400);
    expect(await change({ 'if-match': '"1"' })).toMatchObject({ status: 200, headers: { etag: '"2"' } });
    expect((await change({ 'if-match': '"1"' })).status).toBe(412);

    const stale = await ask(api.socketPath, { method: 'DELETE', path, headers: { 'if-match': '"1"' } });
    expect(stale.status).toBe(412);
    expect(await ask(api.socketPath, { method: 'DELETE', path })).toMatchObject({ status: 204, text: '' });
    expect((await ask(api.socketPath, { path })).status).toBe(404);
  });

  it('ends a page of VMs early rather than let specifications add up, and its pages hold every VM once', async () => {
    await using api = await serveApi();
    const filler = '#'.repeat(1_000_000);
    for (let index = 0; index < 9; index += 1) {
      api.service.declareVm({ spec: `name: vm-${index}\n${filler}`, directory: '/', desired: 'running' });
    }
    const pages: string[][] = [];
    for (let next: string | null | undefined; next !== null; ) {
      const page = await api.client.call('listVms', { query: next === undefined ? {} : { after: next } });
      pages.push(page.vms.map(({ name }) => name));
      next = page.next;
    }
    expect(pages.length).toBeGreaterThan(1);
    expect(pages.flat()).toEqual(Array.from({ length: 9 }, (_, index) => `vm-${index}`));
  });

  it('refuses with a problem that names every fault of the request', async () => {
    await using api = await serveApi();
    const body = JSON.stringify({ spec: 7, directory: 'here', more: true });
    const answer = await ask(api.socketPath, { method: 'POST', path: '/v1/vms', body });
    expect(answer).toMatchObject({
      status: 400,
      headers: { 'content-type': expect.stringContaining('application/problem+json') },
    });
    expect(problem(answer.text)).toMatchObject({ code: 'API_BAD_REQUEST', status: 400 });
    expect(problem(answer.text).problems).toHaveLength(3);
  });

  it.each([
    ['an unknown path', { path: '/v2' }, 404, 'API_NOT_FOUND'],
    [
      'an unknown path before what is sent to it',
      { method: 'POST', path: '/v2', body: ' '.repeat(2_000_000) },
      404,
      'API_NOT_FOUND',
    ],
    ['another method', { method: 'PATCH', path: '/v1/vms' }, 405, 'API_METHOD_NOT_ALLOWED'],
    ['a path that cannot be decoded', { path: '/v1/vms/%' }, 400, 'API_BAD_REQUEST'],
    [
      'another media type',
      { method: 'POST', path: '/v1/vms', body: 'x', headers: { 'content-type': 'text/plain' } },
      415,
      'API_MEDIA_TYPE',
    ],
    [
      'too long a body',
      { method: 'POST', path: '/v1/vms', body: ' '.repeat(2_000_000) },
      413,
      'API_BODY_TOO_LARGE',
    ],
    [
      'too long headers',
      { path: '/v1/vms', headers: { 'x-much': 'x'.repeat(20_000) } },
      431,
      'API_HEADERS_TOO_LARGE',
    ],
    ['a bad specification', { method: 'POST', path: '/v1/vms', body: '{"spec":"x"}' }, 422, 'CONFIG_INVALID'],
  ])('answers %s with a problem, an id and no more', async (_, request, status, code) => {
    await using api = await serveApi();
    const answer = await ask(api.socketPath, request);
    expect([answer.status, problem(answer.text).code]).toEqual([status, code]);
    expect(answer.headers).toMatchObject({
      'x-request-id': expect.stringMatching(/^[\w-]{36}$/),
      'content-type': expect.stringContaining('application/problem+json'),
    });
  });

  it('says which methods a path has', async () => {
    await using api = await serveApi();
    const answer = await ask(api.socketPath, { method: 'HEAD', path: '/v1/vms/alpha' });
    expect(answer).toMatchObject({ status: 405, headers: { allow: 'GET, PUT, DELETE' } });
  });

  it('takes the id of a request from its caller if it is sane, and logs it', async () => {
    const logged: unknown[] = [];
    const log: Logger = { ...silentLogger, info: (_, facts) => logged.push(facts?.requestId) };
    await using api = await serveApi({ log });
    const idFor = async (given: string) => {
      const answer = await ask(api.socketPath, { path: '/v1/health', headers: { 'x-request-id': given } });
      return answer.headers['x-request-id'];
    };
    expect(await idFor('cli-7')).toBe('cli-7');
    const made = await idFor('"; drop');
    expect(made).toMatch(/^[\w-]{36}$/);
    await expect.poll(() => logged).toEqual(['cli-7', made]);
  });

  it.each([
    ['an error', new Error('no such table in /var/lib/secret.db'), 'API_INTERNAL'],
    ['an error with a code', callFailed('open /var/lib/secret.db', 'EIO'), 'LINUX_CALL_FAILED'],
  ])('tells of %s inside nothing but a code, and logs it', async (_, error, code) => {
    const logged: unknown[] = [];
    const log: Logger = { ...silentLogger, error: (_, facts) => logged.push(facts) };
    await using api = await serveApi({ log });
    api.service.getVm = () => {
      throw error;
    };
    const answer = await ask(api.socketPath, { path: '/v1/vms/alpha', headers: { 'x-request-id': 'r1' } });
    expect([answer.status, problem(answer.text).code]).toEqual([500, code]);
    expect(answer.text).not.toMatch(/secret|\.ts|at /);
    expect(logged).toEqual([
      expect.objectContaining({ requestId: 'r1', error: expect.stringContaining('secret') }),
    ]);
  });

  it('takes no note of a client that does not wait for its answer', async () => {
    const logged: unknown[] = [];
    const log: Logger = { ...silentLogger, error: (...line) => logged.push(line) };
    await using api = await serveApi({ log });
    api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'running' });
    const { promise, resolve } = Promise.withResolvers<void>();
    api.service.promotion = () => promise;
    const socket = createConnection(api.socketPath);
    socket.write('POST /v1/vms/alpha/promote HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k1\r\n\r\n');
    await expect.poll(() => api.service.promotions).toBe(1);
    socket.destroy();
    await once(socket, 'close');
    resolve();
    await expect.poll(() => api.service.answers.get('k1')?.status).toBe(200);
    expect(logged).toEqual([]);
  });

  it('ends the process, once it has answered, when an invariant is broken', async () => {
    await using api = await serveApi();
    api.service.getVm = () => {
      throw new InvariantViolation('two of one name');
    };
    // For as long as this takes, what nobody catches is ours.
    const others = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    try {
      const uncaught = new Promise((resolve) => process.once('uncaughtException', resolve));
      expect((await ask(api.socketPath, { path: '/v1/vms/alpha' })).status).toBe(500);
      expect(await uncaught).toBeInstanceOf(InvariantViolation);
    } finally {
      for (const listener of others) process.on('uncaughtException', listener);
    }
  });

  it('fails rather than answer with what its document does not describe', async () => {
    await using api = await serveApi();
    api.service.health = () => ({ status: 'wonderful' }) as never;
    expect((await ask(api.socketPath, { path: '/v1/health' })).status).toBe(500);
  });
});

describe('an Idempotency-Key', () => {
  const declare = { method: 'POST', path: '/v1/vms', headers: { 'idempotency-key': 'k1' }, body: SPEC };

  it('gets a repeated request the first answer byte for byte, and nothing is done again', async () => {
    await using api = await serveApi();
    const first = await ask(api.socketPath, declare);
    const before = api.service.state();
    const again = await ask(api.socketPath, {
      ...declare,
      body: '{ "spec": "name: alpha", "directory": "/" }',
    });
    expect(again.text).toBe(first.text);
    expect(again).toMatchObject({ status: 201, headers: { 'idempotency-replayed': 'true', etag: '"1"' } });
    expect(again.headers['content-type']).toBe(first.headers['content-type']);
    expect(again.headers.location).toBe(first.headers.location);
    expect(api.service.state()).toBe(before);

    const without = await ask(api.socketPath, { ...declare, headers: {} });
    expect(problem(without.text).code).toBe('HOST_VM_EXISTS');
  });

  it('keeps a refusal too', async () => {
    await using api = await serveApi();
    const start = { method: 'POST', path: '/v1/vms/alpha/start', headers: { 'idempotency-key': 'k1' } };
    const first = await ask(api.socketPath, start);
    api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'stopped' });
    expect(await ask(api.socketPath, start)).toMatchObject({ status: 404, text: first.text });
  });

  it('is refused for another request', async () => {
    await using api = await serveApi();
    await ask(api.socketPath, declare);
    for (const other of [
      { ...declare, body: JSON.stringify({ spec: 'name: beta' }) },
      { method: 'POST', path: '/v1/vms/alpha/start', headers: declare.headers },
    ]) {
      const answer = await ask(api.socketPath, other);
      expect([answer.status, problem(answer.text).code]).toEqual([422, 'API_KEY_REUSED']);
    }
    expect([...api.service.vms.keys()]).toEqual(['alpha']);
  });

  it('lets one of two requests at the same time through', async () => {
    await using api = await serveApi();
    api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'running' });
    const { promise, resolve } = Promise.withResolvers<void>();
    api.service.promotion = () => promise;
    const promote = { method: 'POST', path: '/v1/vms/alpha/promote', headers: { 'idempotency-key': 'k1' } };
    const first = ask(api.socketPath, promote);
    await expect.poll(() => api.service.promotions).toBe(1);
    const second = await ask(api.socketPath, promote);
    expect([second.status, problem(second.text).code]).toEqual([409, 'API_KEY_BUSY']);
    resolve();
    expect((await first).status).toBe(200);
    expect(await ask(api.socketPath, promote)).toMatchObject({
      status: 200,
      headers: { 'idempotency-replayed': 'true' },
    });
    expect(api.service.promotions).toBe(1);
  });

  it('may be used again after a fault', async () => {
    await using api = await serveApi();
    api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'running' });
    const promote = { method: 'POST', path: '/v1/vms/alpha/promote', headers: { 'idempotency-key': 'k1' } };
    api.service.promotion = () => Promise.reject(new Error('fault'));
    expect((await ask(api.socketPath, promote)).status).toBe(500);
    api.service.promotion = () => Promise.resolve();
    const second = await ask(api.socketPath, promote);
    expect(second.status).toBe(200);
    expect(second.headers).not.toHaveProperty('idempotency-replayed');
  });
});

describe('the socket of the API', () => {
  const listen = (socketPath: string) =>
    ApiServer.listen({ service: new MemoryService(), socketPath, clock: systemClock, log: silentLogger });

  it('is open to owner and group only, and is gone at the end', async () => {
    using directory = socketDirectory();
    const path = join(directory.path, 'api.sock');
    {
      await using _ = await listen(path);
      expect(statSync(path).mode & 0o777).toBe(0o660);
    }
    expect(existsSync(path)).toBe(false);
  });

  it('is not taken from a process that listens on it', async () => {
    using directory = socketDirectory();
    const path = join(directory.path, 'api.sock');
    await using _ = await listen(path);
    await expect(listen(path)).rejects.toMatchObject({ code: 'API_SOCKET_TAKEN' });
    expect((await ask(path, { path: '/v1/health' })).status).toBe(200);
  });

  it('is taken over from a process that was killed', async () => {
    using directory = socketDirectory();
    const path = join(directory.path, 'api.sock');
    const script = `require('node:net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
    spawnSync(process.execPath, ['-e', script]);
    expect(existsSync(path)).toBe(true);
    await using _ = await listen(path);
    expect((await ask(path, { path: '/v1/health' })).status).toBe(200);
  });

  it('does not replace a file that is no socket', async () => {
    using directory = socketDirectory();
    const path = join(directory.path, 'api.sock');
    writeFileSync(path, 'precious');
    await expect(listen(path)).rejects.toMatchObject({ code: 'API_LISTEN_FAILED' });
    expect(statSync(path).size).toBe(8);
  });

  it('cannot have a path that the kernel would cut', async () => {
    await expect(listen(`/tmp/${'x'.repeat(120)}`)).rejects.toMatchObject({ code: 'API_LISTEN_FAILED' });
  });

  it('survives who speaks no HTTP', async () => {
    await using api = await serveApi();
    const socket = createConnection(api.socketPath);
    socket.write('\x16\x03\x01 hello\r\n\r\n');
    const [bytes] = (await once(socket, 'data')) as [Buffer];
    expect(bytes.toString()).toMatch(/^HTTP\/1\.1 400 .*application\/problem\+json.*API_BAD_REQUEST/s);
    socket.destroy();
    expect((await ask(api.socketPath, { path: '/v1/health' })).status).toBe(200);
  });

  it.each([
    ['was refused', 'GET /v1/vms/% HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\ngarbage\r\n\r\n', 1],
    ['is waited for', 'POST /v1/vms/alpha/promote HTTP/1.1\r\nHost: x\r\n\r\ngarbage\r\n\r\n', 0],
  ])(
    'answers no garbage behind a request whose answer %s, lest one is taken for the other',
    async (_, sent, answers) => {
      await using api = await serveApi();
      api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'running' });
      const { promise, resolve } = Promise.withResolvers<void>();
      api.service.promotion = () => promise;
      const socket = createConnection(api.socketPath);
      let got = '';
      socket.on('data', (bytes: Buffer) => {
        got += bytes.toString();
      });
      socket.write(sent);
      await once(socket, 'close');
      resolve();
      expect(got.split('HTTP/1.1 ').length - 1).toBe(answers);
    },
  );
});
