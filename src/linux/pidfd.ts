import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { watchReadable } from './event-watch.ts';
import { checked, lastErrno, libc, SYS_PIDFD_OPEN, SYS_PIDFD_SEND_SIGNAL } from './libc.ts';
import { callFailed } from './linux-error.ts';
import { pollReadable } from './poll.ts';

/**
 * Holds on to one process: signals never reach another that got the same id. See pidfd_open(2). For a child
 * of ours take it before Node reaps it, that is in the turn in which it was spawned.
 */
export class PidFd implements Disposable {
  readonly pid: number;
  readonly #fd: number;
  readonly #listeners = new Set<() => void>();
  // One for all listeners: the event loop takes a descriptor only once.
  #watch: Disposable | undefined;
  #disposed = false;

  private constructor(pid: number, fd: number) {
    this.pid = pid;
    this.#fd = fd;
  }

  /** @throws LinuxError: `ESRCH` when there is no such process. */
  static open(pid: number): PidFd {
    return new PidFd(pid, checked('pidfd_open', libc.syscall(SYS_PIDFD_OPEN, pid, 0, 0, 0)));
  }

  /** False when the process has been gone before. @throws LinuxError: `EPERM`. */
  signal(name: NodeJS.Signals): boolean {
    if (libc.syscall(SYS_PIDFD_SEND_SIGNAL, this.#fd, constants.signals[name], 0, 0) === 0) return true;
    const errno = lastErrno();
    if (errno === 'ESRCH') return false;
    throw callFailed('pidfd_send_signal', errno, { facts: { pid: this.pid, signal: name } });
  }

  /** All threads have ended and will never write to memory again, reaped or not. */
  hasExited(): boolean {
    assert(!this.#disposed, 'a pidfd is asked only while it is open');
    return pollReadable([this.#fd], 0).length > 0;
  }

  /** Calls `task` once when the process has exited. Returns what takes that back. */
  onExit(task: () => void): () => void {
    const listener = () => task();
    this.#listeners.add(listener);
    this.#watch ??= watchReadable(this.#fd, () => this.#tellListeners());
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#stopWatching();
    };
  }

  /** Resolves to true as soon as the process has exited, to false when `deadlineMs` from now pass before. */
  async waitForExit(options: { deadlineMs: number; clock: Clock }): Promise<boolean> {
    if (this.hasExited()) return true;
    return new Promise((resolve) => {
      const finish = (exited: boolean) => {
        cancelTimer();
        cancelListener();
        resolve(exited);
      };
      const cancelListener = this.onExit(() => finish(true));
      const cancelTimer = options.clock.after(options.deadlineMs, () =>
        finish(!this.#disposed && this.hasExited()),
      );
    });
  }

  #tellListeners(): void {
    this.#stopWatching();
    const listeners = [...this.#listeners];
    this.#listeners.clear();
    for (const listener of listeners) listener();
  }

  #stopWatching(): void {
    this.#watch?.[Symbol.dispose]();
    this.#watch = undefined;
  }

  /** Listeners are not called any more; a pending `waitForExit` ends at its deadline. */
  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#stopWatching();
    closeSync(this.#fd);
  }
}
