import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { systemClock as clock } from '../../src/base/clock.ts';
import { marked } from './run-mark.ts';
import { REPOSITORY } from './static-checks.ts';

/** Where the repository lies in the machine. */
export const PACKAGE_THERE = '/opt/understudy';
const SCRIPT = fileURLToPath(new URL('systemd-machine.sh', import.meta.url));
const START_DEADLINE_MS = 60_000;
const COMMAND_DEADLINE_MS = 150_000;
const CGROUP_TRIES = 200;

interface Ran {
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/**
 * A systemd, the distribution's, that manages namespaces of its own on an overlay of this machine's files: what is
 * installed and started there is gone with it, and nothing of this machine can be changed from there. Needs root.
 */
export class SystemdMachine implements AsyncDisposable {
  readonly #unshare: ChildProcess;
  readonly #base: string;
  readonly #cgroup: string;
  readonly #said: string[] = [];

  private constructor() {
    this.#base = mkdtempSync(join(tmpdir(), 'us-systemd-'));
    this.#cgroup = join(cgroup2Mount(), `${marked('systemd')}-${process.pid}`);
    mkdirSync(this.#cgroup);
    const namespaces = ['--cgroup', '--pid', '--fork', '--mount', '--uts', '--ipc', '--net', '--kill-child'];
    const systemd = ['/lib/systemd/systemd', '--system', '--unit=us-test.target', '--log-target=journal'];
    const words = [
      'unshare',
      ...namespaces,
      'sh',
      SCRIPT,
      this.#base,
      REPOSITORY.replace(/\/$/, ''),
      ...systemd,
    ];
    const enter = `echo $$ >'${this.#cgroup}/cgroup.procs' && exec "$@"`;
    this.#unshare = spawn('sh', ['-c', enter, 'sh', ...words], { stdio: ['ignore', 'pipe', 'pipe'] });
    for (const stream of [this.#unshare.stdout, this.#unshare.stderr])
      stream?.on('data', (chunk) => this.#said.push(String(chunk)));
  }

  /** @throws Error with what systemd said when it is not up in time */
  static async start(): Promise<SystemdMachine> {
    const machine = new SystemdMachine();
    try {
      const endMs = clock.nowMs() + START_DEADLINE_MS;
      while (!(await machine.#isUp())) {
        if (clock.nowMs() > endMs || machine.#unshare.exitCode !== null)
          throw new Error(`systemd is not up:\n${machine.#said.join('')}`);
        await clock.sleep(50);
      }
      return machine;
    } catch (thrown) {
      await machine[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  /** Runs a command in the machine, as root. */
  async run(command: readonly string[], { input = '' }: { input?: string | Uint8Array } = {}): Promise<Ran> {
    const pid = this.#systemdPid();
    if (pid === undefined) throw new Error(`systemd has ended:\n${this.#said.join('')}`);
    const enter = ['-t', String(pid), '-m', '-u', '-i', '-n', '-p', '-C', '-r', '-w'];
    const child = spawn('nsenter', [...enter, ...command], {
      stdio: ['pipe', 'pipe', 'pipe'],
      timeout: COMMAND_DEADLINE_MS,
      env: { PATH: '/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/root' },
    });
    // It may end without having read.
    child.stdin.on('error', () => {});
    child.stdin.end(input);
    const [stdout, stderr] = await Promise.all([text(child.stdout), text(child.stderr)]);
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    return { exitCode: child.exitCode ?? -1, stdout, stderr };
  }

  /** The same for a command that has to succeed; what it printed. */
  async must(...command: string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await this.run(command);
    if (exitCode !== 0) throw new Error(`${command.join(' ')}: exit code ${exitCode}\n${stdout}${stderr}`);
    return stdout.trim();
  }

  /** A property of a unit, as `systemctl show` has it. */
  show(unit: string, property: string): Promise<string> {
    return this.must('systemctl', 'show', '--value', '-p', property, unit);
  }

  /** Ends systemd and with it all that runs in there. */
  async [Symbol.asyncDispose](): Promise<void> {
    const pid = this.#systemdPid();
    if (pid !== undefined) process.kill(pid, 'SIGKILL');
    this.#unshare.kill('SIGKILL');
    if (this.#unshare.exitCode === null && this.#unshare.signalCode === null)
      await once(this.#unshare, 'exit');
    await removeGroups(this.#cgroup);
    // Its mounts were in a namespace that is gone.
    rmdirSync(this.#base);
  }

  async #isUp(): Promise<boolean> {
    if (this.#systemdPid() === undefined) return false;
    return (await this.run(['systemctl', 'is-active', '--quiet', 'us-test.target'])).exitCode === 0;
  }

  /** Once the script has become systemd: before, there is no root to enter yet. */
  #systemdPid(): number | undefined {
    const { pid } = this.#unshare;
    const child = Number(read(`/proc/${pid}/task/${pid}/children`).trim().split(' ')[0]);
    return child > 0 && read(`/proc/${child}/comm`).trim() === 'systemd' ? child : undefined;
  }
}

function cgroup2Mount(): string {
  const line = read('/proc/self/mountinfo')
    .split('\n')
    .find((candidate) => candidate.includes(' - cgroup2 '));
  const mount = line?.split(' ')[4];
  if (mount === undefined) throw new Error('no cgroup file system of version 2 is mounted');
  return mount;
}

async function removeGroups(directory: string): Promise<void> {
  for (const entry of readdirSync(directory, { withFileTypes: true }))
    if (entry.isDirectory()) await removeGroups(join(directory, entry.name));
  for (let tries = 1; ; tries += 1) {
    try {
      return rmdirSync(directory);
    } catch (thrown) {
      // The kernel takes a moment to take ended processes out.
      if (tries === CGROUP_TRIES) throw thrown;
      await clock.sleep(20);
    }
  }
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
