import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { zstdDecompressSync } from 'node:zlib';
import { messageOf } from '../base/errors.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { damaged, SnapshotError } from './snapshot-error.ts';
import {
  type BlobName,
  type ChunkRecord,
  chunksOfBlob,
  decodeIndex,
  decodePrologue,
  HASH_BYTES,
  hashOf,
  MAGIC,
  PROLOGUE_BYTES,
  type Prologue,
  type SnapshotFacts,
  type SnapshotIndex,
  TRAILER_BYTES,
  trailerHash,
} from './snapshot-format.ts';
import { SnapshotCipher } from './snapshot-key.ts';

/** More than any index of ours: 4 bytes a page are 4 GiB of memory each MiB. */
const INDEX_BYTES_MAX = 2 ** 30;
/** Chunks between two turns of other work while all are read. */
const VERIFY_TURN_CHUNKS = 8;

interface OpenOptions {
  /** Needed for one that is encrypted. */
  readonly key?: Uint8Array | undefined;
}

export interface SnapshotOutline {
  readonly facts: SnapshotFacts;
  readonly isEncrypted: boolean;
  readonly sizeBytes: number;
}

/** A snapshot that is there. Nothing in the file is trusted: every byte that is used was compared with a checksum. */
export class SnapshotFile implements Disposable {
  readonly path: string;
  readonly facts: SnapshotFacts;
  readonly isEncrypted: boolean;
  readonly sizeBytes: number;
  readonly index: SnapshotIndex;
  /** Tells it from any other one. */
  readonly snapshotHash: bigint;
  readonly #fd: number;
  readonly #cipher: SnapshotCipher | undefined;

  /**
   * Reads all but the chunks. @throws SnapshotError SNAPSHOT_MISSING, SNAPSHOT_DAMAGED, SNAPSHOT_FOREIGN,
   * SNAPSHOT_KEY_WRONG
   */
  static open(path: string, { key }: OpenOptions = {}): SnapshotFile {
    const fd = openForReading(path);
    try {
      return new SnapshotFile(fd, { path, key });
    } catch (cause) {
      closeSync(fd);
      throw cause;
    }
  }

  /** What can be told without the key, of a file that has a beginning and an end. @throws as `open` */
  static outline(path: string): SnapshotOutline {
    const fd = openForReading(path);
    try {
      const prologue = readPrologue(fd, path);
      readStoredIndex(fd, { path, prologue });
      const { facts, isEncrypted } = prologue;
      return { facts, isEncrypted, sizeBytes: fstatSync(fd).size };
    } finally {
      closeSync(fd);
    }
  }

  private constructor(fd: number, { path, key }: OpenOptions & { path: string }) {
    this.path = path;
    this.#fd = fd;
    const prologue = readPrologue(fd, path);
    this.facts = prologue.facts;
    this.isEncrypted = prologue.isEncrypted;
    this.sizeBytes = fstatSync(fd).size;
    if (prologue.isEncrypted && key === undefined)
      throw keyWrong(path, 'it is encrypted, and no key was given');
    this.#cipher = prologue.isEncrypted && key !== undefined ? new SnapshotCipher(key, prologue) : undefined;
    this.snapshotHash = prologue.hash.readBigUInt64LE();
    this.index = this.#readIndex(prologue);
  }

  get pageCount(): number {
    return this.facts.memoryBytes / PAGE_BYTES;
  }

