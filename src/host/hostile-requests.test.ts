import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import fc from 'fast-check';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { AbuseRequests, type Attempt } from '../../test/kit/abuse-requests.ts';
import { soaking } from '../../test/kit/soak.ts';
import { type ServedAccess, serveAccess, TestAuthority } from '../api/access-fixture.ts';
import { limitsSchema } from '../api/access-resources.ts';
import { ManualClock } from '../api/api-fixture.ts';
import { Contract } from '../api/contract-fixture.ts';
import { mayAct, type Role } from '../api/principal.ts';
import { type RouteId, routeOf, routes } from '../api/routes.ts';
import { systemClock } from '../base/clock.ts';
import { silentLogger as log } from '../base/logger.ts';
import { Host } from './host.ts';

/** Both answer with what does not end by itself. */
const everyRoute = (Object.keys(routes) as RouteId[]).filter(
  (id) => id !== 'streamEvents' && id !== 'openConsole',
);
/** What is declared, and by whom it may be seen; the rest follows from it sooner or later. */
const TABLES = {
  vms: "SELECT name, spec, directory, version, desired, shadowWanted, tenant FROM vms WHERE desired <> 'deleted'",
  tokens: 'SELECT id, name, role, tenant, expiresMs FROM accessTokens',
  tenants: 'SELECT name, name AS tenant FROM tenants',
  policies: 'SELECT name, version, policy, name AS tenant FROM policies',
};

let authority: TestAuthority;
beforeAll(async () => {
  authority = await TestAuthority.make();
});
afterAll(() => authority[Symbol.dispose]());

let folder: string;
let open: AsyncDisposableStack;
let host: Host;
let api: ServedAccess;
/** Of the API: time apart from that of the host, so that failures of a minute can be told from others. */
let clock: ManualClock;
beforeEach(async () => {
  open = new AsyncDisposableStack();
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'us-hostile-')));
  open.defer(() => rmSync(folder, { recursive: true }));
  for (const name of ['ends', 'acme7']) mkdirSync(join(folder, name));
  writeFileSync(join(folder, 'acme7/vmlinuz'), 'kernel');
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', join(folder, 'memory'));
  host = open.use(
    new Host({
      ...{
        databasePath: join(folder, 'host.db'),
        stateDirectory: folder,
        endDirectory: join(folder, 'ends'),
      },
      startKeeper: async () => {
        throw new Error('nothing runs in this test');
      },
      settings: { retention: { retentionDays: 365, retentionMax: 100_000 }, lookIntervalMs: 5000 },
      ...{ version: '0', clock: systemClock, log },
    }),
  );
  for (const name of ['acme7', 'other7', 'empty7']) host.tenants.create(name);
  const limits = limitsSchema.parse({ directories: [join(folder, 'acme7')] });
  for (const name of ['acme7', 'other7'])
    host.tenants.setPolicy(name, { defaults: {}, limits }, { ifVersion: host.tenants.policy(name).version });
  declare('alpha7', 'acme7');
  declare('beta7', 'other7');
  declare('gamma7', null);
  clock = new ManualClock();
  // What is valid for long is so by either time.
  api = open.use(await serveAccess(authority, { service: host, clock }));
});
afterEach(async () => {
  await open.disposeAsync();
  vi.unstubAllEnvs();
});

function declare(name: string, tenant: string | null): void {
  const spec = `name: ${name}\nmemory: 64MiB\nboot: {kernel: ${folder}/acme7/vmlinuz}\n# word-${tenant}\n`;
  host.declareVm({ spec, directory: '/', desired: 'stopped', tenant });
}

const token = (role: Role, tenant: string | null) => ({
  token: host.createToken({ name: `a-${role}`, role, tenant, expiresInSeconds: null }).token,
});

type Row = Record<string, unknown>;
/** As another process reads it. */
function dump(): Record<string, Row[]> {
  const database = new DatabaseSync(join(folder, 'host.db'), { readOnly: true });
  try {
    const rows = Object.entries(TABLES).map(([name, query]) => [name, database.prepare(query).all()]);
    return JSON.parse(JSON.stringify(Object.fromEntries(rows)));
  } finally {
    database.close();
  }
}

