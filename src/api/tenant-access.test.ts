import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { systemClock as clock } from '../base/clock.ts';
import { silentLogger as log } from '../base/logger.ts';
import { issue, readAuthority, type Subject } from '../pki/certificate.ts';
import { CertificateStore, type Made } from '../pki/certificate-store.ts';
import { socketDirectory } from './api-fixture.ts';
import { ApiServer } from './api-server.ts';
import { requestTo, type TlsCredentials } from './host-address.ts';
import { MemoryService } from './memory-service.ts';
import type { Role } from './principal.ts';
import { type RouteId, routeOf, routes } from './routes.ts';

let folder: string;
let pki: CertificateStore;
let host: Made;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-tenants-'));
  pki = new CertificateStore(join(folder, 'pki'), { wallMs: Date.now });
  await pki.init();
  host = await pki.host('alpha', []);
});
afterAll(() => rmSync(folder, { recursive: true }));

let open: AsyncDisposableStack;
let service: MemoryService;
let server: ApiServer;
/** `acme` owns alpha, `other` owns beta, the host itself gamma. */
beforeEach(async () => {
  open = new AsyncDisposableStack();
  const { path } = open.use(socketDirectory());
  service = new MemoryService();
  for (const name of ['acme', 'other']) service.tenants.create(name);
  declare('alpha', 'acme');
  declare('beta', 'other');
  declare('gamma', null);
  const { certificate, key } = host;
  const tls = { address: '127.0.0.1:0', certificate, key, clientCa: join(folder, 'pki', 'ca.crt') };
  server = open.use(await ApiServer.listen({ service, clock, log, socketPath: join(path, 'api.sock'), tls }));
});
afterEach(() => open[Symbol.asyncDispose]());

function declare(name: string, tenant: string | null): void {
  service.declareVm({ spec: `name: ${name}`, directory: '/', desired: 'running', tenant });
}

function token(role: Role, tenant: string | null = 'acme'): string {
  return service.createToken({ name: `a-${role}`, role, tenant, expiresInSeconds: null }).token;
}

const everyRoute = Object.keys(routes) as RouteId[];

interface Asked {
  readonly method?: string;
  readonly path: string;
  readonly headers?: Record<string, string>;
  readonly body?: string | undefined;
}

async function send({ method = 'GET', path, headers = {}, body }: Asked, credentials: TlsCredentials) {
  const ca = readFileSync(join(folder, 'pki', 'ca.crt'));
  const address = { url: `https://${server.tlsAddress}`, credentials: { ca, ...credentials } };
  const length = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body ?? '') };
  const request = requestTo(address, {
    ...{ method, path },
    headers: { ...(body !== undefined && length), ...headers },
  });
  request.end(body);
  const [response] = await once(request, 'response');
  return response;
}

async function ask(asked: Asked, credentials: TlsCredentials): Promise<{ status: number; text: string }> {
  const response = await send(asked, credentials);
  let text = '';
  for await (const bytes of response.setEncoding('utf8')) text += bytes;
  return { status: response.statusCode, text };
}

const get = async (path: string, credentials: TlsCredentials) =>
  JSON.parse((await ask({ path }, credentials)).text);

/** A request of that route which would be carried out by whoever may. */
function requestOf(id: RouteId, name = 'alpha'): Asked {
  const { method, path } = routeOf(id);
  const bodies: Partial<Record<RouteId, unknown>> = {
    declareVm: { spec: 'name: delta' },
    changeVm: { spec: `name: ${name}` },
    createToken: { name: 'x', role: 'admin' },
    createTenant: { name: 'new' },
    setPolicy: {},
    pruneSnapshots: { keep: 1 },
  };
  const filled = path
    .replace('{name}', name)
    .replace('{kind}', 'snapshot')
    .replace('{resource}', 'cpu')
    .replace('{metric}', 'cpu.usedCores')
    .replace('{id}', path.includes('snapshots') ? '20261127T021500123Z' : '0123456789ab');
  const body = bodies[id] === undefined ? undefined : JSON.stringify(bodies[id]);
  return { method, path: filled, headers: { 'if-match': '"1"' }, body };
}

/** What a principal of `acme` must never change. */
const ofOthers = () =>
  JSON.stringify([
    [...service.vms.values()].filter(({ tenant }) => tenant !== 'acme'),
    service.tenants.state(),
    [...service.tokens.values()].filter(({ tenant }) => tenant !== 'acme').map(({ id }) => id),
  ]);

