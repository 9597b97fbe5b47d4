import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { ApiClient } from '../../src/api/api-client.ts';
import type { HostEvent, Vm } from '../../src/api/resources.ts';
import { systemClock as clock } from '../../src/base/clock.ts';
import { endProcess } from '../../src/control/process-identity.ts';
import { RunDirectory } from '../../src/control/run-directory.ts';
import { marked } from './run-mark.ts';

const DAEMON = fileURLToPath(new URL('../../src/host/main.ts', import.meta.url));
const DEADLINE_MS = 60_000;

/** A host daemon with directories of its own, as a process that can be killed. Disposing it leaves no VM behind. */
export class TestHost implements AsyncDisposable {
  readonly client: ApiClient;
  readonly stateDirectory: string;
  #owned = new AsyncDisposableStack();
  #daemon: ChildProcess | undefined;

  private constructor(folder: string) {
    this.client = new ApiClient({ socketPath: join(folder, 'run/host.sock'), clock });
    this.stateDirectory = join(folder, 'state');
  }

  static async start(): Promise<TestHost> {
    await using starting = new AsyncDisposableStack();
    const before = { ...process.env };
    const folder = mkdtempSync(join(tmpdir(), 'us-host-'));
    const memory = mkdtempSync(`/dev/shm/${marked('host')}-`);
    starting.defer(() => {
      process.env = before;
      for (const path of [folder, memory]) rmSync(path, { recursive: true, force: true });
    });
    process.env.UNDERSTUDY_RUN_DIR = join(folder, 'run');
    process.env.UNDERSTUDY_MEMORY_DIR = memory;
    process.env.UNDERSTUDY_STATE_DIR = join(folder, 'state');
    starting.defer(endAllVms);
    const host = new TestHost(folder);
    starting.defer(() => host.end('SIGKILL'));
    await host.startDaemon();
    host.#owned = starting.move();
    return host;
  }

  async startDaemon(): Promise<void> {
    const daemon = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', DAEMON], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#daemon = daemon;
    const listens = Promise.withResolvers<void>();
    const said: string[] = [];
    const lines = createInterface({ input: daemon.stderr });
    lines.on('line', (line) => {
      said.push(line);
      if (line.includes('host listens')) listens.resolve();
    });
    lines.on('close', () => listens.reject(new Error(`the daemon ended:\n${said.join('\n')}`)));
    await listens.promise;
  }

  async end(signal: NodeJS.Signals): Promise<void> {
    const daemon = this.#daemon;
    if (daemon === undefined || daemon.exitCode !== null || daemon.signalCode !== null) return;
    const exited = once(daemon, 'exit');
    daemon.kill(signal);
    await exited;
  }

  /** The VM once this holds for it. */
  async until(name: string, holds: (vm: Vm) => boolean): Promise<Vm> {
    const signal = AbortSignal.timeout(DEADLINE_MS);
    for (;;) {
      const vm = await this.client.call('getVm', { params: { name } }, signal);
      if (holds(vm)) return vm;
      await clock.sleep(20, signal);
    }
  }

  async nextEvent(kind: string, { vm, after }: { vm: string; after: number }): Promise<HostEvent> {
    for await (const event of this.client.events({ after, vm, signal: AbortSignal.timeout(DEADLINE_MS) }))
      if (event.kind === kind) return event;
    throw new Error('events never end');
  }

  async lastEventId(): Promise<number> {
    return (await this.events()).at(-1)?.id ?? 0;
  }

  async events(): Promise<readonly HostEvent[]> {
    return (await this.client.call('listEvents', { query: { limit: 1000 } })).events;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}

async function endAllVms(): Promise<void> {
  for (const { name, record } of RunDirectory.list()) {
    if (record !== undefined) await endProcess(record.keeper, { deadlineMs: DEADLINE_MS, clock });
    await RunDirectory.sweep(name, { clock });
  }
}
