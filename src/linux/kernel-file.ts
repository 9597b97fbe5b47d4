import { closeSync, openSync, readSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import { fromNodeError } from './linux-error.ts';

/** Files of /proc and of cgroups that are read here are shorter; a longer one is cut off. */
const ROOM_BYTES = 16_384;
/** Nothing waits between two reads: one buffer is enough for all of them. */
const room = Buffer.allocUnsafeSlow(ROOM_BYTES);

/**
 * A file that the kernel writes anew each time that it is read. Kept open: a read costs a few microseconds, and a file of a
 * process stays that of this process, also when its id is used again.
 */
export class KernelFile implements Disposable {
  readonly #path: string;
  #fd: number | undefined;

  private constructor(path: string, fd: number) {
    this.#path = path;
    this.#fd = fd;
  }

  /** @throws LinuxError: `ENOENT`, `EACCES` */
  static open(path: string): KernelFile {
    try {
      return new KernelFile(path, openSync(path, 'r'));
    } catch (thrown) {
      throw fromNodeError(`open ${path}`, thrown);
    }
  }

  /** @throws LinuxError: `ESRCH` when the process is gone, `ENODEV` when the cgroup is */
  text(): string {
    assert(this.#fd !== undefined, `${this.#path} is open`);
    try {
      return room.toString('latin1', 0, readSync(this.#fd, room, 0, ROOM_BYTES, 0));
    } catch (thrown) {
      throw fromNodeError(`read ${this.#path}`, thrown);
    }
  }

  [Symbol.dispose](): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}
