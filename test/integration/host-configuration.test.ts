import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { connect } from 'node:tls';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { ApiClient } from '../../src/api/api-client.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { CertificateStore } from '../../src/pki/certificate-store.ts';

const DAEMON = fileURLToPath(new URL('../../src/host/main.ts', import.meta.url));

let folder: string;
let config: string;
let daemon: ChildProcess;
let lines: Record<string, unknown>[];
let spoke: () => void;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'us-configured-'));
  config = join(folder, 'host.yaml');
});
afterEach(async () => {
  if (daemon.exitCode === null && daemon.signalCode === null) {
    daemon.kill('SIGKILL');
    await once(daemon, 'exit');
  }
  rmSync(folder, { recursive: true });
});

function start(text: string, ...flags: string[]): void {
  writeFileSync(config, text);
  const { UNDERSTUDY_RUN_DIR: _run, UNDERSTUDY_STATE_DIR: _state, ...env } = process.env;
  const words = ['--disable-warning=ExperimentalWarning', DAEMON, '--config', config, ...flags];
  daemon = spawn(process.execPath, words, { env, stdio: ['ignore', 'ignore', 'pipe'] });
  lines = [];
  spoke = () => {};
  createInterface({ input: daemon.stderr ?? process.stdin }).on('line', (line) => {
    lines.push(JSON.parse(line));
    spoke();
  });
}

/** The first line with this message after the `seen` first. */
async function said(message: string, seen = 0): Promise<Record<string, unknown>> {
  for (;;) {
    const found = lines.slice(seen).find((line) => line.message === message);
    if (found !== undefined) return found;
    const { promise, resolve } = Promise.withResolvers<void>();
    spoke = resolve;
    await promise;
  }
}

const directories = () =>
  `state: ${folder}/state\nrunDirectory: ${folder}/run\nmemoryDirectory: ${folder}/memory\n`;

describe('a host', () => {
  it('lives where its configuration says, and opens its socket to whom it says', async () => {
    start(`${directories()}socket: {mode: "0600", path: ${folder}/run/api.sock}\n`);
    expect(await said('host listens')).toMatchObject({
      socket: `${folder}/run/api.sock`,
      state: `${folder}/state`,
    });
    expect(statSync(join(folder, 'run/api.sock')).mode & 0o777).toBe(0o600);
    expect(existsSync(join(folder, 'state/host.db'))).toBe(true);
  });

  it('gives its socket to the group that is named', async () => {
    start(`${directories()}socket: {group: daemon}\n`);
    await said('host listens');
    const { mode, gid } = statSync(join(folder, 'run/host.sock'));
    expect({ mode: mode & 0o777, gid }).toEqual({ mode: 0o660, gid: 1 });
    expect(statSync(join(folder, 'run')).mode & 0o777).toBe(0o711);
  });

  it('is told by its options before its configuration', async () => {
    start(directories(), '--state', join(folder, 'other'));
    expect(await said('host listens')).toMatchObject({ state: `${folder}/other` });
  });

  it.each<[string, string, number, string]>([
    ['a wrong configuration', 'sate: /x\n', 78, 'did you mean state?'],
    ['a group that there is not', 'socket: {group: us-no-group}\n', 1, 'HOST_GROUP_UNKNOWN'],
    ['units where systemd does not run', 'keepers: {start: systemd}\n', 1, 'HOST_NO_SYSTEMD'],
  ])('does not start with %s', async (_, text, exitCode, why) => {
    start(`${directories()}${text}`);
    expect((await once(daemon, 'exit'))[0]).toBe(exitCode);
    expect(JSON.stringify(await said('host could not start'))).toContain(why);
    expect(existsSync(join(folder, 'state/host.db'))).toBe(false);
  });

  it('takes over on SIGHUP what it can, says what it cannot, and stays with what it has when that is wrong', async () => {
    start(directories());
    await said('host listens');
    const client = new ApiClient({ socketPath: join(folder, 'run/host.sock'), clock });
    await client.call('getHealth', {});
    await said('API');

    writeFileSync(config, `${directories().replace('/state', '/elsewhere')}log: {level: error}\n`);
    daemon.kill('SIGHUP');
    expect(await said('configuration read again')).toMatchObject({
      applied: ['log'],
      needRestart: ['state'],
    });
    const seen = lines.length;
    writeFileSync(config, 'events: {retentionMax: none}\n');
    await client.call('getHealth', {});
    daemon.kill('SIGHUP');
    expect(await said('configuration is not taken over', seen)).toMatchObject({ code: 'CONFIG_INVALID' });
    // Of the request in between nothing was logged any more.
    expect(lines.slice(seen).map(({ message }) => message)).toEqual(['configuration is not taken over']);
    expect(await client.call('getHealth', {})).toEqual({ status: 'ok' });
  });

  it('reads its TLS files again on SIGHUP, tells of it, and keeps those that it has where the new ones are broken', async () => {
    const pki = new CertificateStore(join(folder, 'pki'), { wallMs: clock.wallMs });
    await pki.init();
    const first = await pki.host('alpha', []);
    const second = await pki.host('beta', []);
    const listen = `listen: {address: "127.0.0.1:0", certificate: ${first.certificate}, key: ${first.key}}\n`;
    start(`${directories()}${listen}`);
    const { tls } = await said('host listens');
    const client = new ApiClient({ socketPath: join(folder, 'run/host.sock'), clock });
    const shown = async () => {
      const [host = '', port] = String(tls).split(':');
      const socket = connect({ host, port: Number(port), rejectUnauthorized: false });
      await once(socket, 'secureConnect');
      const { CN } = socket.getPeerCertificate().subject;
      socket.destroy();
      return CN;
    };
    const told = async () =>
      (await client.call('listEvents', {})).events.filter(({ kind }) => kind.startsWith('tls-'));
    expect(await shown()).toBe('alpha');
    copyFileSync(second.certificate, first.certificate);
    daemon.kill('SIGHUP');
    expect(await said('TLS files are not taken over')).toMatchObject({ code: 'API_TLS_UNUSABLE' });
    expect(await shown()).toBe('alpha');
    copyFileSync(second.key, first.key);
    daemon.kill('SIGHUP');
    await said('TLS files read again');
    expect(await shown()).toBe('beta');
    expect((await told()).map(({ kind, facts }) => [kind, facts.code])).toEqual([
      ['tls-refused', 'API_TLS_UNUSABLE'],
      ['tls-renewed', undefined],
    ]);
  });
});
