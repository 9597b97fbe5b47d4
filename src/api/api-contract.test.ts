import { once } from 'node:events';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { describe, expect, it } from 'vitest';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import { ask, type RawRequest, type ServedApi, serveApi } from './api-fixture.ts';
import { Contract } from './contract-fixture.ts';

const contract = async ({ socketPath }: ServedApi): Promise<Contract> =>
  new Contract(JSON.parse((await ask(socketPath, { path: '/openapi.json' })).text));

const vm = '/v1/vms/alpha';
const body = JSON.stringify({ spec: 'name: alpha' });
const post = (path: string, more: Partial<RawRequest> = {}): RawRequest => ({
  method: 'POST',
  path,
  ...more,
});
const put = (tag: string, more: Partial<RawRequest> = {}): RawRequest => ({
  method: 'PUT',
  path: vm,
  headers: { 'if-match': tag },
  body,
  ...more,
});

const putPolicy = (tag: string, said: string): RawRequest => ({
  method: 'PUT',
  path: '/v1/policies/acme',
  headers: { 'if-match': tag },
  body: said,
});

const upgrade = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==',
};

const KNOWN_SNAPSHOT = '20261127T021500000Z';
const NO_SNAPSHOT = '20261127T021500123Z';
const KNOWN_TOKEN = 'aaaaaaaaaaaa';

