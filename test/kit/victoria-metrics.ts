import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock as clock } from '../../src/base/clock.ts';
import { freePort } from '../../src/net/free-port.ts';
import { issue, makeAuthority, readAuthority } from '../../src/pki/certificate.ts';

const START_DEADLINE_MS = 30_000;
const ASK_AGAIN_MS = 50;

/** Files of a server that speaks TLS, in `folder`: its own, and the CA that signed it. */
export async function serverTls(folder: string): Promise<{ ca: string; flags: string[] }> {
  const wallMs = clock.wallMs();
  const authority = await makeAuthority('a test', { wallMs });
  const ca = await readAuthority(authority);
  const options = { name: 'metrics', ips: ['127.0.0.1'], isServer: true, years: 1 };
  const issued = await issue(options, { ca, wallMs });
  const [caFile, certificate, key] = ['ca.crt', 'server.crt', 'server.key'].map((name) =>
    join(folder, name),
  ) as [string, string, string];
  writeFileSync(caFile, authority.certificate);
  writeFileSync(certificate, issued.certificate);
  writeFileSync(key, issued.key, { mode: 0o600 });
  return { ca: caFile, flags: ['-tls', `-tlsCertFile=${certificate}`, `-tlsKeyFile=${key}`] };
}

/** A real VictoriaMetrics on a free port of loopback, with a folder of its own. Needs Debian's victoria-metrics. */
export class VictoriaMetrics implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'us-metrics-'));
  readonly #flags: readonly string[];
  readonly #port: number;
  #child: ChildProcess | undefined;

  private constructor(port: number, flags: readonly string[]) {
    this.#port = port;
    this.#flags = flags;
  }

  /** Resolves when it answers. @throws Error with its log */
  static async start(flags: readonly string[] = ['-dedup.minScrapeInterval=1ms']): Promise<VictoriaMetrics> {
    const server = new VictoriaMetrics(await freePort(), flags);
    try {
      await server.run();
      return server;
    } catch (cause) {
      await server[Symbol.asyncDispose]();
      throw cause;
    }
  }

  get url(): string {
    return `${this.#flags.includes('-tls') ? 'https' : 'http'}://127.0.0.1:${this.#port}`;
  }

  /** Starts it again with what it had on disk. */
  async run(): Promise<void> {
    const path = join(this.folder, 'log');
    const log = openSync(path, 'a');
    const flags = [`-httpListenAddr=127.0.0.1:${this.#port}`, '-retentionPeriod=24', ...this.#flags];
    const child = spawn('victoria-metrics', [`-storageDataPath=${join(this.folder, 'data')}`, ...flags], {
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    this.#child = child;
    const endMs = clock.nowMs() + START_DEADLINE_MS;
    while (clock.nowMs() < endMs && child.exitCode === null) {
      // It listens when its storage is open.
      if (await this.#listens()) return;
      await clock.sleep(ASK_AGAIN_MS);
    }
    throw new Error(`VictoriaMetrics does not start:\n${readFileSync(path, 'utf8').slice(-3_000)}`);
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill(signal);
    await exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #listens(): Promise<boolean> {
    const socket = connect(this.#port, '127.0.0.1');
    try {
      await once(socket, 'connect');
      return true;
    } catch {
      return false;
    } finally {
      socket.destroy();
    }
  }
}
