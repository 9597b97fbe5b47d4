import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { serveAccess, TestAuthority } from './access-fixture.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import { ManualClock, type RawRequest } from './api-fixture.ts';
import { MemoryService } from './memory-service.ts';
import type { Role } from './principal.ts';

let authority: TestAuthority;
beforeAll(async () => {
  authority = await TestAuthority.make();
});
afterAll(() => authority[Symbol.dispose]());

async function served() {
  const [service, clock] = [new MemoryService(), new ManualClock()];
  service.nowMs = () => clock.wallMs();
  service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'stopped' });
  service.tenants.create('acme');
  const api = await serveAccess(authority, { service, clock });
  const shown = (role: Role, tenant: string | null = null) => ({
    token: service.createToken({ name: `a-${role}`, role, tenant, expiresInSeconds: null }).token,
  });
  return { api, service, clock, shown, [Symbol.asyncDispose]: () => api[Symbol.asyncDispose]() };
}

const post = (path: string, body?: string, headers = {}): RawRequest => ({
  ...{ method: 'POST', path, headers },
  ...(body !== undefined && { body }),
});
const put = (path: string, body: string, headers = {}): RawRequest => ({
  method: 'PUT',
  path,
  body,
  headers,
});
const SPEC = '{"spec":"name: alpha"}';
const TAG = { 'if-match': '"9"' };
const MISTAKES: readonly (readonly [number, string, string | null, RawRequest])[] = [
  [400, 'declareVm', null, post('/v1/vms', '{"spec":7}')],
  [400, 'declareVm', null, post('/v1/vms', '{"spec":"hunter2')],
  [400, 'startVm', 'alpha', post('/v1/vms/alpha/start', '{"from":"hunter2"}')],
  [400, 'startVm', 'alpha', post('/v1/vms/alpha/start', '', { 'idempotency-key': 'hunter2 hunter2' })],
  [403, 'createToken', null, post('/v1/tokens', '{"name":"x","role":"admin","tenant":"hunter2"}')],
  [404, 'stopVm', 'beta', post('/v1/vms/beta/stop')],
  [404, 'promoteVm', 'beta', post('/v1/vms/beta/promote')],
  [404, 'revokeToken', '0123456789ab', { method: 'DELETE', path: '/v1/tokens/0123456789ab' }],
  [404, 'openConsole', 'beta', { path: '/v1/vms/beta/console' }],
  [409, 'declareVm', null, post('/v1/vms', SPEC)],
  [409, 'createTenant', null, post('/v1/tenants', '{"name":"acme"}')],
  [412, 'changeVm', 'alpha', put('/v1/vms/alpha', SPEC, TAG)],
  [413, 'declareVm', null, post('/v1/vms', `{"spec":"hunter2${'x'.repeat(1_300_000)}"}`)],
  [415, 'declareVm', null, post('/v1/vms', 'hunter2', { 'content-type': 'text/plain' })],
  [422, 'declareVm', null, post('/v1/vms', '{"spec":"password: hunter2"}')],
  [426, 'openConsole', 'alpha', { path: '/v1/vms/alpha/console' }],
  [428, 'changeVm', 'alpha', put('/v1/vms/alpha', SPEC)],
];

