import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { parse } from 'yaml';
import type { SetPolicy } from '../api/access-resources.ts';
import { limitsSchema } from '../api/access-resources.ts';
import { type Principal, reachOf } from '../api/principal.ts';
import type { HostEvent } from '../api/resources.ts';
import { systemClock as clock } from '../base/clock.ts';
import { silentLogger as log } from '../base/logger.ts';
import type { WantedKeeper } from '../control/keeper-unit.ts';
import { Host } from './host.ts';

const withCode = (code: string) => expect.objectContaining({ code, hint: expect.stringMatching(/\S/) });

let folder: string;
let started: WantedKeeper[];
beforeEach(() => {
  folder = realpathSync(mkdtempSync(join(tmpdir(), 'us-host-')));
  started = [];
  for (const name of ['specs', 'ends', 'acme']) mkdirSync(join(folder, name));
  writeFileSync(join(folder, 'acme/vmlinuz'), 'kernel');
  vi.stubEnv('UNDERSTUDY_RUN_DIR', join(folder, 'run'));
  vi.stubEnv('UNDERSTUDY_MEMORY_DIR', join(folder, 'memory'));
});
afterEach(() => {
  vi.unstubAllEnvs();
  rmSync(folder, { recursive: true });
});

function open(): Host {
  return new Host({
    databasePath: join(folder, 'host.db'),
    startKeeper: async (keeper) => {
      started.push(keeper);
      throw new Error('nothing runs in this test');
    },
    settings: { retention: { retentionDays: 365, retentionMax: 100_000 }, lookIntervalMs: 5000 },
    endDirectory: join(folder, 'ends'),
    stateDirectory: folder,
    ...{ version: '0', clock, log },
  });
}

const principal = (tenant: string | null, role: Principal['role'] = 'admin'): Principal => ({
  ...{ name: 'ada', role, tenant, via: 'token' },
});
const acme = { principal: principal('acme') };

function declaration(name: string, more = '') {
  const spec = `name: ${name}\nmemory: 64MiB\nboot: {kernel: ${folder}/acme/vmlinuz}\n${more}`;
  return { spec, directory: '/', desired: 'stopped' as const };
}

function policy({
  defaults = {},
  ...limits
}: Partial<SetPolicy['limits']> & Partial<Pick<SetPolicy, 'defaults'>>) {
  return { defaults, limits: limitsSchema.parse({ directories: [join(folder, 'acme')], ...limits }) };
}

function setPolicy(host: Host, changed: Parameters<typeof policy>[0] = {}): void {
  const { version } = host.tenants.policy('acme');
  host.tenants.setPolicy('acme', policy(changed), { ifVersion: version });
}

function openWithTenants(): Host {
  const host = open();
  for (const name of ['acme', 'other']) host.tenants.create(name);
  setPolicy(host);
  return host;
}

