import { once } from 'node:events';
import { closeSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { assert } from '../base/assert.ts';
import { duplicate } from '../linux/file.ts';
import { LinuxError } from '../linux/linux-error.ts';
import { UserfaultAnswers } from '../linux/userfault-answers.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import type { PreloadHello } from '../memory/preload-channel.ts';
import { type FillReport, type FillWork, SHARED, SHARED_BYTES } from './fill-messages.ts';
import { SnapshotError } from './snapshot-error.ts';
import type { SnapshotFile } from './snapshot-file.ts';
import { writeWorkingSet } from './working-set.ts';

export interface FillOutcome {
  /** How often the guest had to wait for a page. */
  readonly faults: number;
  /** Chunks that it asked for before they had come. */
  readonly askedChunks: number;
}

interface BeginOptions {
  readonly memory: GuestMemory;
  readonly hello: PreloadHello;
  /** Does not bring in what nobody asks for until `fillInBackground`. */
  readonly onDemandOnly?: boolean;
}

/**
 * Guest memory that comes from a snapshot while the guest runs already: what it touches at once, the rest in the
 * background. Until `filled` resolves the memory file has holes in the place of pages: nobody else may read it.
 *
 * Whatever goes wrong, no page that is missing is ever read as zeros: who touches one waits, as long as a descriptor of
 * the userfaultfd is open, and QEMU holds one itself. A guest that waits for ever has to be ended by whoever looks at
 * `filled`.
 */
export class LazyRestore implements AsyncDisposable {
  readonly #file: SnapshotFile;
  readonly #shared = new SharedArrayBuffer(SHARED_BYTES);
  readonly #numbers = new Int32Array(this.#shared);
  readonly #worker: Worker;
  readonly #ready = Promise.withResolvers<void>();
  readonly #filled = Promise.withResolvers<FillOutcome>();
  #memory: { readonly answers: UserfaultAnswers; readonly hello: PreloadHello } | undefined;
  #isEnding = false;

  /** Prepares itself while a QEMU is started. The file stays the caller's. */
  constructor(file: SnapshotFile, { key }: { key: Uint8Array | undefined }) {
    this.#file = file;
    const workerData: FillWork = { path: file.path, key, shared: this.#shared };
    this.#worker = new Worker(new URL('fill-worker.ts', import.meta.url), { workerData });
    this.#worker.on('message', (report: FillReport) => this.#take(report));
    this.#worker.on('error', (cause) => this.#fail('its thread failed', { cause }));
    this.#worker.on('exit', () => this.#fail('its thread has ended'));
    // Both may be looked at late or never.
    for (const { promise } of [this.#ready, this.#filled]) promise.catch(() => {});
  }

  /** Resolves when all of the memory is there, and it is memory like any other. @throws SnapshotError SNAPSHOT_FILL_FAILED */
  get filled(): Promise<FillOutcome> {
    return this.#filled.promise;
  }

  /** Share of the snapshot that is in memory, 0 … 1. */
  get share(): number {
    const { length } = this.#file.index.chunks;
    return length === 0 ? 1 : Atomics.load(this.#numbers, SHARED.filledChunks) / length;
  }

  get faults(): number {
    return Atomics.load(this.#numbers, SHARED.faults);
  }

  /** Grows with whatever the guest is given. */
  get progress(): number {
    return Atomics.load(this.#numbers, SHARED.filledChunks) + this.faults;
  }

  /**
   * The memory of a QEMU whose guest does not run yet. When this resolves, all that touches it is answered.
   * @throws SnapshotError SNAPSHOT_FILL_REFUSED where that cannot be done here, SNAPSHOT_FILL_FAILED
   */
  async begin({ memory, hello, onDemandOnly = false }: BeginOptions): Promise<void> {
    const { protection, startAddress, lengthBytes, fileOffset } = hello;
    if (protection.kind === 'refused') throw refused(`${protection.step}: ${protection.errnoName}`);
    if (!protection.answersEveryFault)
      throw refused('this user may answer faults of the process only, and not those of the kernel for it');
    assert(fileOffset === 0 && lengthBytes === memory.sizeBytes, 'QEMU maps all of its memory at once');
    assert(memory.sizeBytes === this.#file.facts.memoryBytes, 'the snapshot is of a memory of this size');
    await this.#ready.promise;
    // The worker may still use it when QEMU's own belongings are closed already, and its number with them.
    const userfaultfd = duplicate(protection.userfaultfd);
    this.#worker.once('exit', () => closeSync(userfaultfd));
    const answers = new UserfaultAnswers(userfaultfd);
    try {
      answers.watchMissing({ address: startAddress, lengthBytes });
    } catch (thrown) {
      if (!(thrown instanceof LinuxError)) throw thrown;
      throw refused(thrown.message, thrown);
    }
    this.#memory = { answers, hello };
    // The start-up of QEMU may have left something in it, and from here on nothing comes into it but our answers.
    memory.discardAll();
    Atomics.store(this.#numbers, SHARED.background, onDemandOnly ? 0 : 1);
    this.#worker.postMessage({ userfaultfd, startAddress });
  }

  fillInBackground(): void {
    Atomics.store(this.#numbers, SHARED.background, 1);
  }

  /** For tests: nothing is answered or brought in until `release`, as if the snapshot could not be read meanwhile. */
  holdUntil(release: Promise<void>): void {
    Atomics.store(this.#numbers, SHARED.held, 1);
    void release.then(() => Atomics.store(this.#numbers, SHARED.held, 0));
  }

  /** For tests: the thread ends as if it had been killed. */
  async kill(): Promise<void> {
    await this.#worker.terminate();
  }

  /** Nothing is answered any more: the QEMU whose memory it is has ended, or everything is there. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#isEnding = true;
    Atomics.store(this.#numbers, SHARED.stop, 1);
    const exited = once(this.#worker, 'exit');
    if (this.#worker.threadId === -1) return;
    // One that waits to begin does not look at the shared numbers.
    if (this.#memory === undefined) await this.#worker.terminate();
    else await exited;
  }

  #take(report: FillReport): void {
    if (report.kind === 'ready') this.#ready.resolve();
    else if (report.kind === 'done') this.#finish(report.asked);
    else if (report.kind === 'stopped') this.#fail('the QEMU has ended, or it was stopped', { isOver: true });
    else this.#fail(report.message);
  }

  #finish(asked: readonly number[]): void {
    assert(this.#memory !== undefined, 'it has begun');
    const { answers, hello } = this.#memory;
    try {
      answers.watchWritesOnly({ address: hello.startAddress, lengthBytes: hello.lengthBytes });
    } catch (cause) {
      this.#fail('what is written cannot be watched any more', { cause });
      return;
    }
    this.#rememberAsked(asked);
    this.#filled.resolve({ faults: this.faults, askedChunks: asked.length });
  }

  /** For the next time. A directory that cannot be written to is no reason for anything. */
  #rememberAsked(chunks: readonly number[]): void {
    if (chunks.length === 0) return;
    try {
      writeWorkingSet(this.#file.path, { snapshotHash: this.#file.snapshotHash, chunks });
    } catch {
      // It is a hint.
    }
  }

  /** `isOver`: there is nobody any more who could miss it. */
  #fail(why: string, { cause, isOver = this.#isEnding }: { cause?: unknown; isOver?: boolean } = {}): void {
    const hint = isOver
      ? 'Nothing is wrong: the VM was ended.'
      : 'The VM is ended; go on from the snapshot again, or from another one: `understudy snapshot verify`.';
    const error = new SnapshotError(
      'SNAPSHOT_FILL_FAILED',
      `memory stopped coming from ${this.#file.path}: ${why}`,
      {
        hint,
        facts: { path: this.#file.path, isOver },
        cause,
      },
    );
    this.#ready.reject(error);
    this.#filled.reject(error);
  }
}

function refused(why: string, cause?: unknown): SnapshotError {
  return new SnapshotError('SNAPSHOT_FILL_REFUSED', `memory cannot be filled while the guest runs: ${why}`, {
    hint: 'Start the keeper as root, or open /dev/userfaultfd to its user.',
    cause,
  });
}