/** In this order: each with the status that it gets. */
const talk: readonly [string, RawRequest, number][] = [
  ['getHealth', { path: '/v1/health' }, 200],
  ['getHealth', { path: '/v1/health', headers: { 'x-much': 'x'.repeat(20_000) } }, 431],
  ['listHosts', { path: '/v1/hosts' }, 200],
  ['listHosts', { path: '/v1/hosts?limit=x' }, 400],
  ['getHost', { path: '/v1/hosts/here' }, 200],
  ['getHost', { path: '/v1/hosts/elsewhere' }, 404],
  ['getHost', { path: '/v1/hosts/a%2Fb' }, 400],
  ['getOpenApi', { path: '/openapi.json' }, 200],
  ['getMetrics', { path: '/metrics' }, 200],
  ['getMetrics', { path: '/metrics?name=x' }, 200],
  ['getStats', { path: '/v1/stats' }, 200],
  ['listLodgers', { path: '/v1/lodgers' }, 200],
  ['declareVm', post('/v1/vms', { body }), 201],
  ['declareVm', post('/v1/vms', { body }), 409],
  ['declareVm', post('/v1/vms', { body: '{}' }), 400],
  ['declareVm', post('/v1/vms', { body: '{"spec":"x"}' }), 422],
  ['listVms', { path: '/v1/vms?limit=1' }, 200],
  ['listVms', { path: '/v1/vms?limit=0' }, 400],
  ['getVm', { path: vm }, 200],
  ['getVm', { path: '/v1/vms/beta' }, 404],
  ['changeVm', put('"1"'), 200],
  ['changeVm', put('"1"'), 412],
  ['changeVm', put('"1"', { headers: {} }), 428],
  ['changeVm', put('"2"', { body: '{"spec":"name: beta"}' }), 422],
  ['startVm', post(`${vm}/start`), 200],
  ['startVm', post('/v1/vms/beta/start'), 404],
  ['stopVm', post(`${vm}/stop`), 200],
  ['stopVm', post(`${vm}/stop`, { body: '{"graceful":false}' }), 200],
  ['stopVm', post(`${vm}/stop`, { body: '{"graceful":7}' }), 400],
  ['startVm', post(`${vm}/start`, { body: '{"from":"snapshot","discard":true}' }), 200],
  ['startVm', post(`${vm}/start`, { body: '{"from":"nowhere"}' }), 400],
  ['stopVm', post(`${vm}/stop`, { body: '{"termination":"suspend"}' }), 200],
  ['stopVm', post(`${vm}/stop`, { body: '{"termination":"keep"}' }), 400],
  ['protectVm', post(`${vm}/protect`), 200],
  ['protectVm', post('/v1/vms/beta/protect'), 404],
  ['unprotectVm', post(`${vm}/unprotect`), 200],
  ['testFailover', post(`${vm}/test-failover`), 200],
  ['testFailover', post('/v1/vms/beta/test-failover'), 404],
  ['deleteSavedState', { method: 'DELETE', path: `${vm}/saved/snapshot` }, 204],
  ['deleteSavedState', { method: 'DELETE', path: `${vm}/saved/snapshot` }, 404],
  ['deleteSavedState', { method: 'DELETE', path: `${vm}/saved/memory` }, 400],
  ['getOutlook', { path: '/v1/hosts/here/outlook?risk=0.05' }, 200],
  ['getOutlook', { path: '/v1/hosts/here/outlook?risk=1' }, 400],
  ['getOutlook', { path: '/v1/hosts/there/outlook' }, 404],
  ['getSeries', { path: `${vm}/series/cpu.usedCores?resolution=1h&seconds=60` }, 200],
  ['getSeries', { path: `${vm}/series/cpu.usedCores?resolution=2h` }, 400],
  ['getSeries', { path: `${vm}/series/..%2f` }, 400],
  ['getSeries', { path: '/v1/vms/beta/series/cpu.usedCores' }, 404],
  ['getForecast', { path: `${vm}/forecasts/cpu` }, 200],
  ['getForecast', { path: `${vm}/forecasts/gpu` }, 400],
  ['getForecast', { path: '/v1/vms/beta/forecasts/cpu' }, 404],
  ['getAllocation', { path: `${vm}/allocation` }, 200],
  ['getAllocation', { path: `${vm}/allocation?limit=0` }, 400],
  ['getAllocation', { path: '/v1/vms/beta/allocation' }, 404],
  ['createSnapshot', post(`${vm}/snapshots`), 201],
  ['createSnapshot', post(`${vm}/snapshots`, { body: '{"pause":true}' }), 201],
  ['createSnapshot', post(`${vm}/snapshots`, { body: '{"path":"/etc/passwd"}' }), 400],
  ['createSnapshot', post('/v1/vms/beta/snapshots'), 404],
  ['listSnapshots', { path: `${vm}/snapshots` }, 200],
  ['listSnapshots', { path: '/v1/vms/beta/snapshots' }, 404],
  ['verifySnapshot', post(`${vm}/snapshots/${KNOWN_SNAPSHOT}/verify`), 200],
  ['verifySnapshot', post(`${vm}/snapshots/${NO_SNAPSHOT}/verify`), 404],
  ['verifySnapshot', post(`${vm}/snapshots/..%2F..%2Fx/verify`), 400],
  ['deleteSnapshot', { method: 'DELETE', path: `${vm}/snapshots/${KNOWN_SNAPSHOT}` }, 204],
  ['deleteSnapshot', { method: 'DELETE', path: `${vm}/snapshots/${NO_SNAPSHOT}` }, 404],
  ['pruneSnapshots', post(`${vm}/prune-snapshots`, { body: '{"keep":1}' }), 200],
  ['pruneSnapshots', post(`${vm}/prune-snapshots`, { body: '{}' }), 400],
  ['promoteVm', post(`${vm}/promote`), 200],
  ['promoteVm', post('/v1/vms/beta/promote'), 404],
  ['migrateVm', post(`${vm}/migrate`), 200],
  ['migrateVm', post(`${vm}/migrate`, { body: '{"to":"b","wait":"moved","timeoutSeconds":5}' }), 200],
  ['migrateVm', post(`${vm}/migrate`, { body: '{"timeoutSeconds":0}' }), 400],
  ['migrateVm', post('/v1/vms/beta/migrate'), 404],
  ['listEvents', { path: '/v1/events?after=1&limit=2&vm=alpha' }, 200],
  ['listEvents', { path: '/v1/events?after=-1' }, 400],
  ['streamEvents', { path: '/v1/events/stream?after=x' }, 400],
  ['openConsole', { path: `${vm}/console`, headers: upgrade }, 101],
  ['createToken', post('/v1/tokens', { body: '{"name":"ci","role":"operator","expiresInSeconds":60}' }), 201],
  ['createToken', post('/v1/tokens', { body: '{"name":"","role":"viewer"}' }), 400],
  ['listTokens', { path: '/v1/tokens' }, 200],
  ['revokeToken', { method: 'DELETE', path: '/v1/tokens/0123456789ab' }, 404],
  ['revokeToken', { method: 'DELETE', path: `/v1/tokens/${KNOWN_TOKEN}` }, 204],
  ['createTenant', post('/v1/tenants', { body: '{"name":"acme"}' }), 201],
  ['createTenant', post('/v1/tenants', { body: '{"name":"acme"}' }), 409],
  ['listTenants', { path: '/v1/tenants' }, 200],
  ['listPolicies', { path: '/v1/policies' }, 200],
  ['getPolicy', { path: '/v1/policies/acme' }, 200],
  ['getPolicy', { path: '/v1/policies/none' }, 404],
  ['setPolicy', putPolicy('"1"', '{"limits":{"vmsMax":2},"defaults":{"shadow":{"enabled":false}}}'), 200],
  ['setPolicy', putPolicy('"1"', '{}'), 412],
  ['setPolicy', putPolicy('"2"', '{"defaults":{"shadow":{"enabled":"no"}}}'), 400],
  ['setPolicy', putPolicy('"2"', '{"defaults":{"qemu":{"binary":"sh"}}}'), 400],
  ['setPolicy', putPolicy('"2"', '{"limits":{"directories":["relative"]}}'), 400],
  ['deleteTenant', { method: 'DELETE', path: '/v1/tenants/acme' }, 204],
  ['deleteTenant', { method: 'DELETE', path: '/v1/tenants/acme' }, 404],
  ['deleteVm', { method: 'DELETE', path: vm, headers: { 'if-match': '"1"' } }, 412],
  ['deleteVm', { method: 'DELETE', path: vm }, 204],
  ['deleteVm', { method: 'DELETE', path: vm }, 404],
];