describe('a change that is refused', () => {
  it.each(MISTAKES)(
    'with %i is written down, by %s of %s, and nothing of what it carried',
    async (status, action, target, request) => {
      await using host = await served();
      const isOfTenant = status === 403;
      const answer = await host.api.ask(request, host.shown('admin', isOfTenant ? 'acme' : null));
      const requestId = answer.headers['x-request-id'];
      expect(answer.status).toBe(status);
      const who = { principal: 'a-admin', tenant: isOfTenant ? 'acme' : null, via: 'token', role: 'admin' };
      expect(host.service.audits).toEqual([{ ...who, action, target, status, requestId }]);
      expect(JSON.stringify(host.service.audits)).not.toContain('hunter2');
    },
  );

  it('because its key was used for another one is written down, and one that is only repeated is not', async () => {
    await using host = await served();
    const shown = host.shown('operator');
    const key = { 'idempotency-key': 'k1' };
    await host.api.ask(post('/v1/vms/alpha/start', undefined, key), shown);
    expect((await host.api.ask(post('/v1/vms/alpha/start', undefined, key), shown)).status).toBe(200);
    expect(host.service.audits.map(({ status }) => status)).toEqual([200]);
    expect((await host.api.ask(post('/v1/vms/alpha/stop', undefined, key), shown)).status).toBe(422);
    expect(host.service.audits.map(({ status }) => status)).toEqual([200, 422]);
  });

  it('does not bring a token into the audit that somebody put into its path', async () => {
    await using host = await served();
    const shown = host.shown('admin');
    const { status } = await host.api.ask({ method: 'DELETE', path: `/v1/tokens/${shown.token}` }, shown);
    expect(status).toBe(400);
    expect(host.service.audits).toMatchObject([{ action: 'revokeToken', target: null, status: 400 }]);
  });

  it('leaves no trace where nobody was known, or nothing would have changed (control)', async () => {
    await using host = await served();
    const wrong = { token: `us_0123456789ab_${'x'.repeat(43)}` };
    expect((await host.api.ask(post('/v1/vms', SPEC), wrong)).status).toBe(401);
    expect((await host.api.ask({ path: '/v1/vms/beta' }, host.shown('admin'))).status).toBe(404);
    expect(host.service.audits).toEqual([]);
  });

  it('is a fault where it cannot be written down', async () => {
    await using host = await served();
    host.service.audit = () => {
      throw new ApiError('STATE_FULL' as ApiErrorCode, 'no room');
    };
    expect((await host.api.ask(post('/v1/vms/beta/start'), host.shown('admin'))).status).toBe(500);
  });
});

describe('changes that fail in a loop', () => {
  it.each([
    ['are not found', 'operator', post('/v1/vms/beta/start'), 404],
    ['are not allowed', 'viewer', post('/v1/vms/alpha/start'), 403],
    ['fail after they were begun', 'operator', post('/v1/vms/alpha/promote'), 409],
  ] as const)(
    'because they %s fill nothing: the first are written, the rest counted',
    async (_, role, request, status) => {
      await using host = await served();
      host.service.promotion = async () => {
        throw new ApiError('KEEPER_NOT_PROTECTED' as ApiErrorCode, 'no shadow');
      };
      const shown = host.shown(role);
      const failures = () => host.service.audits.filter((entry) => entry.status !== 202);
      for (let count = 0; count < 50; count += 1)
        expect((await host.api.ask(request, shown)).status).toBe(status);
      expect(failures()).toHaveLength(20);
      expect(host.service.audits.length).toBeLessThanOrEqual(40);
      // Others have a count of their own.
      await host.api.ask(request, host.shown(role));
      expect(failures()).toHaveLength(21);
      host.clock.advance(60_000);
      expect(failures()).toHaveLength(22);
      expect(host.service.audits.at(-1)).toMatchObject({ status, principal: `a-${role}`, failures: 30 });
      await host.api.ask(request, shown);
      expect(host.service.audits.at(-1)).toMatchObject({ status });
      expect(host.service.audits.at(-1)).not.toHaveProperty('failures');
    },
  );

  it('hide no change that was made meanwhile', async () => {
    await using host = await served();
    const shown = host.shown('operator');
    for (let count = 0; count < 30; count += 1) await host.api.ask(post('/v1/vms/beta/start'), shown);
    for (const action of ['start', 'promote'])
      expect((await host.api.ask(post(`/v1/vms/alpha/${action}`), shown)).status).toBe(200);
    expect(host.service.audits.slice(20)).toMatchObject([
      { action: 'startVm', status: 200 },
      { action: 'promoteVm', status: 200 },
    ]);
  });

  it('are counted also when the host ends before their minute does', async () => {
    const host = await served();
    const shown = host.shown('operator');
    for (let count = 0; count < 23; count += 1) await host.api.ask(post('/v1/vms/beta/start'), shown);
    await host[Symbol.asyncDispose]();
    expect(host.service.audits.at(-1)).toMatchObject({ failures: 3, status: 404 });
  });
});
