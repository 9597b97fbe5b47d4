import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import { KIB, MIB } from '../src/base/units.ts';
import { endProcess } from '../src/control/process-identity.ts';
import { RunDirectory } from '../src/control/run-directory.ts';
import { HostDaemon, hostEnvironment } from '../test/kit/host-daemon.ts';
import { marked } from '../test/kit/run-mark.ts';
import type { BenchRun } from './harness.ts';

const END_DEADLINE_MS = 30_000;
/** USER_HZ, which the kernel fixes for programs at 100. */
const TICKS_PER_SECOND = 100;

/** The folders of a host of its own, and what runs in them, until the benchmark is done. */
export class BenchHost implements AsyncDisposable {
  readonly folder: string;
  readonly #run: BenchRun;
  readonly #memoryFolder: string;
  readonly #environment: NodeJS.ProcessEnv;
  #daemon: HostDaemon | undefined;

  constructor(run: BenchRun) {
    this.#run = run;
    this.folder = mkdtempSync(join(tmpdir(), 'us-bench-'));
    this.#memoryFolder = mkdtempSync(`/dev/shm/${marked('bench')}-`);
    this.#environment = process.env;
    // For what this process itself looks for in run directories.
    process.env = { ...process.env, ...hostEnvironment(this.folder, this.#memoryFolder) };
  }

  get daemon(): HostDaemon {
    if (this.#daemon === undefined) throw new Error('the daemon was started before');
    return this.#daemon;
  }

  /** Resolves when it answers. */
  async startDaemon(): Promise<HostDaemon> {
    const { signal } = this.#run.options;
    this.#daemon = await HostDaemon.start({
      ...{ folder: this.folder, memoryFolder: this.#memoryFolder, signal },
    });
    return this.#daemon;
  }

  async killDaemon(): Promise<void> {
    await this.#daemon?.end('SIGKILL');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.killDaemon();
    const clock = systemClock;
    for (const { name, record } of RunDirectory.list()) {
      if (record !== undefined) await endProcess(record.keeper, { deadlineMs: END_DEADLINE_MS, clock });
      await RunDirectory.sweep(name, { clock });
    }
    process.env = this.#environment;
    for (const path of [this.folder, this.#memoryFolder]) rmSync(path, { recursive: true, force: true });
  }
}

/** Memory of a process that is nobody else's: guest memory and files that it maps do not count. MiB. */
export function rssAnonMiB(pid: number): number {
  const kib = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  return (Number(kib) * KIB) / MIB;
}

/** Share of one core that a process takes for itself while `wait` lasts. */
export async function cpuShareDuring(pid: number, wait: () => Promise<void>): Promise<number> {
  const startMs = performance.now();
  const before = cpuSeconds(pid);
  await wait();
  return (cpuSeconds(pid) - before) / ((performance.now() - startMs) / 1000);
}

function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  // After the name, which may hold anything: utime and stime are fields 14 and 15 of all.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
}