describe('a tenant', () => {
  it('gets a copy of the default policy, which changes for itself from then on', async () => {
    await using host = open();
    const given = host.tenants.policy('default');
    host.tenants.setPolicy('default', policy({ vmsMax: 7 }), { ifVersion: given.version });
    host.tenants.create('acme');
    expect(host.tenants.policy('acme', { reach: { tenant: 'acme' } }).limits.vmsMax).toBe(7);
    setPolicy(host, { vmsMax: 8 });
    expect(host.tenants.policy('default').limits.vmsMax).toBe(7);
    expect(() => host.tenants.policy('default', { reach: { tenant: 'acme' } })).toThrow(
      withCode('HOST_POLICY_UNKNOWN'),
    );
    expect(() => host.tenants.setPolicy('acme', policy({}), { ifVersion: 1 })).toThrow(
      withCode('HOST_POLICY_CHANGED'),
    );
    for (const name of ['acme', 'default'])
      expect(() => host.tenants.create(name)).toThrow(withCode('HOST_TENANT_EXISTS'));
  });

  it('is deleted with its tokens when it owns no VM, and one of its name begins anew', async () => {
    await using host = openWithTenants();
    const { id } = host.createToken({ name: 'ada', role: 'admin', tenant: 'acme', expiresInSeconds: null });
    const { version } = host.tenants.policy('acme');
    const tenantId = host.tenants.idOf('acme');
    host.declareVm(declaration('a'), acme);
    expect(() => host.tenants.delete('acme')).toThrow(withCode('HOST_TENANT_OWNS_VMS'));
    expect(host.findToken(id)).toBeDefined();
    await host.deleteVm('a', { ifVersion: undefined });
    host.tenants.delete('acme');
    expect([host.findToken(id), host.tenants.has('acme')]).toEqual([undefined, false]);
    expect(host.tenants.idOf('acme')).toBeUndefined();
    host.tenants.create('acme');
    expect(host.tenants.policy('acme').version).toBeGreaterThan(version);
    expect(host.tenants.idOf('acme')).not.toBe(tenantId);
    // What its namesake did is no concern of it; the host remembers.
    const heard = (who: Principal) =>
      host.listEvents({ after: 0, limit: 100, vm: undefined, reach: reachOf(who) }).events;
    expect(heard(principal('acme'))).toEqual([]);
    expect(heard(principal(null)).map(({ vm, kind }) => `${vm} ${kind}`)).toContain('a declared');
    expect(() => host.tenants.delete('nobody')).toThrow(withCode('HOST_TENANT_UNKNOWN'));
  });

  it('hears of its own VMs only, also where a name belonged to somebody else before', async () => {
    await using host = openWithTenants();
    host.declareVm({ ...declaration('shared'), tenant: null });
    await host.deleteVm('shared', { ifVersion: undefined });
    host.declareVm(declaration('shared'), acme);
    host.declareVm(declaration('own'));
    const heardBy = (who: Principal) =>
      host
        .listEvents({ after: 0, limit: 100, vm: undefined, reach: reachOf(who) })
        .events.map(({ vm, kind }) => `${vm} ${kind}`);
    expect(heardBy(principal('acme'))).toEqual(['shared declared']);
    expect(heardBy(principal('other'))).toEqual([]);
    const all = heardBy(principal(null));
    expect(all.filter((each) => each === 'shared declared')).toHaveLength(2);
    expect(all).toContain('shared deleted');
    await host.deleteVm('shared', { ifVersion: undefined });
    expect(heardBy(principal('acme'))).toEqual(['shared declared', 'shared deleting', 'shared deleted']);
  });

  it('sees and counts its own VMs only', async () => {
    await using host = openWithTenants();
    host.declareVm(declaration('a'), acme);
    host.declareVm(declaration('b'));
    const reach = reachOf(principal('acme'));
    expect(host.listVms({ after: undefined, limit: 10, reach }).vms.map(({ name }) => name)).toEqual(['a']);
    expect(host.describe({ reach }).vms.declared).toBe(1);
    expect(host.describe().vms.declared).toBe(2);
    expect((await host.stats({ reach })).host.vms.declared).toBe(1);
    host.ensureWithin('a', reach);
    for (const name of ['b', 'nowhere'])
      expect(() => host.ensureWithin(name, reach)).toThrow(withCode('HOST_VM_UNKNOWN'));
  });

  it('has no more VMs and memory than its policy gives it, those that are being deleted counted', async () => {
    await using host = openWithTenants();
    setPolicy(host, { vmsMax: 2, memoryBytesMax: 160 * 1024 ** 2 });
    const first = host.declareVm(declaration('a'), acme);
    host.declareVm(declaration('b'), acme);
    expect(() => host.declareVm(declaration('c'), acme)).toThrow(withCode('HOST_LIMIT'));
    const larger = declaration('a').spec.replace('64MiB', '128MiB');
    const change = (spec: string) =>
      host.changeVm('a', { spec, directory: '/' }, { ifVersion: first.version });
    expect(() => change(larger)).toThrow(withCode('HOST_LIMIT'));
    change(declaration('a').spec.replace('64MiB', '96MiB'));
    expect(host.tenants.page({ after: undefined, limit: 1 }).tenants[0]).toMatchObject({
      ...{ name: 'acme', vms: 2, memoryBytes: 160 * 1024 ** 2 },
    });
    // The host's own are bound by none.
    for (const name of ['c', 'd', 'e']) host.declareVm(declaration(name));
  });

  it('has no more vCPUs and disk space than its policy gives it, and is told what it uses, asks for and may have', async () => {
    await using host = openWithTenants();
    setPolicy(host, { vcpusMax: 4, diskBytesMax: 3 * 1024 ** 3 });
    const disk = (size: string, more = '') =>
      `{path: ${folder}/acme/${size}.img, format: raw, size: ${size}, unprotectedDisk: true${more}}`;
    const wish = (name: string, { vcpus = 1, disks = '' } = {}) =>
      declaration(name, `vcpus: ${vcpus}\ndisks: [${disks}]\n`);
    const refused = (limit: string, facts: object) =>
      expect.objectContaining({ code: 'HOST_LIMIT', facts: { limit, ...facts } });
    host.declareVm(wish('a', { vcpus: 3, disks: disk('2GiB', ', create: true') }), acme);
    expect(() => host.declareVm(wish('b', { vcpus: 2 }), acme)).toThrow(
      refused('vcpusMax', { used: 3, asked: 2, allowed: 4 }),
    );
    const two = `${disk('1GiB')}, ${disk('512MiB')}`;
    const bytes = { used: 2 * 1024 ** 3, asked: 1.5 * 1024 ** 3, allowed: 3 * 1024 ** 3 };
    expect(() => host.declareVm(wish('b', { disks: two }), acme)).toThrow(refused('diskBytesMax', bytes));
    // One that is only read takes no space that is this VM's.
    host.declareVm(wish('b', { disks: disk('1GiB', ', readOnly: true') }), acme);
    expect(host.tenants.page({ after: undefined, limit: 1 }).tenants[0]).toMatchObject({
      ...{ name: 'acme', vcpus: 4, diskBytes: 2 * 1024 ** 3 },
    });
    // What is not said could be anything.
    const unsaid = `{path: ${folder}/acme/x.img, format: raw, unprotectedDisk: true}`;
    expect(() => host.declareVm(wish('c', { disks: unsaid }), acme)).toThrow(withCode('HOST_SPEC_REFUSED'));
    // Controls: it may where nothing is limited, and the host itself always.
    for (const name of ['own', 'of-host']) host.declareVm(wish(name, { vcpus: 64, disks: unsaid }));
    setPolicy(host);
    host.declareVm(wish('c', { vcpus: 64, disks: unsaid }), acme);
  });

  it('is counted also where an earlier version declared its VMs, which did not count all', async () => {
    {
      await using host = openWithTenants();
      host.declareVm(declaration('a', 'vcpus: 3\n'), acme);
    }
    const sql = new DatabaseSync(join(folder, 'host.db'));
    sql.exec('UPDATE vms SET vcpus = 0');
    sql.close();
    await using host = open();
    setPolicy(host, { vcpusMax: 3 });
    expect(() => host.declareVm(declaration('b'), acme)).toThrow(withCode('HOST_LIMIT'));
  });

  it('cannot declare or change to what reaches into the host, whoever asks for it on its behalf', async () => {
    await using host = openWithTenants();
    const hostile = declaration('x', 'qemu: {extraArgs: [-S]}\n');
    expect(() => host.declareVm(hostile, acme)).toThrow(withCode('HOST_SPEC_REFUSED'));
    expect(() => host.declareVm({ ...hostile, tenant: 'acme' })).toThrow(withCode('HOST_SPEC_REFUSED'));
    expect(host.describe().vms.declared).toBe(0);
    const { version } = host.declareVm(declaration('a'), acme);
    const { spec, directory } = declaration('a', 'qemu: {binary: sh}\n');
    expect(() => host.changeVm('a', { spec, directory }, { ifVersion: version })).toThrow(
      withCode('HOST_SPEC_REFUSED'),
    );
    // Negative control: the host itself may.
    expect(host.declareVm(hostile).tenant).toBeNull();
  });

  it('owns what it declares, and nobody else of a tenant can have it', async () => {
    await using host = openWithTenants();
    expect(host.declareVm(declaration('a'), acme).tenant).toBe('acme');
    expect(() => host.declareVm({ ...declaration('b'), tenant: 'other' }, acme)).toThrow(
      withCode('HOST_TENANT_UNKNOWN'),
    );
    expect(() => host.declareVm({ ...declaration('b'), tenant: 'nobody' })).toThrow(
      withCode('HOST_TENANT_UNKNOWN'),
    );
  });
});