describe('a principal of a tenant', () => {
  it('finds VMs of others under no route, as if they did not exist', async () => {
    const credentials = { token: token('admin') };
    // What is not for tenants at all is refused before anybody looks which VM it is about.
    const named = everyRoute.filter(
      (id) => routeOf(id).path.startsWith('/v1/vms/{name}') && routeOf(id).hostOnly !== true,
    );
    expect(named.length).toBeGreaterThan(8);
    const before = service.state();
    for (const id of named) {
      const answers: unknown[] = [];
      for (const name of ['beta', 'gamma', 'nowhere']) {
        const { status, text } = await ask(requestOf(id, name), credentials);
        answers.push([id, status, text.replaceAll(name, 'NAME')]);
      }
      expect(answers[2]).toEqual([id, 404, expect.stringContaining('HOST_VM_UNKNOWN')]);
      expect(answers.slice(0, 2)).toEqual([answers[2], answers[2]]);
    }
    expect(service.state()).toBe(before);
    // Control: an administrator of the host does find them.
    expect((await ask(requestOf('getVm', 'beta'), { token: token('admin', null) })).status).toBe(200);
  });

  it('sees, counts and hears of its own only', async () => {
    const credentials = { token: token('viewer') };
    const { vms } = await get('/v1/vms', credentials);
    expect(vms.map(({ name }: { name: string }) => name)).toEqual(['alpha']);
    expect((await get('/v1/hosts', credentials)).hosts[0].vms.declared).toBe(1);
    expect((await get('/v1/hosts/here', credentials)).vms.declared).toBe(1);
    const stats = await get('/v1/stats', credentials);
    expect([stats.host.vms.declared, stats.vms.length]).toEqual([1, 1]);
    const { events } = await get('/v1/events', credentials);
    expect(new Set(events.map(({ vm }: { vm: string }) => vm))).toEqual(new Set(['alpha']));
    expect((await get('/v1/events?vm=beta', credentials)).events).toEqual([]);
    expect((await ask({ path: '/metrics' }, credentials)).status).toBe(403);
  });

  it('hears nothing of others in a stream, neither what was nor what comes', async () => {
    const response = await send({ path: '/v1/events/stream?after=0' }, { token: token('admin') });
    let heard = '';
    response.setEncoding('utf8').on('data', (text: string) => {
      heard += text;
    });
    await expect.poll(() => heard).toContain('alpha');
    service.emit('beta', 'theirs');
    service.emit('gamma', 'of-the-host');
    service.emit(null, 'audit');
    service.emit('alpha', 'mine');
    await expect.poll(() => heard).toContain('mine');
    expect(heard).not.toMatch(/beta|gamma|theirs|of-the-host|audit/);
    response.destroy();
  });

  it('declares VMs that are its own', async () => {
    const { text } = await ask(requestOf('declareVm'), { token: token('admin') });
    expect(JSON.parse(text)).toMatchObject({ name: 'delta', tenant: 'acme' });
  });

  it('does not decide about tenants and policies, nor sees those of others', async () => {
    const credentials = { token: token('admin') };
    const before = ofOthers();
    for (const id of everyRoute.filter((each) => routeOf(each).hostOnly === true)) {
      expect([id, (await ask(requestOf(id, 'acme'), credentials)).status]).toEqual([id, 403]);
    }
    expect(ofOthers()).toBe(before);
    expect((await get('/v1/policies', credentials)).policies).toHaveLength(1);
    expect((await ask({ path: '/v1/policies/acme' }, credentials)).status).toBe(200);
    for (const name of ['other', 'default'])
      expect((await ask({ path: `/v1/policies/${name}` }, credentials)).status).toBe(404);
  });

  it('makes and revokes tokens of its tenant only', async () => {
    const credentials = { token: token('admin') };
    const create = (more: object) =>
      ask(
        { method: 'POST', path: '/v1/tokens', body: JSON.stringify({ name: 'x', role: 'admin', ...more }) },
        credentials,
      );
    for (const tenant of ['other', null]) expect((await create({ tenant })).status).toBe(403);
    expect(JSON.parse((await create({})).text)).toMatchObject({ tenant: 'acme' });
    for (const tenant of ['other', null]) {
      const id = token('viewer', tenant).split('_')[1] ?? '';
      expect((await ask({ method: 'DELETE', path: `/v1/tokens/${id}` }, credentials)).status).toBe(404);
      expect(service.tokens.has(id)).toBe(true);
    }
    const { tokens } = await get('/v1/tokens', credentials);
    expect(new Set(tokens.map((each: { tenant: string }) => each.tenant))).toEqual(new Set(['acme']));
  });

  it('is nobody once its tenant is deleted, and its streams end', async () => {
    service.tenants.create('empty');
    const credentials = { token: token('viewer', 'empty') };
    const response = await send({ path: '/v1/events/stream' }, credentials);
    response.resume();
    const ended = once(response, 'end');
    const admin = { token: token('admin', null) };
    expect((await ask({ method: 'DELETE', path: '/v1/tenants/empty' }, admin)).status).toBe(204);
    await ended;
    expect((await ask({ path: '/v1/vms' }, credentials)).status).toBe(401);
  });
});

