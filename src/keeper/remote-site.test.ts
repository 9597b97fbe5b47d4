import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { stringify } from 'yaml';
import { systemClock as clock } from '../base/clock.ts';
import { Failpoints } from '../base/failpoint.ts';
import { loadSiteConfig } from '../config/site-config.ts';
import { parseVmSpec } from '../config/vm-spec.ts';
import { freePort } from '../net/free-port.ts';
import { CertificateStore } from '../pki/certificate-store.ts';
import { beginMaintenance, endMaintenance } from '../site/maintenance.ts';
import type { RemoteSite } from './keeper-options.ts';
import { remoteSite } from './remote-site.ts';

const SITE = fileURLToPath(new URL('./site-main.ts', import.meta.url));
const NAMES = ['a', 'b', 'c'] as const;
type Name = (typeof NAMES)[number];
/** b is in the rack of a. */
const RACKS = { a: 'r1', b: 'r1', c: 'r2' } as const;

let folder: string;
const processes: ChildProcess[] = [];

const stateOf = (host: Name) => join(folder, host, 'state');

/** Real processes that answer for their hosts, over TLS, each with directories of its own. */
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'us-sites-'));
  const pki = new CertificateStore(join(folder, 'pki'), { wallMs: Date.now });
  await pki.init();
  const ports = { a: await freePort(), b: await freePort(), c: await freePort() };
  const address = (host: Name) => `127.0.0.1:${ports[host]}`;
  for (const host of NAMES) {
    await pki.host(host, []);
    for (const part of ['state', 'run', 'memory'])
      mkdirSync(join(folder, host, part), { recursive: true, mode: 0o700 });
    const others = NAMES.filter((name) => name !== host);
    const site = {
      ...{ host, listen: address(host), labels: { rack: RACKS[host] }, ca: 'pki/ca.crt' },
      ...{ certificate: `pki/${host}.crt`, key: `pki/${host}.key` },
      hosts: Object.fromEntries(others.map((name) => [name, address(name)])),
      lease: { etcd: { endpoints: ['https://127.0.0.1:1'] } },
      peerTimeoutMs: 5000,
    };
    writeFileSync(join(folder, `${host}.yaml`), stringify(site));
  }
  for (const host of ['b', 'c'] as const) {
    const child = spawn(process.execPath, [SITE], {
      env: {
        ...process.env,
        UNDERSTUDY_SITE: join(folder, `${host}.yaml`),
        UNDERSTUDY_STATE_DIR: stateOf(host),
        UNDERSTUDY_RUN_DIR: join(folder, host, 'run'),
        UNDERSTUDY_MEMORY_DIR: join(folder, host, 'memory'),
      },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    processes.push(child);
    const [line] = await once(createInterface({ input: child.stdout }), 'line');
    expect(JSON.parse(String(line))).toMatchObject({ ok: true });
  }
}, 60_000);

afterAll(async () => {
  for (const child of processes) {
    child.kill('SIGTERM');
    await once(child, 'exit');
  }
  rmSync(folder, { recursive: true, force: true });
});

function remoteOf(shadow: string, memory = '32MiB'): RemoteSite {
  const text = `name: redis\nmemory: ${memory}\nboot: {kernel: vmlinuz}\nshadow: ${shadow}\n`;
  const spec = parseVmSpec(text, { source: 'redis.yaml' });
  const site = loadSiteConfig(join(folder, 'a.yaml'));
  const right = { token: 1 } as RemoteSite['right'];
  return remoteSite(site, {
    ...{ spec, right, given: { text, source: 'redis.yaml' }, files: {}, clock },
    ...{ directory: { generationId: '' }, failpoints: new Failpoints() },
  });
}

/** The host whose keeper for the shadow was reached. */
async function placed(remote: RemoteSite): Promise<string> {
  const { host, link } = await remote.connect({
    ...{ copy: 1, signal: AbortSignal.timeout(30_000), onResumed: () => {} },
  });
  link.close();
  return host;
}

describe('the shadow of a VM that may be on any host of its site', () => {
  it('is put into another rack, and there into none in maintenance', async () => {
    const remote = remoteOf('{hosts: auto}');
    const { places } = remote;
    expect(await placed(remote)).toBe('c');
    expect(places.status?.candidates).toMatchObject([
      { host: 'c', verdict: 'fits', shared: [] },
      { host: 'b', verdict: 'fits', shared: ['rack=r1'] },
    ]);
    beginMaintenance({ sinceMs: 1 }, stateOf('c'));
    expect(await placed(remote)).toBe('b');
    expect(places.status?.candidates[1]).toMatchObject({ host: 'c', verdict: 'maintenance' });
    beginMaintenance({ sinceMs: 1 }, stateOf('b'));
    await expect(placed(remote)).rejects.toMatchObject({ code: 'KEEPER_HOST_MAINTENANCE' });
    // The only one is not asked what it has, and says no all the same.
    await expect(placed(remoteOf('{hosts: [a, b]}'))).rejects.toMatchObject({
      code: 'KEEPER_HOST_MAINTENANCE',
    });
    await expect(placed(remoteOf('{hosts: auto}', '1TiB'))).rejects.toThrow('is in maintenance');
    for (const host of ['b', 'c'] as const) endMaintenance(stateOf(host));
    expect(await placed(remoteOf('{hosts: [a, b]}'))).toBe('b');
    await expect(placed(remoteOf('{hosts: auto}', '1TiB'))).rejects.toMatchObject({
      code: 'KEEPER_HOST_NO_ROOM',
    });
  }, 60_000);
});