describe('the defaults of a policy', () => {
  const withDefaults = {
    defaults: { shadow: { enabled: false, maxIntervalMs: 50 }, clock: { errorMaxMs: 70 } },
  };

  it('fill what a specification leaves out, when it is declared and when it is started', async () => {
    await using host = openWithTenants();
    setPolicy(host, withDefaults);
    expect(host.declareVm(declaration('a'), acme).shadowWanted).toBe(false);
    expect(host.declareVm(declaration('b', 'shadow: {enabled: true}\n'), acme).shadowWanted).toBe(true);
    // As it was declared: what is said there is what its owner wrote.
    expect(host.getVm('a').spec).toBe(declaration('a').spec);
    host.startVm('b', { discard: false });
    await expect.poll(() => started.length).toBeGreaterThan(0);
    expect(parse(started[0]?.spec ?? '')).toMatchObject({
      ...{ shadow: { enabled: true, maxIntervalMs: 50 }, clock: { errorMaxMs: 70 } },
    });
  });

  it('leave the lines of problems as they are', async () => {
    await using host = openWithTenants();
    setPolicy(host, withDefaults);
    const wrong = declaration('a', '# a comment\nshadow:\n  hangTimeoutMs: 40\n');
    expect(() => host.declareVm(wrong, acme)).toThrow(/specification:5: shadow|specification:6: shadow/);
  });

  it('do not change what the host starts for itself, byte by byte', async () => {
    await using host = openWithTenants();
    const said = declaration('own', '# kept\n');
    host.declareVm(said);
    host.startVm('own', { discard: false });
    await expect.poll(() => started.length).toBeGreaterThan(0);
    expect(started[0]?.spec).toBe(said.spec);
  });
});

