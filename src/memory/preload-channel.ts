import { closeSync } from 'node:fs';
import { constants } from 'node:os';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { watchReadable } from '../linux/event-watch.ts';
import { type SeqpacketSocket, seqpacketPair } from '../linux/seqpacket.ts';
import { MemoryError } from './memory-error.ts';
import { mergeRuns, type PageRun, runOfBytes } from './page-runs.ts';

/** The descriptor that the child finds the channel at: the fourth of `stdio` when it is spawned. */
const CHILD_FD = 3;

/** struct message of native/preload.c. */
const MESSAGE_BYTES = 48;
const VERSION = 1;
const HELLO = 1;
const DISCARD = 2;
const EVERY_FAULT = 1;
const STEPS = [
  'ready',
  'find the memory file',
  'userfaultfd',
  'UFFDIO_API',
  'UFFDIO_REGISTER',
  'UFFDIO_WRITEPROTECT',
];

/** Discards are merged when so many have come together: bounded by the number of pages, whatever QEMU does. */
const DISCARDS_UNMERGED_MAX = 1024;

/** What the preload library says of itself when QEMU maps its memory. */
export interface PreloadHello {
  readonly pid: number;
  /** Where guest memory lies in QEMU's address space. */
  readonly startAddress: number;
  readonly lengthBytes: number;
  /** Where in the memory file the mapping starts. */
  readonly fileOffset: number;
  readonly protection: /** Writes can be found by a pagemap scan. The descriptor belongs to the channel. */
    | {
        readonly kind: 'ready';
        readonly userfaultfd: number;
        /** Also faults that the kernel meets on behalf of QEMU can be answered. */
        readonly answersEveryFault: boolean;
      }
    /** The kernel does not have it, or refuses it. Discards are logged all the same. */
    | { readonly kind: 'refused'; readonly step: string; readonly errnoName: string };
}

/**
 * The keeper's end of the connection with the preload library inside QEMU. Discards are read as they come,
 * not only when asked for: QEMU waits when the socket is full, and would then never answer a `stop`.
 */
export class PreloadChannel implements Disposable {
  readonly #socket: SeqpacketSocket;
  readonly #childFd: number;
  #childEndOpen = true;
  #watch: Disposable | undefined;
  #hello: PreloadHello | undefined;
  #failure: MemoryError | undefined;
  #discards: PageRun[] = [];
  /** Wakes the one who waits for the hello. */
  #wake: (() => void) | undefined;
  #disposed = false;

  constructor() {
    const { ours, theirFd } = seqpacketPair();
    this.#socket = ours;
    this.#childFd = theirFd;
    this.#watch = watchReadable(ours.fd, () => this.#drain(), { keepsRunning: false });
  }