function ofOthers(tables: Record<string, Row[]>): Row[][] {
  return Object.values(tables).map((rows) => rows.filter(({ tenant }) => tenant !== 'acme7'));
}

async function requests(): Promise<{ contract: Contract; made: AbuseRequests }> {
  const { text } = await api.ask({ path: '/openapi.json' }, token('admin', null));
  const contract = new Contract(JSON.parse(text));
  const theirs = host.createToken({
    name: 'theirs',
    role: 'viewer',
    tenant: 'other7',
    expiresInSeconds: null,
  });
  return { contract, made: new AbuseRequests(contract, { tokenIds: [theirs.id] }) };
}

describe('a host with its database', () => {
  it(
    'has no fault, and nothing changes that may not, whatever anybody asks for who is no administrator of it',
    async () => {
      const { contract, made } = await requests();
      const cast = [
        { shown: {}, role: undefined, tenant: null },
        ...(['viewer', 'operator'] as const).map((role) => ({
          shown: token(role, null),
          role,
          tenant: null,
        })),
        ...(['viewer', 'operator', 'admin'] as const).map((role) => ({
          shown: token(role, 'acme7'),
          role,
          tenant: 'acme7',
        })),
      ];
      const judge = async (
        { id, request, isRouted }: Attempt,
        { shown, role, tenant }: (typeof cast)[number],
      ) => {
        const before = dump();
        const answer = await api.ask(request, shown);
        const what = `${id} ${request.method} ${request.path} by ${tenant} ${role}: ${answer.status} ${answer.text}`;
        expect(answer.status, what).toBeLessThan(500);
        expect(contract.faultOf(id, answer), what).toBeUndefined();
        if (answer.status >= 400 || role === undefined || role === 'viewer')
          expect(dump(), what).toEqual(before);
        if (tenant !== null) {
          expect(ofOthers(dump()), what).toEqual(ofOthers(before));
          expect(answer.text, what).not.toMatch(/word-other7|word-null/);
        }
        if (role === undefined && isRouted && id !== 'getHealth') expect(answer.status, what).toBe(401);
        const needed = routeOf(id).role;
        const principal = role && { name: '', role, tenant, via: 'token' as const };
        if (principal && isRouted && needed !== 'anyone' && !mayAct(principal, needed))
          expect(answer.status, what).toBe(403);
      };
      for (const id of everyRoute) {
        for (const actor of cast) {
          for (const attempt of made.fitting(id)) await judge(attempt, actor);
          await fc.assert(
            fc.asyncProperty(made.hostile(id), (attempt) => judge(attempt, actor)),
            { numRuns: soaking ? 100 : 3 },
          );
        }
      }
      const theirs = ofOthers(dump());
      // Control: an administrator of the host does change them, and it is noticed.
      await api.ask({ method: 'DELETE', path: '/v1/tenants/empty7' }, token('admin', null));
      expect(ofOthers(dump())).not.toEqual(theirs);
    },
    soaking ? 3_600_000 : 120_000,
  );

  it('tells administrators of what somebody failed at, those of a tenant of their own people, and keeps it small', async () => {
    const shown = token('operator', 'acme7');
    const start = { method: 'POST', path: '/v1/vms/zeta7/start' };
    for (let count = 0; count < 100; count += 1) expect((await api.ask(start, shown)).status).toBe(404);
    clock.advance(60_000);
    const heardBy = async (who: { token: string }) => {
      const { text } = await api.ask({ path: '/v1/events?limit=1000' }, who);
      return JSON.parse(text).events.filter(({ kind }: { kind: string }) => kind === 'audit');
    };
    const audits = await heardBy(token('admin', 'acme7'));
    expect(audits).toHaveLength(21);
    expect(audits[0]).toMatchObject({
      ...{ tenant: 'acme7', vm: null },
      facts: { principal: 'a-operator', action: 'startVm', target: 'zeta7', status: 404 },
    });
    expect(audits[20].facts).toMatchObject({ failures: 80, status: 404 });
    expect(await heardBy(token('admin', null))).toEqual(audits);
    for (const others of [token('admin', 'other7'), token('operator', 'acme7')])
      expect(await heardBy(others)).toEqual([]);
  });
});