describe('a VM of a tenant that is started', () => {
  it('cannot reach the loopback of the host, whatever its specification says', async () => {
    await using host = openWithTenants();
    host.declareVm(
      declaration('a', 'nics: [{uplink: {kind: passt, hostLoopback: true}}, {uplink: {kind: none}}]\n'),
      acme,
    );
    host.startVm('a', { discard: false });
    await expect.poll(() => started.length).toBeGreaterThan(0);
    const { nics } = parse(started[0]?.spec ?? '');
    expect(nics).toEqual([{ uplink: { kind: 'passt', hostLoopback: false } }, { uplink: { kind: 'none' } }]);
  });

  it('is started with the directories and the processor time of its policy; one of the host with neither', async () => {
    await using host = openWithTenants();
    setPolicy(host, { cpuShareMax: 1.5 });
    host.declareVm(declaration('a'), acme);
    host.declareVm(declaration('own'));
    for (const name of ['a', 'own']) host.startVm(name, { discard: false });
    await expect.poll(() => started.length).toBeGreaterThan(1);
    const bounds = (vm: string) => {
      const { directories, cpuShareMax } = started.find(({ name }) => name === vm)?.wishes ?? {};
      return { directories, cpuShareMax };
    };
    expect(bounds('a')).toEqual({ directories: [join(folder, 'acme')], cpuShareMax: 1.5 });
    expect(bounds('own')).toEqual({ directories: undefined, cpuShareMax: undefined });
  });

  it('is looked at again: a link that was put in the place of a file is not followed', async () => {
    await using host = openWithTenants();
    const failed: HostEvent[] = [];
    host.onEvent((event) => event.kind === 'start-failed' && failed.push(event));
    host.declareVm(declaration('a'), acme);
    rmSync(join(folder, 'acme/vmlinuz'));
    symlinkSync('/etc/passwd', join(folder, 'acme/vmlinuz'));
    host.startVm('a', { discard: false });
    await expect.poll(() => failed.length).toBeGreaterThan(0);
    expect(failed[0]?.facts).toMatchObject({ code: 'HOST_SPEC_REFUSED' });
    expect([started.length, host.getVm('a').observed.problem?.code]).toEqual([0, 'HOST_SPEC_REFUSED']);
  });
});