  /** To stand at index 3 of the child's `stdio`. */
  get childFd(): number {
    assert(this.#childEndOpen, 'the child end is handed out before it is closed');
    return this.#childFd;
  }

  /** Variables to start QEMU with. QEMU has to be started itself, not through another program. */
  environment(memoryPath: string, libraryPath: string): Record<string, string> {
    return { LD_PRELOAD: libraryPath, UNDERSTUDY_MEMORY: memoryPath, UNDERSTUDY_FD: String(CHILD_FD) };
  }

  /** Once the child is spawned: only then does the channel close with the child. */
  closeChildEnd(): void {
    if (!this.#childEndOpen) return;
    this.#childEndOpen = false;
    closeSync(this.#childFd);
  }

  /** The hello, if it has come. */
  get hello(): PreloadHello | undefined {
    return this.#hello;
  }

  /**
   * Waits until QEMU has mapped its memory, at most `deadlineMs` from now.
   * @throws MemoryError MEMORY_NO_HANDSHAKE when the time is over or the child is gone: there is no protection
   * then. MEMORY_CHANNEL_GARBLED, MEMORY_MAPPED_TWICE.
   */
  async awaitHello(options: { deadlineMs: number; clock: Clock }): Promise<PreloadHello> {
    assert(this.#wake === undefined, 'one at a time waits for the hello');
    this.closeChildEnd();
    this.#drain();
    let late = false;
    const cancelTimer = options.clock.after(options.deadlineMs, () => {
      late = true;
      this.#wake?.();
    });
    try {
      while (this.#hello === undefined) {
        this.#throwFailure();
        if (late || this.#watch === undefined) throw noHandshake(late, options.deadlineMs);
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
      return this.#hello;
    } finally {
      cancelTimer();
      this.#wake = undefined;
    }
  }

  /**
   * Pages discarded since the last call: sorted, disjoint. Complete while the VM stands still, because QEMU
   * reports a discard before it answers the `stop`.
   * @throws MemoryError MEMORY_CHANNEL_GARBLED, MEMORY_MAPPED_TWICE: the dirty log cannot be trusted any more.
   */
  takeDiscards(): PageRun[] {
    this.#drain();
    this.#throwFailure();
    const discards = mergeRuns(this.#discards);
    this.#discards = [];
    return discards;
  }

  #drain(): void {
    while (this.#watch !== undefined) {
      const received = this.#receive();
      if (received.kind === 'empty') return;
      if (received.kind === 'closed') this.#stopWatching();
      else this.#take(received.bytes, received.fds);
      this.#wake?.();
    }
  }

  #receive(): ReturnType<SeqpacketSocket['receive']> {
    try {
      return this.#socket.receive();
    } catch (thrown) {
      // Whoever asks next is told; the event loop has nobody to tell.
      this.#failure ??= garbled(thrown);
      return { kind: 'closed' };
    }
  }

  #take(bytes: Uint8Array, fds: readonly number[]): void {
    const fields = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const kind = bytes.length === MESSAGE_BYTES ? fields.getUint32(0, true) : 0;
    const known = fields.byteLength >= 8 && fields.getUint32(4, true) === VERSION;
    if (known && kind === DISCARD && fds.length === 0) {
      this.#takeDiscard(Number(fields.getBigUint64(40, true)), Number(fields.getBigUint64(32, true)));
      return;
    }
    if (known && kind === HELLO && this.#hello === undefined) {
      this.#hello = helloOf(fields, fds);
      return;
    }
    for (const fd of fds) closeSync(fd);
    this.#failure ??= known && kind === HELLO ? mappedTwice() : garbled();
  }

  #takeDiscard(startByte: number, lengthBytes: number): void {
    // What came before the hello happened to memory that nobody watched yet.
    if (this.#hello === undefined) return;
    // QEMU may punch beyond the end of the file, and may be under the control of its guest.
    const endByte = Math.min(startByte + lengthBytes, this.#hello.fileOffset + this.#hello.lengthBytes);
    if (startByte >= endByte) return;
    this.#discards.push(runOfBytes(startByte, endByte - startByte));
    if (this.#discards.length > DISCARDS_UNMERGED_MAX) this.#discards = mergeRuns(this.#discards);
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  #stopWatching(): void {
    this.#watch?.[Symbol.dispose]();
    this.#watch = undefined;
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#stopWatching();
    this.#wake?.();
    this.closeChildEnd();
    if (this.#hello?.protection.kind === 'ready') closeSync(this.#hello.protection.userfaultfd);
    this.#socket[Symbol.dispose]();
  }
}

function helloOf(fields: DataView, fds: readonly number[]): PreloadHello {
  const step = STEPS[fields.getInt32(12, true)] ?? 'unknown step';
  const error = fields.getInt32(16, true);
  const [userfaultfd] = fds;
  const errnoName =
    Object.entries(constants.errno).find(([, number]) => number === error)?.[0] ?? `errno ${error}`;
  return {
    pid: fields.getInt32(8, true),
    startAddress: Number(fields.getBigUint64(24, true)),
    lengthBytes: Number(fields.getBigUint64(32, true)),
    fileOffset: Number(fields.getBigUint64(40, true)),
    protection:
      userfaultfd === undefined
        ? { kind: 'refused', step, errnoName }
        : { kind: 'ready', userfaultfd, answersEveryFault: fields.getInt32(20, true) === EVERY_FAULT },
  };
}

function noHandshake(late: boolean, deadlineMs: number): MemoryError {
  const how = late
    ? `QEMU has not mapped its memory within ${deadlineMs} ms`
    : 'QEMU ended before it mapped its memory';
  return new MemoryError(
    'MEMORY_NO_HANDSHAKE',
    `no handshake with the preload library, no protection: ${how}`,
    {
      hint:
        'See the log of QEMU. If it runs: a QEMU that is linked statically, is setuid, has file capabilities ' +
        '(getcap) or is started through another program does not load the library.',
    },
  );
}

function mappedTwice(): MemoryError {
  return new MemoryError('MEMORY_MAPPED_TWICE', 'QEMU has mapped guest memory a second time', {
    hint: 'Writes through the second mapping would go unseen: use the memory file for one memory-backend only.',
  });
}

function garbled(cause?: unknown): MemoryError {
  return new MemoryError('MEMORY_CHANNEL_GARBLED', 'the preload library sent what is no message', {
    cause,
    hint: 'Delete the cache directory, so that the library is compiled anew, and start the VM again.',
  });
}
