import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** A file system in memory with little room, so that running out of it takes no effort. Needs root. */
export class SmallTmpfs implements Disposable {
  readonly path: string;
  readonly #isOwn: boolean;

  /** In a directory of its own, or over one that is there. */
  constructor(sizeBytes: number, path?: string) {
    this.#isOwn = path === undefined;
    this.path = path ?? mkdtempSync(join(tmpdir(), 'us-tmpfs-'));
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${sizeBytes},mode=0755`, 'tmpfs', this.path]);
  }

  /** Takes all the room that there is, until `empty`. */
  fill(): void {
    const fd = openSync(this.#ballast, 'w');
    try {
      for (;;) writeSync(fd, Buffer.alloc(2 ** 20));
    } catch (thrown) {
      if ((thrown as NodeJS.ErrnoException).code !== 'ENOSPC') throw thrown;
    } finally {
      closeSync(fd);
    }
  }

  empty(): void {
    rmSync(this.#ballast);
  }

  get #ballast(): string {
    return join(this.path, 'ballast');
  }

  [Symbol.dispose](): void {
    // Lazily, because a test that failed may still have files open in it.
    execFileSync('umount', ['--lazy', this.path]);
    if (this.#isOwn) rmdirSync(this.path);
  }
}
