import { assert } from '../base/assert.ts';
import { errorFacts } from '../base/errors.ts';
import type { ProtectionEvent } from '../shadow/protection.ts';
import type { LazyRestore } from '../snapshot/lazy-restore.ts';
import { SnapshotError } from '../snapshot/snapshot-error.ts';
import type { SnapshotFile } from '../snapshot/snapshot-file.ts';

interface MemoryArrivalOptions {
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
  readonly dispatch: (event: ProtectionEvent) => void;
  /** Nothing is missing any more. */
  readonly onWhole: () => void;
}

/**
 * The memory of a VM that runs before all of it is there. As long as some is missing, nobody copies it: a shadow, a saved
 * state and a snapshot wait, and what a killed keeper leaves of such a VM is not gone on from.
 */
export class MemoryArrival implements AsyncDisposable {
  readonly #options: MemoryArrivalOptions;
  #restore: LazyRestore | undefined;
  #whole: Promise<void> = Promise.resolve();
  #isWhole = true;

  constructor(options: MemoryArrivalOptions) {
    this.#options = options;
  }

  get isWhole(): boolean {
    return this.#isWhole;
  }

  /** Before the QEMU is on record whose memory it is. Takes both over. */
  expect(restore: LazyRestore, file: SnapshotFile): void {
    assert(this.#isWhole, 'memory comes from one snapshot at a time');
    this.#isWhole = false;
    this.#restore = restore;
    this.#whole = this.#await(restore, file);
    // It reports by itself.
    this.#whole.catch(() => {});
  }

  /** Resolves when all of the memory is there. @throws SnapshotError SNAPSHOT_FILL_FAILED; the signal's reason */
  async whole(signal?: AbortSignal): Promise<void> {
    if (this.#isWhole) return;
    signal?.throwIfAborted();
    const { promise, reject } = Promise.withResolvers<never>();
    const abort = () => reject(signal?.reason);
    signal?.addEventListener('abort', abort, { once: true });
    try {
      await Promise.race([this.#whole, promise]);
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  async #await(restore: LazyRestore, file: SnapshotFile): Promise<void> {
    const { publish, onWhole } = this.#options;
    try {
      const { faults, askedChunks } = await restore.filled;
      this.#isWhole = true;
      publish('memory-whole', { faults, askedChunks });
      onWhole();
    } catch (cause) {
      // Of a QEMU that has ended there is no memory to miss; somebody else sees to that.
      if (cause instanceof SnapshotError && cause.facts.isOver === true) this.#isWhole = true;
      else this.#fail(cause);
      throw cause;
    } finally {
      await restore[Symbol.asyncDispose]();
      file[Symbol.dispose]();
    }
  }

  /** There is nobody any more who answers a guest that asks for its memory. */
  #fail(cause: unknown): void {
    this.#options.publish('failed', { during: 'restore', ...errorFacts(cause) });
    this.#options.dispatch({ kind: 'start-failed' });
  }

  /** The QEMU whose memory it is has ended: nothing of it is missing any more. Whoever waits goes on. */
  async giveUp(): Promise<void> {
    if (this.#isWhole) return;
    await this.#restore?.[Symbol.asyncDispose]();
    await this.#whole.catch(() => {});
  }

  /** Once the QEMU whose memory it is has ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#restore?.[Symbol.asyncDispose]();
    await this.#whole.catch(() => {});
  }
}
