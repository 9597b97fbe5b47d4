import { assert } from '../base/assert.ts';
import type { BlockDevice, DiskExtent, WriteOptions } from './block-device.ts';
import { SECTOR_BYTES } from './journal-entry.ts';
import type { JournalFile } from './journal-file.ts';

type FileName = 'image' | 'journal';

type Step =
  | { readonly file: FileName; readonly kind: 'write'; readonly offset: number; readonly bytes: Buffer }
  | { readonly file: FileName; readonly kind: 'truncate'; readonly sizeBytes: number }
  | { readonly file: FileName; readonly kind: 'sync' };

export interface Contents {
  readonly image: Buffer;
  readonly journal: Buffer;
}

/** Whether something that was not synced had reached the disk when the power failed: asked for each sector. */
export type Luck = () => boolean;

/**
 * Two files that remember everything that was done to them, and can tell what may be left of them when the power fails
 * after any step: all that was synced, and of the rest any sectors.
 */
export class PowerLog {
  readonly steps: Step[] = [];
  readonly #start: Contents;
  readonly #now: { image: Buffer; journal: Buffer };
  readonly #lying: ReadonlySet<FileName>;

  /** The files in `lying` say that they are synced, and are not. */
  constructor(start: Contents, lying: readonly FileName[] = []) {
    this.#start = start;
    this.#now = { image: Buffer.from(start.image), journal: Buffer.from(start.journal) };
    this.#lying = new Set(lying);
  }

  get image(): Buffer {
    return this.#now.image;
  }

  afterPowerLoss(stepCount: number, luck: Luck): Contents {
    const left: { image: Buffer; journal: Buffer } = {
      image: Buffer.from(this.#start.image),
      journal: Buffer.from(this.#start.journal),
    };
    for (const file of ['image', 'journal'] as const) {
      const steps = this.steps.slice(0, stepCount);
      const syncedBefore = steps.findLastIndex((step) => step.file === file && step.kind === 'sync');
      for (const [index, step] of steps.entries()) {
        if (step.file !== file) continue;
        left[file] = carriedOut(left[file], step, index < syncedBefore ? () => true : luck);
      }
    }
    return left;
  }

  journalFile(): JournalFile {
    return {
      sizeBytes: async () => this.#now.journal.length,
      read: async (offset, into) => {
        assert(offset + into.length <= this.#now.journal.length, 'the file is as long as that');
        into.set(this.#now.journal.subarray(offset, offset + into.length));
      },
      write: async (offset, parts) =>
        this.#take({ file: 'journal', kind: 'write', offset, bytes: Buffer.concat(parts) }),
      truncate: async (sizeBytes) => this.#take({ file: 'journal', kind: 'truncate', sizeBytes }),
      sync: async () => this.#take({ file: 'journal', kind: 'sync' }),
      close: async () => {},
    };
  }

  device(): BlockDevice {
    const write = async (offset: number, bytes: Uint8Array, { fua = false }: WriteOptions = {}) => {
      this.#take({ file: 'image', kind: 'write', offset, bytes: Buffer.from(bytes) });
      if (fua) this.#take({ file: 'image', kind: 'sync' });
    };
    const zero = (offset: number, lengthBytes: number, options?: WriteOptions) =>
      write(offset, Buffer.alloc(lengthBytes), options);
    return {
      sizeBytes: this.#start.image.length,
      fastZero: true,
      read: async (offset, into) => into.set(this.#now.image.subarray(offset, offset + into.length)),
      write,
      zero,
      trim: zero,
      flush: async () => this.#take({ file: 'image', kind: 'sync' }),
      extents: async (_, lengthBytes): Promise<DiskExtent[]> => [{ lengthBytes, hole: false, zero: false }],
      close: async () => {},
    };
  }

  #take(step: Step): void {
    if (step.kind === 'sync' && this.#lying.has(step.file)) return;
    this.steps.push(step);
    this.#now[step.file] = carriedOut(this.#now[step.file], step, () => true);
  }
}

function carriedOut(content: Buffer, step: Step, luck: Luck): Buffer {
  if (step.kind === 'sync') return content;
  if (step.kind === 'truncate') return luck() ? resized(content, step.sizeBytes) : content;
  let after: Buffer = content;
  for (let at = 0; at < step.bytes.length; ) {
    const offset = step.offset + at;
    // Up to the next boundary between sectors: a disk writes these whole or not at all.
    const lengthBytes = Math.min(SECTOR_BYTES - (offset % SECTOR_BYTES), step.bytes.length - at);
    if (luck()) {
      if (offset + lengthBytes > after.length) after = resized(after, offset + lengthBytes);
      after.set(step.bytes.subarray(at, at + lengthBytes), offset);
    }
    at += lengthBytes;
  }
  return after;
}

function resized(content: Buffer, sizeBytes: number): Buffer {
  const after = Buffer.alloc(sizeBytes);
  content.copy(after);
  return after;
}
