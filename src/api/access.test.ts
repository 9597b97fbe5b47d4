import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { Agent, request as httpsRequest } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { silentLogger } from '../base/logger.ts';
import { issue, readAuthority, type Subject } from '../pki/certificate.ts';
import { CertificateStore, type Made } from '../pki/certificate-store.ts';
import { ApiClient } from './api-client.ts';
import { ManualClock, socketDirectory } from './api-fixture.ts';
import { ApiServer } from './api-server.ts';
import { requestTo, type TlsCredentials } from './host-address.ts';
import { MemoryService } from './memory-service.ts';
import type { Role } from './principal.ts';
import { ROLES } from './principal.ts';
import { type RouteId, routeOf, routes } from './routes.ts';

let folder: string;
let pki: CertificateStore;
let host: Made;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-access-'));
  pki = new CertificateStore(join(folder, 'pki'), { wallMs: Date.now });
  await pki.init();
  host = await pki.host('alpha', []);
});
afterAll(() => rmSync(folder, { recursive: true }));

let open: AsyncDisposableStack;
let service: MemoryService;
let server: ApiServer;
let clock: ManualClock;
beforeEach(async () => {
  open = new AsyncDisposableStack();
  const { path } = open.use(socketDirectory());
  service = new MemoryService();
  service.declareVm({ spec: 'name: alpha', directory: '/', desired: 'stopped' });
  clock = new ManualClock();
  service.nowMs = () => clock.wallMs();
  const { certificate, key } = host;
  const tls = { address: '127.0.0.1:0', certificate, key, clientCa: join(folder, 'pki', 'ca.crt') };
  const options = { service, clock, log: silentLogger, socketPath: join(path, 'api.sock'), tls };
  server = open.use(await ApiServer.listen(options));
});
afterEach(() => open[Symbol.asyncDispose]());

const ca = () => readFileSync(join(folder, 'pki', 'ca.crt'));
const url = () => `https://${server.tlsAddress}`;
const client = (credentials: TlsCredentials) =>
  new ApiClient({ url: url(), credentials: { ca: ca(), ...credentials }, clock: systemClock });

function token(role: Role, { expiresInSeconds = null as number | null } = {}): string {
  return service.createToken({ name: `a-${role}`, role, expiresInSeconds }).token;
}

interface Answer {
  readonly status: number;
  readonly challenge: string | undefined;
  readonly text: string;
}

async function ask(
  { method = 'GET', path, body }: { method?: string; path: string; body?: string },
  credentials: TlsCredentials = {},
): Promise<Answer> {
  const headers = body === undefined ? {} : { 'content-type': 'application/json' };
  const request = requestTo(
    { url: url(), credentials: { ca: ca(), ...credentials } },
    { method, path, headers },
  );
  request.end(body);
  const [response] = await once(request, 'response');
  let text = '';
  response.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  await once(response, 'end');
  return { status: response.statusCode, challenge: response.headers['www-authenticate'], text };
}

/** One after the other over the same connection, if the host leaves it open. */
async function askOver(
  agent: Agent,
  { url, certificate, key }: { url: string; certificate: string; key: string },
): Promise<{ status: number; reused: boolean }> {
  const request = httpsRequest(new URL('/v1/vms', url), { agent, ca: ca(), cert: certificate, key });
  request.end();
  const [response] = await once(request, 'response');
  response.resume();
  await once(response, 'end');
  return { status: response.statusCode, reused: request.reusedSocket };
}

/** A request of that route which would be carried out. */
function requestOf(id: RouteId): { method: string; path: string; body?: string } {
  const { method, path, body } = routeOf(id);
  const filled = path
    .replace('{name}', 'alpha')
    .replace('{kind}', 'snapshot')
    .replace('{id}', '0123456789ab');
  const bodies: Partial<Record<RouteId, unknown>> = {
    declareVm: { spec: 'name: beta' },
    changeVm: { spec: 'name: alpha' },
    createToken: { name: 'x', role: 'admin' },
    createTenant: { name: 'new' },
  };
  return { method, path: filled, ...(body !== undefined && { body: JSON.stringify(bodies[id] ?? {}) }) };
}

