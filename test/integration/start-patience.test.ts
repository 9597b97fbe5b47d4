import { execFile } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { expect, it, onTestFinished } from 'vitest';
import { stringify } from 'yaml';
import { CertificateStore } from '../../src/pki/certificate-store.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const run = promisify(execFile);

it('a start that waits for etcd says so, and is taken back when it has waited for --timeout', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'us-patience-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  const pki = new CertificateStore(join(folder, 'pki'), { wallMs: Date.now });
  await pki.init();
  await pki.host('a', []);
  mkdirSync(join(folder, 'memory'));
  writeFileSync(join(folder, 'vmlinuz'), '');
  const site = {
    ...{ host: 'a', listen: '127.0.0.1:7946', hosts: { b: '127.0.0.1:7947' } },
    ...{ certificate: 'pki/a.crt', key: 'pki/a.key', ca: 'pki/ca.crt' },
    // Nobody listens there.
    lease: { etcd: { endpoints: ['https://127.0.0.1:1'] } },
  };
  const spec = {
    ...{ name: 'patience', memory: '128MiB', boot: { kernel: 'vmlinuz' } },
    shadow: { hosts: ['a', 'b'] },
  };
  writeFileSync(join(folder, 'site.yaml'), stringify(site));
  writeFileSync(join(folder, 'vm.yaml'), stringify(spec));
  const env = {
    ...process.env,
    UNDERSTUDY_SITE: join(folder, 'site.yaml'),
    UNDERSTUDY_RUN_DIR: join(folder, 'run'),
    UNDERSTUDY_STATE_DIR: join(folder, 'state'),
    UNDERSTUDY_MEMORY_DIR: join(folder, 'memory'),
  };
  const words = [MAIN, 'run', join(folder, 'vm.yaml'), '--timeout', '1'];
  const { code, stderr } = await run(process.execPath, words, { env }).then(
    () => expect.unreachable('there is no etcd'),
    (thrown) => thrown,
  );
  expect(code).toBe(1);
  const [starting, waiting, error, hint] = stderr.trim().split('\n');
  expect(starting).toBe('starting patience');
  expect(waiting).toMatch(
    /^it is not known whether another host acts as patience: etcd is away: .*ECONNREFUSED/,
  );
  expect(error).toMatch(/^error CLI_WAIT_TIMEOUT: patience has not started after 1 s: it is not known/);
  expect(hint).toMatch(/taken back/);
  expect([...readdirSync(join(folder, 'run')), ...readdirSync(join(folder, 'memory'))]).toEqual([]);
});
