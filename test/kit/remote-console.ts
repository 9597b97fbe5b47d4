import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { ConsoleText } from './console-text.ts';

const DEADLINE_MS = 60_000;

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

  /** The shell of a guest that boots takes commands. What is typed before its prompt it may throw away. */
  async untilShell(): Promise<void> {
    await this.take(/understudy-guest: ready[\s\S]*\/ # /);
  }

  /** Waits for a piece of text, and takes it and all before it out. */
  take(pattern: RegExp): Promise<RegExpExecArray> {
    return this.#text.take(pattern, { deadlineMs: DEADLINE_MS });
  }

  [Symbol.dispose](): void {
    this.#child.kill('SIGKILL');
  }
}
