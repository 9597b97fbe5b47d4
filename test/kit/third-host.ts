import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { parse, stringify } from 'yaml';
import { systemClock as clock } from '../../src/base/clock.ts';
import { processesMapping } from '../../src/control/process-identity.ts';
import { CertificateStore } from '../../src/pki/certificate-store.ts';
import { endChild } from './child-end.ts';
import { HOSTS } from './host-network.ts';
import type { TwoHosts } from './two-hosts.ts';

const run = promisify(execFile);
const CLI = fileURLToPath(new URL('../../src/cli/main.ts', import.meta.url));
const SITE = fileURLToPath(new URL('../../src/keeper/site-main.ts', import.meta.url));
const PORT = 7947;
const DEADLINE_MS = 90_000;

/**
 * Host c beside two others: in the network of b, so that a VM must not act on both at once, with directories of its own. a
 * knows it from its next start on.
 */
export class ThirdHost {
  readonly #hosts: TwoHosts;
  readonly #site: ChildProcess;

  private constructor(hosts: TwoHosts, site: ChildProcess) {
    this.#hosts = hosts;
    this.#site = site;
  }

  static async join(hosts: TwoHosts): Promise<ThirdHost> {
    const pki = new CertificateStore(join(hosts.folder, 'pki'), { wallMs: clock.wallMs });
    await pki.host('c', [HOSTS.b.peers[0]]);
    for (const part of ['run', 'state'])
      mkdirSync(join(hosts.folder, 'c', part), { recursive: true, mode: 0o700 });
    mkdirSync(memoryOf(hosts), { mode: 0o700 });
    const a = parse(readFileSync(hosts.sitePath('a'), 'utf8'));
    const address = `${HOSTS.b.peers[0]}:${PORT}`;
    const c = {
      ...{ ...a, host: 'c', listen: address, certificate: 'pki/c.crt', key: 'pki/c.key' },
      hosts: { a: a.listen },
    };
    writeFileSync(join(hosts.folder, 'site-c.yaml'), stringify(c));
    writeFileSync(hosts.sitePath('a'), stringify({ ...a, hosts: { ...a.hosts, c: address } }));
    const site = spawn('ip', ['netns', 'exec', hosts.netns('b'), process.execPath, SITE], {
      env: environmentOf(hosts),
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = await once(createInterface({ input: site.stdout }), 'line');
    if (!JSON.parse(String(line)).ok) throw new Error(String(line));
    site.stdout.destroy();
    return new ThirdHost(hosts, site);
  }

  /** A command of understudy, as somebody on this host gives it. @throws Error with what it said */
  async cli(...words: string[]): Promise<string> {
    const all = ['netns', 'exec', this.#hosts.netns('b'), process.execPath, CLI, ...words];
    const { stdout } = await run('ip', all, { env: environmentOf(this.#hosts), timeout: DEADLINE_MS });
    return stdout;
  }

  /** Nothing of it is left. */
  async leave(): Promise<void> {
    await endChild(this.#site);
    const memory = memoryOf(this.#hosts);
    for (const { pid } of processesMapping(memory)) process.kill(pid, 'SIGKILL');
    rmSync(memory, { recursive: true, force: true });
  }
}

function memoryOf(hosts: TwoHosts): string {
  return join(hosts.memoryFolder, 'c');
}

function environmentOf(hosts: TwoHosts): NodeJS.ProcessEnv {
  return {
    ...hosts.environment('b'),
    UNDERSTUDY_RUN_DIR: join(hosts.folder, 'c', 'run'),
    UNDERSTUDY_MEMORY_DIR: memoryOf(hosts),
    UNDERSTUDY_STATE_DIR: join(hosts.folder, 'c', 'state'),
    UNDERSTUDY_SITE: join(hosts.folder, 'site-c.yaml'),
  };
}
