import { PAGE_BYTES } from '../base/units.ts';
import type { AddressRange } from '../linux/pagemap.ts';
import type { DirtyLog } from './dirty-log.ts';
import type { GuestMemory } from './guest-memory.ts';
import { MemoryError } from './memory-error.ts';
import type { PageRun } from './page-runs.ts';
import type { PreloadChannel, PreloadHello } from './preload-channel.ts';

/** What a dirty log watches: the file, and where QEMU has mapped it. */
export interface WatchedMemory {
  readonly memory: GuestMemory;
  /** To the preload library inside QEMU, after its hello. */
  readonly channel?: PreloadChannel;
}

/** Guest memory as it lies in the address space of QEMU, all in one piece. */
export class MappedMemory {
  readonly channel: PreloadChannel;
  readonly hello: PreloadHello;
  readonly range: AddressRange;

  private constructor(channel: PreloadChannel, hello: PreloadHello) {
    this.channel = channel;
    this.hello = hello;
    this.range = { startAddress: hello.startAddress, lengthBytes: hello.lengthBytes };
  }

  /** @throws MemoryError MEMORY_LOG_UNAVAILABLE on behalf of `method`. */
  static of(watched: WatchedMemory, method: DirtyLog['method']): MappedMemory {
    const { memory, channel } = watched;
    if (channel?.hello === undefined) {
      throw logUnavailable(method, 'it needs the handshake with the preload library');
    }
    if (channel.hello.fileOffset !== 0 || channel.hello.lengthBytes !== memory.sizeBytes) {
      throw logUnavailable(method, 'QEMU has mapped only a part of the memory file');
    }
    return new MappedMemory(channel, channel.hello);
  }

  get pid(): number {
    return this.hello.pid;
  }

  pagesAt(ranges: readonly AddressRange[]): PageRun[] {
    return ranges.map(({ startAddress, lengthBytes }) => ({
      firstPage: (startAddress - this.range.startAddress) / PAGE_BYTES,
      pageCount: lengthBytes / PAGE_BYTES,
    }));
  }

  processGone(): MemoryError {
    const { pid } = this;
    return new MemoryError(
      'MEMORY_PROCESS_GONE',
      `process ${pid} ended while its dirty pages were collected`,
      {
        facts: { pid },
        hint: 'Nothing to do: the shadow goes on from the last committed epoch.',
      },
    );
  }
}

export function logUnavailable(method: DirtyLog['method'], reason: string, cause?: unknown): MemoryError {
  return new MemoryError('MEMORY_LOG_UNAVAILABLE', `dirty log ${method} does not work here: ${reason}`, {
    cause,
    facts: { method, reason },
    hint: 'Let the method be chosen (auto), and see `understudy doctor` for what this machine can do.',
  });
}
