import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface, type Interface } from 'node:readline';
import type { PreloadChannel } from './preload-channel.ts';

/** What native/test/memory-writer.c does to its memory, one line each. */
export type WriterCommand =
  | { readonly kind: 'write'; readonly page: number; readonly byte: number }
  | { readonly kind: 'kernel-write'; readonly page: number }
  | { readonly kind: 'remove' | 'dontneed' | 'punch'; readonly page: number; readonly pageCount: number }
  | { readonly kind: 'map-again' };

interface WriterOptions {
  readonly writerPath: string;
  readonly memoryPath: string;
  readonly sizeBytes: number;
  readonly channel: PreloadChannel;
  /** Undefined starts it without the preload library. */
  readonly libraryPath: string | undefined;
  /** The user to run as. */
  readonly uid?: number;
}

/** For tests: a process that maps guest memory and changes it on command, in the place of QEMU. */
export class MemoryWriter implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #lines: Interface;
  readonly #answers: NodeJS.AsyncIterator<string>;

  constructor(options: WriterOptions) {
    const { channel, libraryPath, memoryPath } = options;
    const environment = libraryPath === undefined ? {} : channel.environment(memoryPath, libraryPath);
    this.#child = spawn(options.writerPath, [memoryPath, String(options.sizeBytes)], {
      stdio: ['pipe', 'pipe', 'inherit', channel.childFd],
      env: { ...process.env, ...environment },
      ...(options.uid !== undefined && { uid: options.uid }),
    });
    channel.closeChildEnd();
    if (this.#child.stdout === null) throw new Error('the writer has a standard output');
    this.#lines = createInterface(this.#child.stdout);
    this.#answers = this.#lines[Symbol.asyncIterator]();
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Resolves when all is done. */
  async do(commands: readonly WriterCommand[]): Promise<void> {
    this.#child.stdin?.write(commands.map(lineOf).join(''));
    for (const command of commands) {
      const answer = await this.#answers.next();
      if (answer.value !== 'ok')
        throw new Error(`the writer could not ${JSON.stringify(command)}: ${answer.value}`);
    }
  }

  /** FNV-1a of 64 bits over a page, as the process reads it. */
  async hash(page: number): Promise<string> {
    this.#child.stdin?.write(`h ${page}\n`);
    const { value } = await this.#answers.next();
    return String(value).replace('ok ', '');
  }

  async kill(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await exited;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    this.#lines.close();
  }
}

function lineOf(command: WriterCommand): string {
  switch (command.kind) {
    case 'write':
      return `w ${command.page} ${command.byte}\n`;
    case 'kernel-write':
      return `k ${command.page}\n`;
    case 'map-again':
      return 'm\n';
    case 'remove':
      return `r ${command.page} ${command.pageCount}\n`;
    case 'dontneed':
      return `n ${command.page} ${command.pageCount}\n`;
    case 'punch':
      return `p ${command.page} ${command.pageCount}\n`;
  }
}
