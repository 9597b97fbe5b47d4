import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ApiClient } from '../../src/api/api-client.ts';
import { ApiError } from '../../src/api/api-error.ts';
import { systemClock as clock } from '../../src/base/clock.ts';

const DAEMON = fileURLToPath(new URL('../../src/host/main.ts', import.meta.url));
const ASK_AGAIN_MS = 5;

export interface HostDaemonOptions {
  /** For its log, state, socket and run directories. */
  readonly folder: string;
  /** For guest memory. */
  readonly memoryFolder: string;
  /** More words of its command line. */
  readonly words?: readonly string[];
  readonly signal?: AbortSignal;
}

/** A real daemon in a process of its own, with directories of its own. */
export class HostDaemon implements AsyncDisposable {
  readonly client: ApiClient;
  readonly socketPath: string;
  readonly #child: ChildProcess;
  readonly #logPath: string;

  private constructor(child: ChildProcess, { socketPath, logPath }: { socketPath: string; logPath: string }) {
    this.#child = child;
    this.#logPath = logPath;
    this.socketPath = socketPath;
    this.client = new ApiClient({ socketPath, clock });
  }

  /** Resolves when it answers. @throws Error with its log when it ends before */
  static async start({ folder, memoryFolder, words = [], signal }: HostDaemonOptions): Promise<HostDaemon> {
    const logPath = join(folder, 'host.log');
    const log = openSync(logPath, 'a');
    const env = { ...process.env, ...hostEnvironment(folder, memoryFolder) };
    const socketPath = join(folder, 'run', 'host.sock');
    mkdirSync(join(folder, 'run'), { recursive: true, mode: 0o700 });
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', DAEMON, ...words], {
      stdio: ['ignore', 'ignore', log],
      env,
    });
    closeSync(log);
    const daemon = new HostDaemon(child, { socketPath, logPath });
    try {
      await daemon.#untilItAnswers(signal);
      return daemon;
    } catch (thrown) {
      await daemon.end('SIGKILL');
      throw thrown;
    }
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get log(): string {
    return readFileSync(this.#logPath, 'utf8');
  }

  /** Where it listens over TLS, as it says in its log before it answers; undefined where it does not. */
  get tlsAddress(): string | undefined {
    const lines = this.log.split('\n').filter((line) => line.includes('host listens'));
    return JSON.parse(lines.at(-1) ?? '{}').tls;
  }

  get #hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** Its exit code; null when it was killed. Its VMs run on. */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    if (!this.#hasEnded) {
      const exited = once(this.#child, 'exit');
      this.#child.kill(signal);
      await exited;
    }
    return this.#child.exitCode;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end('SIGKILL');
  }

  async #untilItAnswers(signal: AbortSignal | undefined): Promise<void> {
    for (;;) {
      if (this.#hasEnded) throw new Error(`the daemon ended:\n${this.log}`);
      try {
        await this.client.call('getHealth', {}, signal);
        return;
      } catch (thrown) {
        if (!(thrown instanceof ApiError) || thrown.code !== 'API_UNREACHABLE') throw thrown;
      }
      await clock.sleep(ASK_AGAIN_MS, signal);
    }
  }
}

/** Keeps a daemon and its keepers, and whoever looks at them, away from everything else on this machine. */
export function hostEnvironment(folder: string, memoryFolder: string): Record<string, string> {
  return {
    UNDERSTUDY_RUN_DIR: join(folder, 'run'),
    UNDERSTUDY_MEMORY_DIR: memoryFolder,
    UNDERSTUDY_STATE_DIR: join(folder, 'state'),
  };
}
