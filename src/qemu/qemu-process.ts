import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type Clock, systemClock } from '../base/clock.ts';
import { BoundedLog } from './bounded-log.ts';
import { QemuError } from './qemu-error.ts';

const TAIL_CHARS = 4096;
const KILL_DEADLINE_MS = 10_000;
const DRAIN_DEADLINE_MS = 1000;
const ID_DEADLINE_MS = 10_000;

export interface LaunchOptions {
  /** Path of QEMU, or a name to be found in PATH. */
  readonly binary: string;
  readonly args: readonly string[];
  /** Added to our own environment. */
  readonly environment?: Readonly<Record<string, string>>;
  /** Open descriptors that QEMU inherits as 3, 4, and so on. */
  readonly extraFds?: readonly number[];
  /** Name of the user that QEMU runs as, with that user's primary group and no other. Needs root. */
  readonly user?: string | undefined;
  /** Gets what QEMU writes on stdout and stderr, bounded. */
  readonly logPath: string;
  readonly clock?: Clock;
}

export interface QemuExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

/**
 * One QEMU process, our child. It has a session of its own, so that Ctrl-C in our terminal does not reach it:
 * we end it, in the right order. Its pid cannot come to mean another process while we hold it, because Node
 * reaps a child and forgets the pid in one step.
 */
export class QemuProcess implements AsyncDisposable {
  readonly pid: number;
  /** Resolves as soon as the kernel says that the process has ended. Never rejects. */
  readonly exited: Promise<QemuExit>;
  readonly #child: ChildProcess;
  readonly #clock: Clock;
  readonly #log: BoundedLog;
  readonly #outputListeners = new Set<(text: string) => void>();
  /** Resolves once all that it wrote has been read; later than `exited` if a child of it holds the pipes. */
  readonly #drained: Promise<void>;
  #exit: QemuExit | undefined;
  #tail = '';

  /** @throws {QemuError} QEMU_MISSING, QEMU_USER_UNKNOWN, QEMU_START_FAILED (the system refused to start it) */
  static async launch(options: LaunchOptions): Promise<QemuProcess> {
    const { binary, args, environment = {}, extraFds = [], user, clock = systemClock } = options;
    const identity = user === undefined ? {} : identityOf(user);
    const log = new BoundedLog(options.logPath, {
      lossNote: (entries, reason) => `[${entries} pieces of output were lost here: ${reason}]\n`,
    });
    const child = spawn(binary, args, {
      ...identity,
      detached: true,
      env: { ...process.env, ...environment },
      stdio: ['ignore', 'pipe', 'pipe', ...extraFds],
    });
    try {
      await once(child, 'spawn');
    } catch (cause) {
      log[Symbol.dispose]();
      throw cannotSpawn(binary, cause);
    }
    return new QemuProcess(child, { log, clock });
  }

