import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { ConsoleText } from './console-text.ts';

const DEADLINE_MS = 60_000;
const RETRY_MS = 2000;
const RETRIES = 15;

/** The console of a VM as a process shows it: what it says, and waiting for a piece of it. */
export class RemoteConsole implements Disposable {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #text = new ConsoleText();

  constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child;
    // The VM it belongs to may be gone.
    child.stdin.on('error', () => {});
    child.stdout.on('data', (bytes: Buffer) => this.#text.add(bytes.toString('latin1')));
  }

  type(line: string): void {
    this.#child.stdin.write(`${line}\n`);
  }

  /** A shell of the guest takes commands. What is typed while it starts it may throw away. */
  async untilShell(): Promise<void> {
    await this.take(/understudy-guest: ready/);
    for (let tries = 1; ; tries += 1) {
      // The echo of the line looks different.
      this.type('echo sh""ell');
      try {
        await this.take(/\nshell\r\n/, { deadlineMs: RETRY_MS });
        return;
      } catch (thrown) {
        if (tries === RETRIES) throw thrown;
      }
    }
  }

  /** Waits for a piece of text, and takes it and all before it out. */
  take(pattern: RegExp, { deadlineMs = DEADLINE_MS } = {}): Promise<RegExpExecArray> {
    return this.#text.take(pattern, { deadlineMs });
  }

  [Symbol.dispose](): void {
    this.#child.kill('SIGKILL');
  }
}