describe('access tokens', () => {
  it('of a tenant are listed and revoked within it only, and live on over a restart as a hash', async () => {
    const made: { id: string; token: string }[] = [];
    {
      await using host = openWithTenants();
      for (const tenant of ['acme', 'other', null])
        made.push(host.createToken({ name: 'ci', role: 'viewer', tenant, expiresInSeconds: null }));
      expect(() =>
        host.createToken({ name: 'ci', role: 'viewer', tenant: 'nobody', expiresInSeconds: null }),
      ).toThrow(withCode('HOST_TENANT_UNKNOWN'));
    }
    const [ofAcme, ofOther, ofHost] = made.map(({ id }) => id);
    for (const name of readdirSync(folder).filter((each) => each.startsWith('host.db'))) {
      for (const { token } of made)
        expect(readFileSync(join(folder, name)).includes(token.slice(16))).toBe(false);
    }
    await using host = open();
    const reach = { tenant: 'acme' };
    const listed = host.listTokens({ after: undefined, limit: 9, reach }).tokens;
    expect(listed.map(({ id, tenant }) => [id, tenant])).toEqual([[ofAcme, 'acme']]);
    expect(host.listTokens({ after: undefined, limit: 9 }).tokens).toHaveLength(3);
    for (const id of [ofOther, ofHost]) {
      expect(() => host.revokeToken(id ?? '', { reach })).toThrow(withCode('HOST_TOKEN_UNKNOWN'));
      expect(host.findToken(id ?? '')).toBeDefined();
    }
    host.revokeToken(ofAcme ?? '', { reach });
    expect(host.findToken(ofAcme ?? '')).toBeUndefined();
  });
});

describe('an audit', () => {
  it('is told to administrators of whoever it is of', async () => {
    await using host = openWithTenants();
    const by = (tenant: string | null) =>
      host.audit({
        ...{ principal: 'ada', tenant, via: 'token', role: 'operator', action: 'stopVm', target: 'a' },
        ...{ requestId: 'r', status: 200 },
      });
    by('acme');
    by(null);
    const heardBy = (tenant: string | null, withAudit = true) =>
      host
        .listEvents({ after: 0, limit: 100, vm: undefined, withAudit, reach: reachOf({ tenant }) })
        .events.flatMap(({ kind, facts }) => (kind === 'audit' ? [facts] : []));
    expect(heardBy('acme')).toEqual([
      {
        principal: 'ada',
        via: 'token',
        role: 'operator',
        action: 'stopVm',
        target: 'a',
        requestId: 'r',
        status: 200,
      },
    ]);
    expect([heardBy(null).length, heardBy('other'), heardBy('acme', false)]).toEqual([2, [], []]);
  });
});