const tooLarge = JSON.stringify({ spec: 'x'.repeat(1_300_000) });
const failing = (code: string) => async () => {
  throw new ApiError(code as ApiErrorCode, 'it did not work');
};
const key = { 'idempotency-key': 'k1' };

/** Each refused, with this status, and with a host that fails in this way when it is asked to promote. */
const refusals: readonly (readonly [string, RawRequest, number, (() => Promise<void>)?])[] = [
  ['listHosts', { path: '/v1/hosts?limit=0' }, 400],
  ['listHosts', { path: '/v1/hosts?more=1' }, 400],
  ['getHost', { path: '/v1/hosts/elsewhere' }, 404],
  ['listVms', { path: '/v1/vms?limit=1001' }, 400],
  ['listVms', { path: '/v1/vms?after=A' }, 400],
  ['declareVm', post('/v1/vms', { body: tooLarge }), 413],
  ['declareVm', post('/v1/vms', { body, headers: { 'content-type': 'text/plain' } }), 415],
  ['declareVm', post('/v1/vms', { body: '{"spec":' }), 400],
  ['declareVm', post('/v1/vms', { body, headers: { 'idempotency-key': 'two words' } }), 400],
  ['declareVm', post('/v1/vms', { body }), 409],
  ['declareVm', post('/v1/vms', { body: '{"spec":"x"}' }), 422],
  ['declareVm', post('/v1/vms', { body, headers: { 'x-much': 'x'.repeat(20_000) } }), 431],
  ['getVm', { path: '/v1/vms/beta' }, 404],
  ['getVm', { path: '/v1/vms/Beta' }, 400],
  ['changeVm', put('"7"'), 412],
  ['changeVm', put('7'), 400],
  ['changeVm', put('', { headers: {} }), 428],
  ['deleteVm', { method: 'DELETE', path: vm, headers: { 'if-match': 'W/"1"' } }, 400],
  ['deleteVm', { method: 'DELETE', path: '/v1/vms/beta' }, 404],
  ['startVm', post('/v1/vms/beta/start'), 404],
  ['stopVm', post('/v1/vms/beta/stop'), 404],
  ['stopVm', post(`${vm}/stop`, { body: '[]' }), 400],
  ['protectVm', post('/v1/vms/beta/protect'), 404],
  ['unprotectVm', post('/v1/vms/beta/unprotect'), 404],
  ['testFailover', post('/v1/vms/beta/test-failover'), 404],
  ['deleteSavedState', { method: 'DELETE', path: `${vm}/saved/memory` }, 400],
  ['promoteVm', post('/v1/vms/beta/promote', { headers: key }), 404],
  ['promoteVm', post(`${vm}/promote`, { headers: key }), 422],
  ['promoteVm', post(`${vm}/promote`), 409, failing('KEEPER_NOT_PROTECTED')],
  ['promoteVm', post(`${vm}/promote`), 503, failing('KEEPER_NO_ANSWER')],
  ['promoteVm', post(`${vm}/promote`), 500, () => Promise.reject(new Error('disk on fire'))],
  ['migrateVm', post('/v1/vms/beta/migrate'), 404],
  ['migrateVm', post(`${vm}/migrate`, { body: '{"wait":"never"}' }), 400],
  ['getOutlook', { path: '/v1/hosts/there/outlook' }, 404],
  ['getSeries', { path: '/v1/vms/beta/series/cpu.usedCores' }, 404],
  ['getForecast', { path: '/v1/vms/beta/forecasts/cpu' }, 404],
  ['getAllocation', { path: '/v1/vms/beta/allocation' }, 404],
  ['listSnapshots', { path: '/v1/vms/beta/snapshots' }, 404],
  ['createSnapshot', post(`${vm}/snapshots`, { body: '{"keyFile":"/etc/key"}' }), 400],
  ['verifySnapshot', post(`${vm}/snapshots/x/verify`), 400],
  ['deleteSnapshot', { method: 'DELETE', path: `${vm}/snapshots/${NO_SNAPSHOT}` }, 404],
  ['pruneSnapshots', post(`${vm}/prune-snapshots`, { body: '{"keep":0}' }), 400],
  ['openConsole', { path: `${vm}/console` }, 426],
  ['openConsole', { path: '/v1/vms/beta/console', headers: upgrade }, 404],
  ['openConsole', { path: `${vm}/console`, headers: { ...upgrade, origin: 'http://a' } }, 403],
  ['createToken', post('/v1/tokens', { body: '{"name":"ci","role":"root"}' }), 400],
  ['listTokens', { path: '/v1/tokens?limit=0' }, 400],
  ['revokeToken', { method: 'DELETE', path: '/v1/tokens/x' }, 400],
  ['listEvents', { path: '/v1/events?after=1e3' }, 400],
  ['streamEvents', { path: '/v1/events/stream', headers: { 'last-event-id': 'x' } }, 400],
  ['createTenant', post('/v1/tenants', { body: '{"name":"A"}' }), 400],
  ['listTenants', { path: '/v1/tenants?limit=0' }, 400],
  ['deleteTenant', { method: 'DELETE', path: '/v1/tenants/none' }, 404],
  ['listPolicies', { path: '/v1/policies?limit=0' }, 400],
  ['getPolicy', { path: '/v1/policies/none' }, 404],
  ['setPolicy', putPolicy('"7"', '{}'), 404],
  ['setPolicy', { method: 'PUT', path: '/v1/policies/acme', body: '{}' }, 428],
];

