import { assert } from '../base/assert.ts';
import { MIB } from '../base/units.ts';
import { NO_EPOCH } from '../epoch/epoch-id.ts';
import { BlockError } from './block-error.ts';
import { endOf } from './disk-write.ts';
import {
  decodeBody,
  decodeEntryHeader,
  decodeHead,
  ENTRY_HEADER_BYTES,
  encodeEntry,
  encodeHead,
  type ImageHead,
  type JournalEntry,
  type JournalHead,
  newIdentity,
  padded,
  SECTOR_BYTES,
} from './journal-entry.ts';
import type { JournalFile } from './journal-file.ts';

/** Two heads in turn at the beginning, so that one is whole whenever the other is being written. */
const HEADS = 2;
const ENTRIES_AT = 4096;
const PROBE_BYTES = MIB;

/**
 * The redo log of an image. Epochs are appended and synced before the image is touched; when they are in the image, a
 * head says so. What is found at the next start is in the image already, or is whole and is written again, or was cut off
 * and never happened.
 *
 * A head is synced by the next append only. Until then the entries that it makes needless stay where they are: if it is
 * lost, they are found again, and with them the epoch that the image holds. So batches lie at the beginning and behind
 * the one before in turn, and the log stays about as long as two of them.
 */
export class DiskJournal {
  /** Which disk it belongs to: the same for all copies of it. */
  readonly identity: string;
  readonly #file: JournalFile;
  readonly #diskBytes: number;
  #head: JournalHead;
  #isPartial: boolean;
  #generation = 0;
  /** Where the next batch goes. */
  #nextAt = ENTRIES_AT;
  /** The batch that the newest head makes needless, as long as that head may be lost. */
  #kept: { readonly startByte: number; readonly endByte: number } | undefined;

  private constructor(file: JournalFile, found: ImageHead) {
    this.#file = file;
    this.identity = found.identity;
    this.#head = { sequence: found.sequence, epoch: found.epoch, token: found.token };
    this.#isPartial = found.isPartial;
    this.#diskBytes = found.diskBytes;
    this.#generation = found.generation;
    this.#nextAt = found.entriesAt;
  }

  /** @throws BlockError BLOCK_JOURNAL_UNFIT: it is no journal, or that of another disk */
  static async open(file: JournalFile, { diskBytes }: { readonly diskBytes: number }): Promise<DiskJournal> {
    const found = await readHead(file);
    if (found === undefined) {
      const journal = new DiskJournal(file, firstHead(newIdentity(), diskBytes));
      await journal.#writeHead(ENTRIES_AT);
      await file.sync();
      return journal;
    }
    if (found.diskBytes !== diskBytes) {
      throw unfit(`it belongs to a disk of ${found.diskBytes} bytes, not of ${diskBytes}`);
    }
    return new DiskJournal(file, found);
  }

  /**
   * Of an image that becomes a copy of a disk: what is in it is no epoch's state from now on, until an entry is appended.
   * That is on disk when this resolves. What it was before has to be the same disk, in an older state or another size.
   * @throws BlockError BLOCK_JOURNAL_UNFIT, BLOCK_COPY_FOREIGN, BLOCK_TOKEN_STALE: nothing was written
   */
  static async openCopy(
    file: JournalFile,
    { identity, diskBytes, token, isNew }: DiskCopyOptions,
  ): Promise<DiskJournal> {
    const head = await readHead(file);
    if (head === undefined && !isNew) throw copyForeign('its image is no copy of any disk');
    const found = head ?? firstHead(identity, diskBytes);
    if (found.identity !== identity) throw copyForeign('its image belongs to another disk');
    const former = new DiskJournal(file, found);
    // For their number and token only: what they say is no longer true of the image.
    for await (const _ of former.recover());
    const last = former.head;
    if (token < last.token) throw tokenStale(token, last.token);
    const journal = new DiskJournal(file, {
      ...{ identity, diskBytes, token, epoch: NO_EPOCH, isPartial: true, entriesAt: ENTRIES_AT },
      // No entry that lies there may be taken for the one that follows.
      sequence: last.sequence + 1,
      generation: found.generation,
    });
    await journal.restart();
    return journal;
  }

  /** The image is a copy in the making: that of no epoch. */
  get isPartial(): boolean {
    return this.#isPartial;
  }

  /** Of the last entry that was appended or recovered. */
  get head(): JournalHead {
    return this.#head;
  }

