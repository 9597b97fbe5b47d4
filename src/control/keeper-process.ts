import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { cacheDirectory } from '../base/cache-directory.ts';
import type { Clock } from '../base/clock.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { decodeLine } from './control-protocol.ts';
import { KeeperError } from './keeper-error.ts';
import { type KeeperWishes, wordsOf } from './keeper-wishes.ts';
import { memoryRoot, runRoot } from './run-paths.ts';
import { assertStarted, startOutcomeSchema, waitingSchema } from './start-outcome.ts';

const KEEPER = fileURLToPath(new URL('../keeper/main.ts', import.meta.url));
const LAST_WORDS_CHARACTERS = 4000;

/**
 * Where Node keeps what it has made of our sources. With it a keeper need not load the compiler for TypeScript, and goes
 * on with a VM 130 ms sooner, which is part of every outage by the loss of a keeper.
 */
function compileCache(): Record<string, string> {
  const directory = resolve(process.env.NODE_COMPILE_CACHE || join(cacheDirectory(), 'compiled'));
  try {
    // Node itself would try for ever where it cannot be made.
    makeDirectory(directory, { mode: 0o700 });
  } catch {
    return { NODE_DISABLE_COMPILE_CACHE: '1' };
  }
  return { NODE_COMPILE_CACHE: directory };
}

/** A keeper that this process starts. It has a session of its own: a terminal's Ctrl-C does not reach it. */
export class KeeperProcess {
  readonly #child: ChildProcess;
  readonly #vm: string;
  /** Exit code; null when it was killed. */
  readonly exited: Promise<number | null>;
  #lastWords = '';

  /** `source` is where the specification came from, for messages and relative paths; by default the file itself. */
  constructor(
    specPath: string,
    { vm, source = resolve(specPath), wishes = {} }: { vm: string; source?: string; wishes?: KeeperWishes },
  ) {
    this.#vm = vm;
    const spec = openSync(specPath, 'r');
    try {
      this.#child = spawn(process.execPath, [KEEPER, '--source', source, ...wordsOf(wishes)], {
        detached: true,
        // Not ours, which may be on a file system that is to be unmounted one day.
        cwd: '/',
        env: {
          ...process.env,
          UNDERSTUDY_RUN_DIR: runRoot(),
          UNDERSTUDY_MEMORY_DIR: memoryRoot(),
          UNDERSTUDY_CACHE: resolve(cacheDirectory()),
          ...compileCache(),
        },
        stdio: [spec, 'pipe', 'pipe'],
      });
    } finally {
      closeSync(spec);
    }
    this.exited = once(this.#child, 'exit').then(([code]) => code);
    this.#output('stderr').on('data', (text) => {
      this.#lastWords = `${this.#lastWords}${text}`.slice(-LAST_WORDS_CHARACTERS);
    });
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /**
   * Resolves when the VM runs and the keeper can be spoken to. `onWait`: it waits, and says what for.
   * @throws what kept it from starting
   */
  async started(onWait: (what: string) => void = () => {}): Promise<void> {
    const lines = createInterface({ input: this.#output('stdout') });
    // Not `exit`, which may come before its last words have been read.
    const silent = once(this.#child, 'close').then(([code]) => ({ line: undefined, code }));
    const words = Promise.withResolvers<string>();
    lines.on('line', (line) => {
      const waiting = waitingSchema.safeParse(decodeLine(line)).data;
      if (waiting === undefined) words.resolve(line);
      else onWait(waiting.waits);
    });
    const spoken = words.promise.then((line) => ({ line, code: 0 }));
    const first = await Promise.race([spoken, silent]);
    const outcome =
      first.line === undefined ? undefined : startOutcomeSchema.safeParse(decodeLine(first.line)).data;
    if (outcome !== undefined) return assertStarted(outcome);
    throw new KeeperError('KEEPER_START_FAILED', `the keeper of ${this.#vm} ended before it had started`, {
      hint: `It said: ${this.#lastWords.trim() || 'nothing'}`,
      facts: { exitCode: first.code },
    });
  }

  /**
   * Gives the start up. The keeper takes back what it has begun; one that has not done so after `deadlineMs` is
   * killed, and what it left is for `RunDirectory.sweep`.
   */
  async giveUp({ deadlineMs, clock }: { deadlineMs: number; clock: Clock }): Promise<void> {
    this.#child.kill('SIGTERM');
    const cancel = clock.after(deadlineMs, () => this.#child.kill('SIGKILL'));
    await this.exited.finally(cancel);
  }

  /** Lets this process end while the keeper lives on. */
  release(): void {
    this.#output('stdout').destroy();
    this.#output('stderr').destroy();
    this.#child.unref();
  }

  #output(name: 'stdout' | 'stderr'): Readable {
    const stream = this.#child[name];
    if (stream === null) throw new Error('the pipes that were asked for exist');
    return stream;
  }
}

/** As the keeper reads them. */