const everyRoute = Object.keys(routes) as RouteId[];
const guarded = everyRoute.filter((id) => routeOf(id).role !== 'anyone');

describe('a stranger', () => {
  it('learns nothing but health', async () => {
    expect((await ask({ path: '/v1/health' })).status).toBe(200);
    const before = service.state();
    const others = [
      '/',
      '/v1',
      '/v1/nothing',
      '/v1/vms/none',
      '/openapi.json?x',
      '/metrics/',
      '/%zz',
      '/v1/vms/ALPHA',
    ];
    const requests = [
      ...guarded.map(requestOf),
      ...others.map((path) => ({ path })),
      { method: 'PATCH', path: '/v1/vms' },
      { method: 'POST', path: '/v1/vms', body: '{' },
    ];
    const answers = await Promise.all(requests.map((request) => ask(request)));
    for (const [index, { status, challenge, text }] of answers.entries()) {
      expect([requests[index], status, challenge]).toEqual([
        requests[index],
        401,
        'Bearer realm="understudy"',
      ]);
      expect(JSON.parse(text)).toMatchObject({ code: 'API_UNAUTHENTICATED' });
      // The same words to all of them.
      expect(text).toBe(answers[0]?.text);
    }
    expect(service.state()).toBe(before);
    expect(service.audits).toEqual([]);
  });

  it('would learn more over the unix socket, which its owner and group may open (control)', async () => {
    const vms = await new ApiClient({ socketPath: server.socketPath, clock: systemClock }).call(
      'listVms',
      {},
    );
    expect(vms.vms.map(({ name }) => name)).toEqual(['alpha']);
  });

  it('gets nowhere with TLS that is too old, or without TLS', async () => {
    const port = Number(server.tlsAddress?.split(':').at(-1));
    const old = connect({
      host: '127.0.0.1',
      port,
      ca: ca(),
      servername: 'alpha',
      maxVersion: 'TLSv1.1',
      minVersion: 'TLSv1',
    });
    await expect(once(old, 'secureConnect')).rejects.toThrow();
    const plain = (await import('node:net')).connect(port, '127.0.0.1');
    plain.write('GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n');
    let said = '';
    plain.on('data', (bytes) => {
      said += bytes;
    });
    await once(plain, 'close');
    expect(said).not.toContain('200');
  });
});