  private constructor(child: ChildProcess, { log, clock }: { log: BoundedLog; clock: Clock }) {
    this.#child = child;
    this.#clock = clock;
    this.#log = log;
    this.pid = child.pid ?? 0;
    for (const stream of [child.stdout, child.stderr]) {
      stream?.on('data', (chunk: Buffer) => this.#receive(chunk));
      stream?.on('error', () => {});
    }
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.#exit = { code, signal };
        resolve(this.#exit);
      });
    });
    this.#drained = new Promise((resolve) => {
      child.once('close', () => {
        log[Symbol.dispose]();
        resolve();
      });
    });
  }

  /** How it ended; undefined while it lives. */
  get exit(): QemuExit | undefined {
    return this.#exit;
  }

  get hasExited(): boolean {
    return this.#exit !== undefined;
  }

  /** The last 4 KiB of what it wrote on stdout and stderr. */
  get outputTail(): string {
    return this.#tail;
  }

  /** Calls `listener` with what it writes until the returned function is called. */
  onOutput(listener: (text: string) => void): () => void {
    this.#outputListeners.add(listener);
    return () => this.#outputListeners.delete(listener);
  }

  /** Sends a signal; false if the process has ended already. */
  signal(name: NodeJS.Signals): boolean {
    return this.#child.kill(name);
  }

  /**
   * Ends it with SIGKILL, which reaches a stopped process too, and waits until the kernel says it is gone.
   * @throws {QemuError} QEMU_UNKILLABLE when it does not end: it sits in the kernel, and may still act
   */
  async kill({ deadlineMs = KILL_DEADLINE_MS } = {}): Promise<QemuExit> {
    this.signal('SIGKILL');
    const exit = await this.awaitExit(deadlineMs);
    if (exit !== undefined) return exit;
    throw new QemuError(
      'QEMU_UNKILLABLE',
      `QEMU (pid ${this.pid}) has not ended ${deadlineMs} ms after SIGKILL`,
      {
        hint: 'It waits in the kernel, e.g. for storage. Nothing may take over before it is gone.',
        facts: { pid: this.pid },
      },
    );
  }

  /** How it ended, or undefined if it still lives after `deadlineMs`. */
  awaitExit(deadlineMs: number): Promise<QemuExit | undefined> {
    return this.#within(this.exited, deadlineMs);
  }

  /** The error for a process that ended before it could be used, in QEMU's own words. */
  async startFailure(cause: unknown): Promise<QemuError> {
    await this.#within(this.#drained, DRAIN_DEADLINE_MS);
    const end = this.#exit === undefined ? 'did not become ready' : `ended (${exitText(this.#exit)})`;
    const words = this.outputTail.trim();
    const image = imageInUse(words);
    if (image !== undefined) return diskInUse(image, { output: words, cause });
    return new QemuError(
      'QEMU_START_FAILED',
      `QEMU ${end}: ${words === '' ? 'it said nothing' : lastLines(words)}`,
      {
        hint: "The whole of QEMU's output is in its log.",
        facts: { exitCode: this.#exit?.code, signal: this.#exit?.signal, output: words },
        cause,
      },
    );
  }

  /** Everything that QEMU wrote before its end has arrived, or a second has passed. */
  async drained(): Promise<void> {
    await this.#within(this.#drained, DRAIN_DEADLINE_MS);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    await this.drained();
    // Who holds the pipes now is no QEMU of ours; do not wait for it.
    this.#child.stdout?.destroy();
    this.#child.stderr?.destroy();
    this.#outputListeners.clear();
  }

  #receive(chunk: Buffer): void {
    this.#log.append(chunk);
    const text = chunk.toString('latin1');
    this.#tail = (this.#tail + text).slice(-TAIL_CHARS);
    for (const listener of this.#outputListeners) listener(text);
  }

  /** What `promise` gives, or undefined after `deadlineMs`. */
  #within<Value>(promise: Promise<Value>, deadlineMs: number): Promise<Value | undefined> {
    return new Promise((resolve, reject) => {
      const cancel = this.#clock.after(deadlineMs, () => resolve(undefined));
      promise.then(resolve, reject).finally(cancel);
    });
  }
}

/** The last lines of QEMU's output: the first ones are often warnings. */
export function lastLines(text: string, count = 5): string {
  return text.trim().split('\n').slice(-count).join('\n');
}

/** The image that QEMU could not lock, from its own words; undefined when they are about something else. */
function imageInUse(words: string): string | undefined {
  if (!/Failed to get (?:shared )?"[\w ]+" lock/.test(words)) return undefined;
  return /Is another process using the image \[(.*)\]\?/.exec(words)?.[1];
}

export function diskInUse(
  path: string,
  { output, cause }: { output?: string; cause?: unknown } = {},
): QemuError {
  return new QemuError('QEMU_DISK_IN_USE', `another process uses the image ${path}`, {
    hint: 'An image that is written to belongs to one VM at a time: stop the other one, or give this one an image of its own.',
    facts: { path, ...(output !== undefined && { output }) },
    cause,
  });
}

function exitText({ code, signal }: QemuExit): string {
  return signal === null ? `exit code ${code}` : signal;
}

/**
 * Who QEMU is when it runs as `user`: what it shall reach (run directory, guest memory) must belong to it.
 * Through `id`, which asks NSS: not every user stands in /etc/passwd.
 * @throws {QemuError} QEMU_USER_UNKNOWN
 */
export function identityOf(user: string): { uid: number; gid: number } {
  const ask = (flag: string) =>
    Number(
      execFileSync('id', [flag, '--', user], {
        stdio: ['ignore', 'pipe', 'ignore'],
        timeout: ID_DEADLINE_MS,
      }),
    );
  try {
    return { uid: ask('-u'), gid: ask('-g') };
  } catch (cause) {
    throw new QemuError('QEMU_USER_UNKNOWN', `there is no user ${user} to run QEMU as`, {
      hint: 'Correct qemu.user in the specification, or create the user.',
      facts: { user },
      cause,
    });
  }
}

function cannotSpawn(binary: string, cause: unknown): QemuError {
  if ((cause as NodeJS.ErrnoException).code === 'ENOENT') return qemuMissing(binary, cause);
  return new QemuError('QEMU_START_FAILED', `cannot start ${binary}: ${(cause as Error).message}`, {
    hint: 'Starting QEMU as another user needs root.',
    facts: { binary },
    cause,
  });
}

export function qemuMissing(binary: string, cause?: unknown): QemuError {
  return new QemuError('QEMU_MISSING', `${binary} is not installed`, {
    hint: 'Install it: apt-get install --no-install-recommends qemu-system-x86',
    facts: { binary },
    cause,
  });
}