describe('a client certificate', () => {
  const statusOf = async (credentials: TlsCredentials) =>
    (await ask({ path: '/v1/vms' }, credentials)).status;
  const certificate = async (
    name: string,
    { role, tenant: of, id }: { role: string; tenant?: string; id?: string },
  ): Promise<TlsCredentials> => {
    const tenant = of === undefined ? of : { name: of, id: id ?? service.tenants.idOf(of) ?? randomUUID() };
    // Tenants of each test have ids of their own.
    const store = new CertificateStore(join(folder, 'pki'), { wallMs: Date.now });
    for (const file of [`${of}+${name}.crt`, `${of}+${name}.key`])
      rmSync(join(folder, 'pki', file), { force: true });
    const made = await store.client(name, { role, tenant });
    return { certificate: readFileSync(made.certificate), key: readFileSync(made.key) };
  };

  it('has its tenant in the subject, and is none where there is no such tenant', async () => {
    const ofAcme = await certificate('ci', { role: 'viewer', tenant: 'acme' });
    const { vms } = await get('/v1/vms', ofAcme);
    expect(vms.map(({ name }: { name: string }) => name)).toEqual(['alpha']);
    expect(await statusOf(await certificate('ci', { role: 'viewer', tenant: 'nobody' }))).toBe(401);
    expect(await statusOf(await certificate('ci', { role: 'viewer', tenant: 'ACME' }))).toBe(401);
    // Control: without one it is of the whole host.
    expect((await get('/v1/vms', await certificate('ci', { role: 'viewer' }))).vms).toHaveLength(3);
  });

  it('opens nothing of a tenant that was made anew under the name of the one that it is for', async () => {
    service.tenants.create('short-lived');
    const wish = { role: 'admin', tenant: 'short-lived' };
    const first = await certificate('ci', wish);
    expect(await statusOf(first)).toBe(200);
    service.tenants.delete('short-lived');
    expect(await statusOf(first)).toBe(401);
    service.tenants.create('short-lived');
    expect(await statusOf(first)).toBe(401);
    // Control: one that is for the present one does.
    expect(await statusOf(await certificate('ci', wish))).toBe(200);
  });

  it('that names a tenant and not its id, another id, or an id and no tenant, is none', async () => {
    const acme = service.tenants.idOf('acme') ?? '';
    const uri = (id: string) => `urn:uuid:${id}`;
    const admin = { name: 'ci', unit: 'admin', isServer: false, years: 1 };
    const shown = async (subject: Partial<Subject>) => {
      const [certificate, key] = ['ca.crt', 'ca.key'].map((file) =>
        readFileSync(join(folder, 'pki', file), 'utf8'),
      );
      const ca = await readAuthority({ certificate: certificate ?? '', key: key ?? '' });
      return await statusOf(await issue({ ...admin, ...subject }, { ca, wallMs: Date.now() }));
    };
    const organization = 'acme';
    expect(await shown({ organization, uris: [uri(acme)] })).toBe(200);
    expect(await shown({ organization })).toBe(401);
    expect(await shown({ organization, uris: [uri(service.tenants.idOf('other') ?? '')] })).toBe(401);
    expect(await shown({ organization, uris: [uri(acme), uri(randomUUID())] })).toBe(401);
    expect(await shown({ uris: [uri(acme)] })).toBe(401);
    expect(await shown({ organization, dns: [`x, URI:${uri(acme)}`] })).toBe(401);
    expect(await shown({})).toBe(200);
  });

  it('of a namesake in another tenant does not get the answer that was given under the same key', async () => {
    const headers = { 'idempotency-key': 'same' };
    const start = async (tenant: string, name: string) => {
      const credentials = await certificate('op', { role: 'operator', tenant });
      return (await ask({ method: 'POST', path: `/v1/vms/${name}/start`, headers }, credentials)).status;
    };
    expect([await start('acme', 'alpha'), await start('other', 'beta')]).toEqual([200, 200]);
  });
});

it('whatever somebody of a tenant asks for, nothing is a fault of the host, and nothing of others changes', async () => {
  const tokens = (['viewer', 'operator', 'admin'] as const).map((role) => token(role));
  const before = ofOthers();
  const asked = fc.record({
    id: fc.constantFrom(...everyRoute.filter((id) => id !== 'streamEvents' && id !== 'openConsole')),
    name: fc.constantFrom(
      'beta',
      'gamma',
      'other',
      'default',
      '..',
      '%2e%2e',
      'beta%2fstart',
      'BETA',
      '',
      'ä',
      'a'.repeat(300),
    ),
    shown: fc.constantFrom(...tokens),
    body: fc.constantFrom(
      undefined,
      '{',
      'null',
      '{"spec":"name: beta"}',
      '{"spec":"name: eta","tenant":"other"}',
      '{"spec":"name: eta","tenant":null}',
      '{"name":"x","role":"admin","tenant":"other"}',
      '{"name":"other"}',
      '{"limits":{"directories":["/"]}}',
    ),
    ifMatch: fc.constantFrom('"1"', '"2"', '"3"', '*', ''),
  });
  await fc.assert(
    fc.asyncProperty(asked, async ({ id, name, shown, body, ifMatch }) => {
      const { method = 'GET', path } = requestOf(id, encodeURI(name));
      const { status } = await ask(
        { method, path, body, headers: { 'if-match': ifMatch } },
        { token: shown },
      );
      expect(status).toBeLessThan(500);
      expect(ofOthers()).toBe(before);
    }),
    { numRuns: 300 },
  );
  // Control: an administrator of the host does change them, and it is noticed.
  await ask({ method: 'DELETE', path: '/v1/vms/beta' }, { token: token('admin', null) });
  expect(ofOthers()).not.toBe(before);
});