describe('a token', () => {
  it.each(ROLES)(
    'of a %s allows what its role does and nothing else, and what is refused is written down',
    async (role) => {
      const credentials = { token: token(role) };
      const rank = (needed: string) => ROLES.indexOf(needed as Role);
      for (const id of guarded.filter((each) => rank(routeOf(each).role) > rank(role))) {
        // Of many within a minute only the first are written down one by one.
        clock.advance(60_000);
        const before = service.state();
        const refused = await ask(requestOf(id), credentials);
        expect([id, refused.status]).toEqual([id, 403]);
        expect(JSON.parse(refused.text)).toMatchObject({ code: 'API_FORBIDDEN' });
        expect(service.state()).toBe(before);
        if (routeOf(id).method !== 'GET' || id === 'openConsole') {
          expect(service.audits.at(-1)).toMatchObject({
            principal: `a-${role}`,
            via: 'token',
            action: id,
            status: 403,
          });
        }
      }
      for (const id of ['listVms', 'getVm', 'getStats', 'getOpenApi', 'getMetrics'] as const)
        expect([id, (await ask(requestOf(id), credentials)).status]).toEqual([id, 200]);
      if (rank(role) >= rank('operator')) {
        expect((await ask(requestOf('startVm'), credentials)).status).toBe(200);
        expect(service.audits.at(-1)).toEqual({
          ...{
            principal: `a-${role}`,
            tenant: null,
            via: 'token',
            role,
            action: 'startVm',
            target: 'alpha',
            status: 200,
          },
          requestId: expect.any(String),
        });
      }
    },
  );

  it('is refused once it is revoked, has expired, or is changed by a character', async () => {
    const revoked = token('admin');
    await client({ token: token('admin') }).call('revokeToken', {
      params: { id: revoked.split('_')[1] ?? '' },
    });
    const expiring = token('admin', { expiresInSeconds: 60 });
    expect((await ask({ path: '/v1/vms' }, { token: expiring })).status).toBe(200);
    clock.advance(60_000);
    const valid = token('viewer');
    const changed = `${valid.slice(0, -1)}${valid.endsWith('A') ? 'B' : 'A'}`;
    for (const bad of [revoked, expiring, changed, valid.toUpperCase(), 'us_', '']) {
      const { status, text } = await ask({ path: '/v1/vms' }, { token: bad });
      expect([bad, status, JSON.parse(text).code]).toEqual([bad, 401, 'API_UNAUTHENTICATED']);
    }
    expect((await ask({ path: '/v1/vms' }, { token: valid })).status).toBe(200);
  });

  it('is kept as a hash, and its text is in no answer but the first', async () => {
    const admin = client({ token: token('admin') });
    const made = await admin.call('createToken', { body: { name: 'ci', role: 'viewer' } });
    const secret = made.token.split('_').slice(2).join('_');
    const listed = await admin.call('listTokens', {});
    expect(listed.tokens.map(({ name }) => name)).toContain('ci');
    const kept = [listed, service.audits, [...service.answers.values()], service.events];
    expect(JSON.stringify(kept)).not.toContain(secret);
    expect(Buffer.from(service.tokens.get(made.id)?.hash ?? []).toString('base64url')).not.toBe(secret);
  });

  it('that is revoked ends what is open with it, and only that', async () => {
    const [mine, other] = [token('viewer'), token('viewer')];
    const ended = (bearer: string) => {
      const request = requestTo(
        { url: url(), credentials: { ca: ca(), token: bearer } },
        { path: '/v1/events/stream' },
      );
      request.end();
      return once(request, 'response').then(([response]) => {
        response.resume();
        return response;
      });
    };
    const streams = await Promise.all([ended(mine), ended(other)]);
    const closed = once(streams[0], 'close');
    await client({ token: token('admin') }).call('revokeToken', { params: { id: mine.split('_')[1] ?? '' } });
    await closed;
    expect(streams[1].closed).toBe(false);
    streams[1].destroy();
  });

  it('does not get the answer that another was given under the same key', async () => {
    const keyed = (bearer: string) =>
      client({ token: bearer }).call('startVm', {
        params: { name: 'alpha' },
        headers: { 'idempotency-key': 'k1' },
      });
    const [first, second] = [token('operator'), token('operator')];
    await keyed(first);
    const events = service.events.length;
    await keyed(first);
    expect(service.events.length).toBe(events);
    await keyed(second);
    expect(service.events.length).toBe(events + 1);
  });

  it('of a viewer hears of no audit; that of an admin does', async () => {
    service.emit(null, 'audit', { action: 'deleteVm' });
    const kindsFor = async (role: Role) => {
      const { events } = await client({ token: token(role) }).call('listEvents', {});
      return events.map(({ kind }) => kind);
    };
    for (const role of ['viewer', 'operator'] as const) expect(await kindsFor(role)).not.toContain('audit');
    expect(await kindsFor('admin')).toContain('audit');
  });
});