  /**
   * Entries that the image may lack, in order, up to those of the epoch `upTo`. Call `restart` when they are in it and it was
   * synced, before anything is appended: what is newer is gone then. @throws BlockError BLOCK_JOURNAL_UNFIT
   */
  async *recover({ upTo = Number.POSITIVE_INFINITY } = {}): AsyncGenerator<JournalEntry> {
    const sizeBytes = await this.#file.sizeBytes();
    for (let at = this.#nextAt; at + ENTRY_HEADER_BYTES <= sizeBytes; ) {
      const headerBytes = Buffer.alloc(ENTRY_HEADER_BYTES);
      await this.#file.read(at, headerBytes);
      const header = decodeEntryHeader(headerBytes);
      if (header === undefined || at + ENTRY_HEADER_BYTES + header.bodyBytes > sizeBytes) return;
      // Something older lies behind the last entry.
      if (header.sequence !== this.#head.sequence + 1 || header.epoch > upTo) return;
      const body = Buffer.alloc(header.bodyBytes);
      await this.#file.read(at + ENTRY_HEADER_BYTES, body);
      const writes = decodeBody(header, body);
      if (writes === undefined) return;
      if (writes.some((write) => endOf(write) > this.#diskBytes)) throw unfit('it writes beyond its disk');
      this.#head = { epoch: header.epoch, token: header.token, sequence: header.sequence };
      this.#isPartial = false;
      yield { epoch: header.epoch, token: header.token, writes };
      at += padded(ENTRY_HEADER_BYTES + header.bodyBytes);
    }
  }

  /**
   * They survive a loss of power when this resolves, all of them or a first few of them when it does not; and the end of this
   * process from `onWritten` on. A copy has to be whole and synced but for them: they complete it.
   */
  async append(entries: readonly JournalEntry[], { onWritten = () => {} } = {}): Promise<void> {
    const parts: Uint8Array[] = [];
    for (const entry of entries) {
      parts.push(...encodeEntry(entry, this.#head.sequence + 1));
      this.#head = { epoch: entry.epoch, token: entry.token, sequence: this.#head.sequence + 1 };
    }
    const lengthBytes = parts.reduce((sum, part) => sum + part.length, 0);
    assert(lengthBytes % SECTOR_BYTES === 0, 'entries are padded to sectors');
    const startByte = this.#nextAt;
    const endByte = startByte + lengthBytes;
    // It does not fit in front of the one before: then the head has to be safe before that is written over.
    const kept = this.#kept;
    if (kept !== undefined && startByte < kept.endByte && endByte > kept.startByte) await this.#file.sync();
    await this.#file.write(startByte, parts);
    onWritten();
    await this.#file.sync();
    this.#kept = { startByte, endByte };
    this.#isPartial = false;
  }

  /** The entries that were appended since `head` never happened. Those before are in the image, which was synced. */
  async withdraw(head: JournalHead): Promise<void> {
    this.#head = head;
    await this.restart();
  }

  /** What was appended is in the image, which was synced. May be lost, and is then done again. */
  async trim(): Promise<void> {
    const { startByte, endByte } = this.#kept ?? { startByte: ENTRIES_AT, endByte: ENTRIES_AT };
    await this.#writeHead(startByte === ENTRIES_AT ? endByte : ENTRIES_AT);
  }

  /** Between two batches. It survives a loss of power when this resolves. */
  async noteToken(token: number): Promise<void> {
    this.#head = { ...this.#head, token };
    await this.#writeHead(this.#nextAt);
    await this.#file.sync();
  }

  /** What the newest head says survives a loss of power when this resolves. */
  async settle(): Promise<void> {
    const kept = this.#kept;
    if (kept === undefined) return;
    await this.#file.sync();
    if (this.#kept === kept) this.#kept = undefined;
  }

  /**
   * The log becomes empty, for good: after a recovery something old could lie behind the next entry that bears the number
   * that follows.
   */
  async restart(): Promise<void> {
    await this.#writeHead(ENTRIES_AT);
    await this.#file.sync();
    await this.#file.truncate(ENTRIES_AT);
    await this.#file.sync();
    this.#kept = undefined;
  }

  /** Of one that was restarted: some entries find room, and can be synced. @throws what the file throws */
  async assertWritable(): Promise<void> {
    // Zeros are no entry.
    await this.#file.write(ENTRIES_AT, [new Uint8Array(PROBE_BYTES)]);
    await this.#file.sync();
    await this.#file.truncate(ENTRIES_AT);
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  async #writeHead(entriesAt: number): Promise<void> {
    this.#generation += 1;
    this.#nextAt = entriesAt;
    const generation = this.#generation;
    const { identity } = this;
    const about = { identity, isPartial: this.#isPartial, diskBytes: this.#diskBytes };
    const head = encodeHead({ ...this.#head, ...about, entriesAt, generation });
    await this.#file.write((generation % HEADS) * SECTOR_BYTES, [head]);
  }
}

/** What a copy has to be of, and to become. */
export interface DiskCopyOptions {
  readonly identity: string;
  readonly diskBytes: number;
  /** Of the VM that is copied. */
  readonly token: number;
  /** There is no image yet. */
  readonly isNew: boolean;
}

function firstHead(identity: string, diskBytes: number): ImageHead {
  return {
    ...{ sequence: 0, epoch: NO_EPOCH, token: 0, generation: 0 },
    ...{ identity, diskBytes, isPartial: false, entriesAt: ENTRIES_AT },
  };
}

/** The newest whole head, or undefined where the journal was never finished being made. */
async function readHead(file: JournalFile) {
  const sizeBytes = await file.sizeBytes();
  const sectors = Buffer.alloc(HEADS * SECTOR_BYTES);
  await file.read(0, sectors.subarray(0, Math.min(sizeBytes, sectors.length)));
  const heads = Array.from({ length: HEADS }, (_, slot) =>
    decodeHead(sectors.subarray(slot * SECTOR_BYTES, (slot + 1) * SECTOR_BYTES)),
  ).filter((head) => head !== undefined);
  const newest = heads.toSorted((a, b) => b.generation - a.generation)[0];
  if (newest === undefined && sizeBytes > ENTRIES_AT) throw unfit('it has no head');
  if (newest === undefined && sectors.some((byte) => byte !== 0)) throw unfit('it is something else');
  return newest;
}

function unfit(why: string): BlockError {
  return new BlockError('BLOCK_JOURNAL_UNFIT', `the journal of the disk cannot be used: ${why}`, {
    hint: 'Do not go on from this image: what was committed may be missing in it. Use the one of the other host.',
  });
}

export function tokenStale(token: number, known: number): BlockError {
  return new BlockError('BLOCK_TOKEN_STALE', `token ${token} is older than ${known}`, {
    hint: 'Another side has taken over since. Nothing was written.',
    facts: { token, known },
  });
}

export function copyForeign(why: string): BlockError {
  return new BlockError('BLOCK_COPY_FOREIGN', `a disk is not copied over what is there: ${why}`, {
    hint: 'Move the image and its journal on the host of the shadow away, if nobody needs them. Nothing was written.',
  });
}
