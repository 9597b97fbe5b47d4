import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { socketDirectory } from '../api/api-fixture.ts';
import { ApiServer } from '../api/api-server.ts';
import { MemoryService } from '../api/memory-service.ts';
import { systemClock as clock } from '../base/clock.ts';
import { silentLogger as log } from '../base/logger.ts';
import { CertificateStore } from '../pki/certificate-store.ts';
import { create } from './declared-commands.ts';
import { Output } from './output.ts';
import { issueForClient } from './pki-commands.ts';

let open: AsyncDisposableStack;
let folder: string;
let service: MemoryService;
const said: string[] = [];

beforeEach(async () => {
  open = new AsyncDisposableStack();
  folder = mkdtempSync(join(tmpdir(), 'us-distant-'));
  open.defer(() => {
    vi.unstubAllEnvs();
    vi.restoreAllMocks();
    rmSync(folder, { recursive: true });
  });
  said.length = 0;
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => said.push(String(text)) > 0);
  const pki = new CertificateStore(join(folder, 'pki'), { wallMs: clock.wallMs });
  await pki.init();
  const { certificate, key } = await pki.host('alpha', []);
  service = new MemoryService();
  const { path } = open.use(socketDirectory());
  const tls = { address: '127.0.0.1:0', certificate, key };
  const socketPath = join(path, 'api.sock');
  const server = open.use(await ApiServer.listen({ service, clock, log, socketPath, tls }));
  const asked = { name: 'ada', role: 'admin', expiresInSeconds: null } as const;
  writeFileSync(join(folder, 'token'), service.createToken(asked).token, { mode: 0o600 });
  vi.stubEnv('UNDERSTUDY_HOST', `https://${server.tlsAddress}`);
  vi.stubEnv('UNDERSTUDY_CA', join(folder, 'pki/ca.crt'));
  vi.stubEnv('UNDERSTUDY_TOKEN_FILE', join(folder, 'token'));
});
afterEach(() => open[Symbol.asyncDispose]());

describe('create', () => {
  const declare = async () => {
    const path = join(folder, 'redis.yaml');
    writeFileSync(path, 'name: redis\nmemory: 64MiB\nboot: {kernel: /on/the/host/vmlinuz}\n');
    const options = { wait: 'none', stopped: true, timeoutMs: 1000 } as const;
    return await create(path, options, new Output({ json: true }));
  };

  it('leaves files of a distant host to that host', async () => {
    expect(await declare()).toBe(0);
    expect(service.getVm('redis').spec).toContain('/on/the/host/vmlinuz');
  });

  it('looks for those of the host of this machine (control)', async () => {
    vi.stubEnv('UNDERSTUDY_HOST', '');
    await expect(declare()).rejects.toMatchObject({ code: 'CONFIG_FILE_MISSING' });
  });
});

describe('a client certificate for a tenant', () => {
  const subjectOf = (made: { certificate: string }) => readFileSync(made.certificate, 'utf8');
  const issue = async (rights: { tenant: string; tenantId?: string }) => {
    said.length = 0;
    const asked = { name: 'ci', role: 'operator', ...rights } as const;
    await issueForClient(join(folder, 'pki'), asked, new Output({ json: true }));
    return JSON.parse(said[0] ?? '{}');
  };

  it('is for the one that the host knows, or the one whose id is given', async () => {
    const { id } = service.tenants.create('acme');
    const made = await issue({ tenant: 'acme' });
    expect(made.outcome).toBe('created');
    // The same id is the same certificate, and another one a refusal.
    const before = subjectOf(made);
    expect(await issue({ tenant: 'acme', tenantId: id })).toEqual({ ...made, outcome: 'unchanged' });
    const tenantId = id.replace(/^./, (digit) => (digit === '0' ? '1' : '0'));
    await expect(issue({ tenant: 'acme', tenantId })).rejects.toMatchObject({ code: 'PKI_NAME_TAKEN' });
    await expect(issue({ tenant: 'nobody' })).rejects.toMatchObject({ code: 'CLI_TENANT_UNKNOWN' });
    expect(subjectOf(made)).toBe(before);
  });
});