describe('a client certificate', () => {
  /** As the CA of this test signs it, whatever the store would. */
  const signed = async (subject: Pick<Subject, 'name'> & Partial<Subject>) => {
    const authority = await readAuthority({
      certificate: ca().toString(),
      key: readFileSync(join(folder, 'pki', 'ca.key'), 'utf8'),
    });
    return await issue({ isServer: false, years: 1, ...subject }, { ca: authority, wallMs: Date.now() });
  };
  const certified = async (name: string, role: string) => {
    const { certificate, key } = await pki.client(name, { role });
    return { certificate: readFileSync(certificate), key: readFileSync(key) };
  };

  it('has its role in the subject', async () => {
    const operator = client(await certified('olga', 'operator'));
    await operator.call('startVm', { params: { name: 'alpha' } });
    expect(service.audits.at(-1)).toMatchObject({ principal: 'olga', via: 'certificate', role: 'operator' });
    await expect(operator.call('listTokens', {})).rejects.toMatchObject({ code: 'API_FORBIDDEN' });
  });

  it('of another CA, or of no role, is none', async () => {
    const other = new CertificateStore(join(folder, 'other'), { wallMs: Date.now });
    await other.init();
    const { certificate, key } = await other.client('mallory', { role: 'admin' });
    const foreign = { certificate: readFileSync(certificate), key: readFileSync(key) };
    for (const shown of [foreign, await certified('nobody', 'emperor')])
      expect((await ask({ path: '/v1/vms' }, shown)).status).toBe(401);
  });

  it('that is for somebody among others is not taken for all of the host', async () => {
    const shown = (subject: Partial<Subject>) => signed({ name: 'olga', unit: 'admin', ...subject });
    expect((await ask({ path: '/v1/vms' }, await shown({}))).status).toBe(200);
    const tenant = await shown({ organization: 'acme' });
    expect((await ask({ path: '/v1/vms' }, tenant)).status).toBe(401);
  });

  it('is good until it expires, also on a connection that was made before, and ends what is open with it', async () => {
    const shown = await signed({ name: 'olga', unit: 'admin' });
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const reading = requestTo(
      { url: url(), credentials: { ca: ca(), ...shown } },
      { path: '/v1/events/stream' },
    );
    reading.end();
    const [stream] = await once(reading, 'response');
    stream.resume();
    const over = () => askOver(agent, { url: url(), ...shown });
    expect(await over()).toEqual({ status: 200, reused: false });
    clock.advance(Date.now() + 366 * 24 * 3600_000);
    expect(await over()).toEqual({ status: 401, reused: true });
    if (!stream.closed) await once(stream, 'close');
    agent.destroy();
  });
});

describe('what is written down', () => {
  it('names what was made, and no secret of it', async () => {
    const admin = client({ token: token('admin') });
    await admin.call('declareVm', { body: { spec: 'name: beta' } });
    expect(service.audits.at(-1)).toMatchObject({ action: 'declareVm', target: 'beta', status: 201 });
    const made = await admin.call('createToken', { body: { name: 'ci', role: 'viewer' } });
    expect(service.audits.at(-1)).toMatchObject({ action: 'createToken', target: made.id, status: 201 });
    expect(JSON.stringify(service.audits)).not.toContain(made.token.split('_').slice(2).join('_'));
  });

  it('holds a change that failed, and one that is not finished', async () => {
    const shown = { token: token('operator') };
    const { promise, reject } = Promise.withResolvers<void>();
    service.promotion = () => promise;
    const asked = ask(requestOf('promoteVm'), shown);
    await expect.poll(() => service.audits).toMatchObject([{ action: 'promoteVm', status: 202 }]);
    reject(new Error('half way'));
    expect((await asked).status).toBe(500);
    expect(service.audits).toMatchObject([
      { action: 'promoteVm', target: 'alpha', status: 202 },
      { action: 'promoteVm', target: 'alpha', status: 500 },
    ]);
  });
});

describe('a host that does not show the right certificate', () => {
  it('is not spoken with', async () => {
    const other = new CertificateStore(join(folder, 'elsewhere'), { wallMs: Date.now });
    const { certificate } = await other.init();
    const trusting = new ApiClient({
      ...{ url: url(), clock: systemClock },
      credentials: { ca: readFileSync(certificate), token: token('admin') },
    });
    await expect(trusting.call('listVms', {})).rejects.toMatchObject({
      code: 'API_UNREACHABLE',
      hint: expect.stringContaining('UNDERSTUDY_CA'),
    });
  });
});

it('whatever is shown by whoever, nothing is a fault of the host, and nothing changes that the role does not allow', async () => {
  const tokens = [undefined, token('viewer'), 'garbage', `us_0123456789ab_${'y'.repeat(43)}`];
  const before = service.state();
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...guarded.filter((id) => routeOf(id).role !== 'viewer')),
      fc.constantFrom(...tokens),
      fc.constantFrom('alpha', '..', '%2e%2e', 'a'.repeat(300), '\u00e4'),
      async (id, shown, name) => {
        // Guesses of one minute are bounded: time goes on.
        clock.advance(60_000);
        const request = requestOf(id);
        const path = request.path.replace('alpha', encodeURIComponent(name));
        const { status } = await ask({ ...request, path }, shown === undefined ? {} : { token: shown });
        expect([400, 401, 403, 404, 405]).toContain(status);
        expect(service.state()).toBe(before);
      },
    ),
    { numRuns: 100 },
  );
});
