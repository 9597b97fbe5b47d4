import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ensurePreloadLibrary } from './preload-library.ts';

/** For tests: the preload library and native/test/memory-writer.c, compiled into a directory of their own. */
export class CompiledWriter implements Disposable {
  readonly directory: string;
  readonly libraryPath: string;
  readonly writerPath: string;

  private constructor(directory: string, libraryPath: string) {
    this.directory = directory;
    this.libraryPath = libraryPath;
    this.writerPath = this.compile('memory-writer', []);
  }

  static async make(): Promise<CompiledWriter> {
    const directory = mkdtempSync(join(tmpdir(), 'understudy-writer-'));
    // Other users run it, too.
    chmodSync(directory, 0o755);
    return new CompiledWriter(directory, await ensurePreloadLibrary({ cacheDir: directory }));
  }

  compile(name: string, flags: readonly string[]): string {
    const source = fileURLToPath(new URL('../../native/test/memory-writer.c', import.meta.url));
    const program = join(this.directory, name);
    execFileSync('gcc', ['-O2', '-Wall', '-Wextra', '-Werror', ...flags, '-o', program, source]);
    return program;
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true });
  }
}
