import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ask, type RawRequest, type ServedApi, serveApi } from './api-fixture.ts';
import { type RouteId, routeOf, routes } from './routes.ts';

const RUNS = { numRuns: 300 };

const routeIds = Object.keys(routes).filter((id) => id !== 'streamEvents') as RouteId[];

const trickyNames = [
  '..',
  '.',
  '%2e%2e',
  '%2e%2e%2fhost',
  'alpha%2fstart',
  'alpha%2F..%2Fbeta',
  '%',
  '%zz',
  '%00',
  '%c0%ae',
  'alpha%00',
  'alpha%20',
  'alpha;start',
  'ALPHA',
  '-alpha',
  'a'.repeat(41),
  'a'.repeat(5000),
  '__proto__%20',
  '*',
  ':name',
  '{name}',
  '%ff',
  '@',
  '~root',
];
const anyName = fc.oneof(
  fc.constantFrom('alpha', 'beta', 'constructor', ...trickyNames),
  fc.string({ unit: 'binary' }).map((text) => encodeURIComponent(text.toWellFormed())),
);
const trickyBodies = [
  '',
  '{',
  'null',
  '[]',
  '7',
  '"spec"',
  '{"spec":null}',
  '{"spec":["name: alpha"]}',
  '{"__proto__":{"spec":"name: x"}}',
  '{"constructor":{"prototype":{}}}',
  '{"spec":"name: x","spec":7}',
  '{"spec":"name: gamma","more":1}',
  '\u0000',
  '['.repeat(50_000),
  `{"spec":"${'x'.repeat(1_100_000)}"}`,
  ' '.repeat(1_500_000),
  '{"spec":"name: gamma","directory":"../etc"}',
  '{"graceful":"no"}',
];
const goodBodies = [
  '{"spec":"name: alpha"}',
  '{"spec":"name: beta","desired":"stopped"}',
  '{"graceful":false}',
];
const anyBody = fc.oneof(
  fc.constantFrom(undefined, ...goodBodies, ...trickyBodies),
  fc.json(),
  fc
    .record(
      { spec: fc.jsonValue(), directory: fc.jsonValue(), desired: fc.jsonValue() },
      { requiredKeys: [] },
    )
    .map((value) => JSON.stringify(value)),
);
const headerText = fc.string({ unit: fc.constantFrom(...'aZ09-_.:;,"/\\*=()%~ '), maxLength: 40 });
const anyHeaders = fc.dictionary(
  fc.constantFrom(
    'if-match',
    'idempotency-key',
    'content-type',
    'last-event-id',
    'x-request-id',
    'accept',
    'cookie',
    'origin',
    'x-http-method-override',
  ),
  fc.oneof(
    headerText,
    fc.constantFrom(
      '"1"',
      '"2"',
      '*',
      'W/"1"',
      '""',
      '1e9',
      '-1',
      'application/json',
      'text/html',
      'multipart/form-data',
      'k1',
      'x'.repeat(9000),
      'DELETE',
    ),
  ),
  { noNullPrototype: true },
);
const anyQuery = fc.dictionary(
  fc.constantFrom('after', 'limit', 'vm', '__proto__', 'x[]'),
  fc.oneof(
    fc.constantFrom('0', '5', '-1', '1e3', '0x10', '', ' 1', '1001', 'NaN', '9'.repeat(30), 'alpha', '..'),
    fc.string({ unit: 'binary' }).map((text) => text.toWellFormed()),
  ),
  { noNullPrototype: true },
);

function requestTo(id: RouteId, name: string): { method: string; path: string } {
  const { method, path } = routeOf(id);
  return { method, path: path.replace('{name}', name) };
}

async function peopled(): Promise<ServedApi> {
  const api = await serveApi();
  api.service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'running' });
  return api;
}

/** Sends it. The server may close before it has read all of it: then the client may see no more than that. */
async function statusOf(api: ServedApi, request: RawRequest): Promise<number | 'cut'> {
  try {
    return (await ask(api.socketPath, request)).status;
  } catch (thrown) {
    if (/EPIPE|ECONNRESET|socket hang up/.test(String(thrown))) return 'cut';
    throw thrown;
  }
}

