import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { statSync, truncateSync, writeFileSync } from 'node:fs';
import { systemClock as clock } from '../../src/base/clock.ts';
import { endChild } from './child-end.ts';

const POLL_MS = 10;
const READY_MS = 10_000;

/** A raw image that is new and sparse, with a sector that cannot be written: EIO. A file of qemu-storage-daemon. Needs root. */
export class BadSector implements AsyncDisposable {
  readonly #path: string;
  readonly #daemon: ChildProcess;

  private constructor(path: string, daemon: ChildProcess) {
    this.#path = path;
    this.#daemon = daemon;
  }

  static async open(path: string, { sizeBytes, sector }: { sizeBytes: number; sector: number }) {
    const below = `${path}.below`;
    for (const file of [below, path]) {
      writeFileSync(file, '', { mode: 0o600 });
      truncateSync(file, sizeBytes);
    }
    const error = `inject-error.0.event=none,inject-error.0.iotype=write,inject-error.0.sector=${sector}`;
    const daemon = spawn(
      'qemu-storage-daemon',
      [
        ...['--blockdev', `driver=file,node-name=below,filename=${below}`],
        ...['--blockdev', `driver=blkdebug,node-name=bad,image=below,${error}`],
        ...['--export', `type=fuse,id=image,node-name=bad,mountpoint=${path},writable=on`],
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    const bad = new BadSector(path, daemon);
    try {
      await bad.#mounted(statSync(below).dev);
      return bad;
    } catch (thrown) {
      await bad[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Lazily, because a test that failed may still have it open.
    execFileSync('umount', ['--lazy', this.#path]);
    await endChild(this.#daemon);
  }

  async #mounted(deviceBelow: number): Promise<void> {
    let hasExited = false;
    void once(this.#daemon, 'exit').then(() => (hasExited = true));
    const endMs = clock.nowMs() + READY_MS;
    while (statSync(this.#path).dev === deviceBelow) {
      if (hasExited || clock.nowMs() > endMs) throw new Error(`${this.#path} has no bad sector`);
      await clock.sleep(POLL_MS);
    }
  }
}