  /** The pages of a chunk, or the bytes of a piece of a blob. @throws SnapshotError SNAPSHOT_DAMAGED */
  chunk(number: number): Buffer {
    const record = this.index.chunks[number];
    if (record === undefined) throw damaged(this.path, `there is no chunk ${number}`);
    const stored = readExactly(this.#fd, { at: record.offset, bytes: record.storedBytes, path: this.path });
    const plain = this.#plainOf(stored, { record, number });
    if (plain?.length !== record.plainBytes)
      throw damaged(this.path, `chunk ${number} does not fit its checksum`);
    return plain;
  }

  blob(name: BlobName): Buffer {
    const { first, bytes } = this.index.blobs[name];
    const parts = Array.from({ length: chunksOfBlob(bytes) }, (_, index) => this.chunk(first + index));
    return Buffer.concat(parts, bytes);
  }

  /** Reads every byte. @throws SnapshotError SNAPSHOT_DAMAGED; the signal's reason */
  async verify({
    signal,
    onProgress = () => {},
  }: {
    signal?: AbortSignal | undefined;
    onProgress?: (share: number) => void;
  } = {}): Promise<void> {
    const { length } = this.index.chunks;
    for (let number = 0; number < length; number += 1) {
      this.chunk(number);
      if (number % VERIFY_TURN_CHUNKS > 0) continue;
      await new Promise<void>((resolve) => setImmediate(resolve));
      signal?.throwIfAborted();
      onProgress(number / length);
    }
    onProgress(1);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #plainOf(stored: Buffer, { record, number }: { record: ChunkRecord; number: number }): Buffer | undefined {
    if (hashOf(stored) !== record.hash) return undefined;
    const opened = this.#cipher === undefined ? stored : this.#cipher.open(stored, { kind: 'chunk', number });
    if (opened === undefined || opened.length === record.plainBytes) return opened;
    return decompressed(opened, record.plainBytes);
  }

  #readIndex(prologue: Prologue): SnapshotIndex {
    const { path } = this;
    const { stored, offset, plainBytes } = readStoredIndex(this.#fd, { path, prologue });
    const place = { kind: 'index', prologueHash: prologue.hash } as const;
    const opened = this.#cipher === undefined ? stored : this.#cipher.open(stored, place);
    if (opened === undefined) throw keyWrong(path, 'the key is another one');
    const plain = decompressed(opened, plainBytes);
    const index =
      plain?.length === plainBytes
        ? decodeIndex(plain, { pageCount: this.pageCount, endByte: offset })
        : undefined;
    if (index === undefined) throw damaged(path, 'its index makes no sense');
    return index;
  }
}

/** As it lies in the file, which does not need the key. */
function readStoredIndex(fd: number, { path, prologue }: { path: string; prologue: Prologue }) {
  const trailerAt = fstatSync(fd).size - TRAILER_BYTES;
  if (trailerAt < 0) throw damaged(path, 'it is cut short');
  const trailer = readExactly(fd, { at: trailerAt, bytes: TRAILER_BYTES, path });
  if (!trailer.subarray(24 + HASH_BYTES).equals(MAGIC)) throw damaged(path, 'it is cut short');
  const offset = Number(trailer.readBigUInt64LE(0));
  const storedBytes = Number(trailer.readBigUInt64LE(8));
  const plainBytes = Number(trailer.readBigUInt64LE(16));
  const isPlaced = offset + storedBytes === trailerAt && storedBytes <= INDEX_BYTES_MAX;
  if (!isPlaced || plainBytes > INDEX_BYTES_MAX) throw damaged(path, 'its end makes no sense');
  const stored = readExactly(fd, { at: offset, bytes: storedBytes, path });
  const expected = trailerHash(trailer.subarray(0, 24), { stored, prologueHash: prologue.hash });
  if (!expected.equals(trailer.subarray(24, 24 + HASH_BYTES)))
    throw damaged(path, 'its index does not fit its checksum');
  return { stored, offset, plainBytes };
}

function openForReading(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (cause) {
    if (errnoNameOf(cause) !== 'ENOENT') throw damaged(path, messageOf(cause), cause);
    throw new SnapshotError('SNAPSHOT_MISSING', `there is no snapshot ${path}`, {
      hint: '`understudy snapshot list` shows which there are.',
      facts: { path },
      cause,
    });
  }
}

function readPrologue(fd: number, path: string): Prologue {
  const prologue = decodePrologue(readExactly(fd, { at: 0, bytes: PROLOGUE_BYTES, path }));
  if (prologue === undefined) throw damaged(path, 'it does not begin as a snapshot does');
  if (!('foreign' in prologue)) return prologue;
  const version = prologue.foreign;
  throw new SnapshotError('SNAPSHOT_FOREIGN', `the snapshot ${path} is of format ${version}`, {
    hint: 'Another version of Understudy made it, and can read it.',
    facts: { path, version },
  });
}

function readExactly(fd: number, { at, bytes, path }: { at: number; bytes: number; path: string }): Buffer {
  const buffer = Buffer.allocUnsafe(bytes);
  try {
    for (let done = 0; done < bytes; ) {
      const count = readSync(fd, buffer, done, bytes - done, at + done);
      if (count === 0) throw new Error('it is cut short');
      done += count;
    }
  } catch (cause) {
    throw damaged(path, messageOf(cause), cause);
  }
  return buffer;
}

function decompressed(bytes: Uint8Array, plainBytes: number): Buffer | undefined {
  try {
    return zstdDecompressSync(bytes, { maxOutputLength: Math.max(1, plainBytes) });
  } catch {
    return undefined;
  }
}

function keyWrong(path: string, why: string): SnapshotError {
  return new SnapshotError('SNAPSHOT_KEY_WRONG', `the snapshot ${path} cannot be opened: ${why}`, {
    hint: 'Name the key file that it was made with: --key-file FILE',
    facts: { path },
  });
}