describe('whatever is asked of the API', () => {
  it('it never fails, and what it refuses changes nothing', async () => {
    await using api = await peopled();
    const anyRequest = fc.record({
      id: fc.constantFrom(...routeIds),
      name: anyName,
      query: anyQuery,
      headers: anyHeaders,
      body: anyBody,
    });
    await fc.assert(
      fc.asyncProperty(anyRequest, async ({ id, name, query, headers, body }) => {
        const { method, path } = requestTo(id, name);
        const search = new URLSearchParams(query).toString();
        const before = api.service.state();
        const status = await statusOf(api, {
          method,
          path: `${path}?${search}`,
          headers,
          ...(body !== undefined && { body }),
        });
        if (status !== 'cut') expect(status).toBeLessThan(500);
        if (method === 'GET' || status === 'cut' || status >= 400) expect(api.service.state()).toBe(before);
      }),
      RUNS,
    );
    expect((await ask(api.socketPath, { path: '/v1/health' })).status).toBe(200);
  });

  it.each(routeIds)('%s is refused, or found nowhere, under any other name and path', async (id) => {
    await using api = await peopled();
    const { method, path } = routeOf(id);
    const paths = [
      `/${path}`,
      `${path}/`,
      path.toUpperCase(),
      `${path}/..`,
      `/v1/../..${path}`,
      `/%2e%2e${path}`,
      path.replace('/', '\\'),
      `${path}%00`,
    ];
    const named = path.includes('{name}') ? trickyNames.map((name) => path.replace('{name}', name)) : [];
    const before = api.service.state();
    const headers = { 'if-match': '"1"' };
    for (const tricky of [...paths.map((each) => each.replace(/\{name\}/i, 'alpha')), ...named]) {
      const request = {
        method,
        path: tricky,
        headers,
        ...(method !== 'GET' && { body: '{"spec":"name: alpha"}' }),
      };
      const { status } = await ask(api.socketPath, request);
      expect([tricky, status >= 400 && status < 500]).toEqual([tricky, true]);
    }
    expect(api.service.state()).toBe(before);
  });

  it('bodies of a wrong form change nothing', async () => {
    await using api = await peopled();
    const before = api.service.state();
    for (const id of ['declareVm', 'changeVm'] as const) {
      for (const body of trickyBodies) {
        const status = await statusOf(api, {
          ...requestTo(id, 'alpha'),
          headers: { 'if-match': '"1"' },
          body,
        });
        if (status !== 'cut')
          expect([body.slice(0, 40), status >= 400 && status < 500]).toEqual([body.slice(0, 40), true]);
      }
    }
    expect(api.service.state()).toBe(before);
  });

  it('a flood of headers is refused', async () => {
    await using api = await peopled();
    for (const headers of [
      Object.fromEntries(Array.from({ length: 1500 }, (_, index) => [`x-${index}`, 'y'.repeat(20)])),
      { cookie: Array.from({ length: 900 }, () => 'a=bbbbbbbbbbbbbbbbbb') },
    ]) {
      expect(await statusOf(api, { path: '/v1/vms', headers })).toBe(431);
    }
  });

  it('a repeated key changes nothing, whatever comes with it', async () => {
    await using api = await peopled();
    const keyed = fc.constantFrom<RouteId>('declareVm', 'startVm', 'stopVm', 'promoteVm');
    await fc.assert(
      fc.asyncProperty(keyed, fc.uuid(), keyed, anyName, anyBody, async (id, key, other, name, body) => {
        const headers = { 'idempotency-key': key };
        const spec = JSON.stringify({ spec: `name: ${key.slice(0, 8)}` });
        await ask(api.socketPath, {
          ...requestTo(id, 'alpha'),
          headers,
          ...(id === 'declareVm' && { body: spec }),
        });
        expect(api.service.answers.has(key)).toBe(true);
        const before = api.service.state();
        const status = await statusOf(api, {
          ...requestTo(other, name),
          headers,
          ...(body !== undefined && { body }),
        });
        if (status !== 'cut') expect(status).toBeLessThan(500);
        expect(api.service.state()).toBe(before);
      }),
      { numRuns: 150 },
    );
  });
});