describe('the OpenAPI document', () => {
  it('describes every answer of every route', async () => {
    await using api = await serveApi();
    const described = await contract(api);
    const byId = described.operations;
    api.service.tokens.set(KNOWN_TOKEN, {
      ...{ id: KNOWN_TOKEN, name: 'known', role: 'viewer', tenant: null, hash: new Uint8Array(32) },
      ...{ createdMs: 0, expiresMs: null },
    });
    api.service.snapshots.put('alpha', KNOWN_SNAPSHOT);
    for (const [id, request, status] of talk) {
      const answer = await ask(api.socketPath, request);
      expect([id, answer.status, described.faultOf(id, answer)]).toEqual([id, status, undefined]);
    }
    const answered = talk.filter(([, , status]) => status < 300).map(([id]) => id);
    expect(new Set([...answered, 'streamEvents'])).toEqual(new Set(byId.keys()));
  });

  it('describes every refusal, of every route that asks for something', async () => {
    await using api = await serveApi();
    const described = await contract(api);
    const byId = described.operations;
    await ask(api.socketPath, post('/v1/vms', { body }));
    const statuses = new Set<number>();
    const refused = new Set<string>();
    for (const [id, request, status, promotion] of refusals) {
      api.service.promotion = promotion ?? (async () => {});
      const before = api.service.state();
      const answer = await ask(api.socketPath, request);
      expect([id, answer.status, described.faultOf(id, answer)]).toEqual([id, status, undefined]);
      expect(JSON.parse(answer.text)).toMatchObject({ status, code: expect.stringMatching(/^[A-Z_]+$/) });
      // Nothing of it was done, but that somebody tried to promote.
      if (promotion === undefined) expect(api.service.state()).toBe(before);
      statuses.add(status);
      refused.add(id);
    }
    // What asks for nothing can only be asked in a wrong way that belongs to no route.
    const asksNothing = ['getHealth', 'getMetrics', 'getOpenApi', 'getStats', 'listLodgers'];
    expect([...byId.keys()].filter((id) => !refused.has(id)).sort()).toEqual(asksNothing);
    expect([...statuses].sort()).toEqual([400, 403, 404, 409, 412, 413, 415, 422, 426, 428, 431, 500, 503]);
    const problem = described.schema('Problem');
    for (const [request, status] of [
      [{ path: '/v1/nothing' }, 404],
      [{ method: 'PATCH', path: '/v1/health' }, 405],
      [{ method: 'DELETE', path: '/openapi.json' }, 405],
      [{ path: '/v1/host' }, 404],
    ] as const) {
      const answer = await ask(api.socketPath, request);
      expect(answer.status).toBe(status);
      expect(problem.safeParse(JSON.parse(answer.text)).error).toBeUndefined();
    }
  });

  it('describes what is streamed', async () => {
    await using api = await serveApi();
    const described = await contract(api);
    api.service.emit('alpha', 'vm-started', { pid: 7 });
    const request = httpRequest({
      socketPath: api.socketPath,
      path: '/v1/events/stream?after=0',
      agent: false,
    }).end();
    const [response] = (await once(request, 'response')) as [IncomingMessage];
    const operation = described.operations.get('streamEvents');
    const mediaType = response.headers['content-type'] ?? '';
    expect(operation?.responses[200]?.content).toHaveProperty([mediaType]);
    let text = '';
    for await (const bytes of response) {
      text += bytes;
      if (/^data: .*\n\n/m.test(text)) break;
    }
    const data = /^data: (.*)$/m.exec(text)?.[1] ?? '';
    const event = described.schema('Event');
    expect(event.safeParse(JSON.parse(data)).error).toBeUndefined();
  });

  it('is noticed to disagree with an answer of another form, type or status', async () => {
    await using api = await serveApi();
    const described = await contract(api);
    const answer = await ask(api.socketPath, { path: '/v1/health' });
    expect(described.faultOf('getHealth', answer)).toBeUndefined();
    for (const other of [
      { ...answer, text: '{"status":"fine"}' },
      { ...answer, text: '{}' },
      { ...answer, headers: { 'content-type': 'text/html' } },
      { ...answer, status: 418 },
    ]) {
      expect(described.faultOf('getHealth', other)).toEqual(expect.any(String));
    }
  });

  it('says of every request what has to be there', async () => {
    await using api = await serveApi();
    const described = await contract(api);
    const byId = described.operations;
    expect(described.document.openapi).toMatch(/^3\.1\./);
    expect(
      [...byId.values()].filter(({ requestBody }) => requestBody?.required).map((each) => each.operationId),
    ).toEqual(['declareVm', 'changeVm', 'createToken', 'pruneSnapshots', 'createTenant', 'setPolicy']);
    const required = (id: string) =>
      byId.get(id)?.parameters?.flatMap((each) => (each.required ? `${each.in} ${each.name}` : []));
    expect(required('changeVm')).toEqual(['path name', 'header if-match']);
    expect(required('deleteVm')).toEqual(['path name']);
    expect(required('listEvents')).toEqual([]);
  });
});
