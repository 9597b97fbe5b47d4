import { randomBytes, randomUUID } from 'node:crypto';
import { rmSync } from 'node:fs';
import { type FileHandle, open, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { constants, zstdCompress, zstdDecompress } from 'node:zlib';
import { assert } from '../base/assert.ts';
import { messageOf } from '../base/errors.ts';
import { makeDirectory } from '../base/make-directory.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { tryLockExclusive } from '../linux/file.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { PageHashes } from './page-hashes.ts';
import { SnapshotError } from './snapshot-error.ts';
import {
  type BlobName,
  CHUNK_BYTES,
  CHUNK_PAGES,
  type ChunkRecord,
  encodeIndex,
  encodePrologue,
  encodeTrailer,
  hashOf,
  locationOf,
  PROLOGUE_BYTES,
  type SnapshotFacts,
  ZSTD_LEVEL,
} from './snapshot-format.ts';
import { SnapshotCipher } from './snapshot-key.ts';

/** A name that no snapshot has: what is left of it after a crash is cleared away by the store. */
export const UNFINISHED = '.unfinished';
/** Chunks that are compressed at the same time, in Node's own threads. */
const UNDER_WAY_MAX = 4;
/** Chunks kept in plain, to compare pages with. */
const REMEMBERED_MAX = 16;
const compress = promisify(zstdCompress);
const decompress = promisify(zstdDecompress);
const ZERO_PAGE = Buffer.alloc(PAGE_BYTES);
const ZSTD = { params: { [constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL } };

interface ChunkWriterOptions {
  readonly memoryBytes: number;
  readonly key: Uint8Array | undefined;
}

/**
 * Writes one snapshot, page by page, in any order; of a page that is written twice the later content counts. The file
 * has its name only when it is whole and on disk. Takes the memory of a few chunks, and 4 bytes for each page of the VM.
 */
export class ChunkWriter implements AsyncDisposable {
  readonly #path: string;
  readonly #unfinished: string;
  readonly #handle: FileHandle;
  readonly #cipher: SnapshotCipher | undefined;
  readonly #fileId = randomBytes(16);
  readonly #places: Uint32Array;
  readonly #chunks: ChunkRecord[] = [];
  readonly #hashes = new PageHashes();
  readonly #remembered = new Map<number, Buffer>();
  readonly #underWay = new Map<number, Promise<void>>();
  readonly #blobs = new Map<BlobName, { first: number; bytes: number }>();
  #endByte = PROLOGUE_BYTES;
  #open: { number: number; content: Buffer; pages: number } | undefined;
  #failure: { readonly cause: unknown } | undefined;

  /** @throws SnapshotError SNAPSHOT_STORE_REFUSED */
  static async create(path: string, { memoryBytes, key }: ChunkWriterOptions): Promise<ChunkWriter> {
    const unfinished = `${path}-${randomUUID()}${UNFINISHED}`;
    const handle = await begin(unfinished);
    // Whoever clears up tells by it that this one is being written.
    tryLockExclusive(handle.fd);
    return new ChunkWriter({ path, unfinished, handle }, { memoryBytes, key });
  }

  private constructor(
    { path, unfinished, handle }: { path: string; unfinished: string; handle: FileHandle },
    { memoryBytes, key }: ChunkWriterOptions,
  ) {
    this.#path = path;
    this.#unfinished = unfinished;
    this.#handle = handle;
    this.#cipher = key === undefined ? undefined : new SnapshotCipher(key, { fileId: this.#fileId });
    this.#places = new Uint32Array(memoryBytes / PAGE_BYTES);
  }

  /** Takes a copy of the pages. @throws SnapshotError SNAPSHOT_NO_ROOM */
  async writePages(firstPage: number, pages: Uint8Array): Promise<void> {
    assert(firstPage + pages.length / PAGE_BYTES <= this.#places.length, 'the pages are of this memory');
    for (let at = 0; at < pages.length; at += PAGE_BYTES)
      await this.#writePage(firstPage + at / PAGE_BYTES, pages.subarray(at, at + PAGE_BYTES));
  }

  async writeBlob(name: BlobName, bytes: Uint8Array): Promise<void> {
    await this.#closeChunk();
    this.#blobs.set(name, { first: this.#chunks.length, bytes: bytes.length });
    for (let at = 0; at < bytes.length; at += CHUNK_BYTES) {
      const number = this.#nextChunk();
      await this.#store(number, Buffer.from(bytes.subarray(at, at + CHUNK_BYTES)));
    }
  }

  /** The snapshot is on disk, under its name, when this resolves. Returns its size. */
  async finish(facts: SnapshotFacts): Promise<number> {
    assert(facts.memoryBytes === this.#places.length * PAGE_BYTES, 'it is told of this memory');
    await this.#closeChunk();
    await Promise.all(this.#underWay.values());
    this.#throwFailure();
    const blobOf = (name: BlobName) => this.#blobs.get(name) ?? { first: 0, bytes: 0 };
    const blobs = {
      deviceState: blobOf('deviceState'),
      firmware: blobOf('firmware'),
      spec: blobOf('spec'),
    };
    const isEncrypted = this.#cipher !== undefined;
    const prologue = encodePrologue(facts, { fileId: this.#fileId, isEncrypted });
    const prologueHash = prologue.hash;
    const index = encodeIndex({ chunks: this.#chunks, places: this.#places, blobs });
    const small = await compress(index, ZSTD);
    const stored =
      this.#cipher === undefined ? small : this.#cipher.seal(small, { kind: 'index', prologueHash });
    const place = { offset: this.#endByte, plainBytes: index.length };
    const trailer = encodeTrailer(place, { stored, prologueHash });
    await this.#write(Buffer.concat([stored, trailer]), this.#endByte);
    await this.#write(prologue.bytes, 0);
    // Where room is found only now that it is needed, it may be missing as late as here.
    await this.#orNoRoom(() => this.#handle.sync());
    await this.#handle.close();
    await rename(this.#unfinished, this.#path);
    await syncDirectory(dirname(this.#path));
    return this.#endByte + stored.length + trailer.length;
  }

  /** What was not finished is gone afterwards. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#underWay.values());
    await this.#handle.close();
    rmSync(this.#unfinished, { force: true });
  }

  async #writePage(page: number, content: Uint8Array): Promise<void> {
    if (ZERO_PAGE.equals(content)) {
      this.#places[page] = 0;
      return;
    }
    const hash = hashOf(content);
    const candidate = this.#hashes.candidate(hash);
    if (candidate !== undefined && (await this.#pageAt(candidate))?.equals(content)) {
      this.#places[page] = candidate;
      return;
    }
    this.#open ??= { number: this.#nextChunk(), content: Buffer.allocUnsafe(CHUNK_BYTES), pages: 0 };
    const { number, content: chunk, pages } = this.#open;
    chunk.set(content, pages * PAGE_BYTES);
    const place = 1 + number * CHUNK_PAGES + pages;
    assert(place <= 0xffff_ffff, 'places are numbers of 32 bits');
    this.#places[page] = place;
    this.#hashes.note(hash, place);
    this.#open.pages += 1;
    if (this.#open.pages === CHUNK_PAGES) await this.#closeChunk();
  }

  /** What was written there; read back when it is not remembered. */
  async #pageAt(place: number): Promise<Buffer | undefined> {
    const { chunk, slot } = locationOf(place);
    const isOpen = this.#open?.number === chunk;
    const plain = isOpen
      ? this.#open?.content
      : (this.#remembered.get(chunk) ?? (await this.#readBack(chunk)));
    return plain?.subarray(slot * PAGE_BYTES, (slot + 1) * PAGE_BYTES);
  }

  async #readBack(number: number): Promise<Buffer | undefined> {
    await this.#underWay.get(number);
    const record = this.#chunks[number];
    if (record === undefined || this.#failure !== undefined) return undefined;
    const stored = Buffer.allocUnsafe(record.storedBytes);
    await this.#handle.read(stored, 0, stored.length, record.offset);
    const opened = this.#cipher === undefined ? stored : this.#cipher.open(stored, { kind: 'chunk', number });
    assert(opened !== undefined, 'what was sealed here opens here');
    const plain = opened.length === record.plainBytes ? opened : await decompress(opened);
    this.#remember(number, plain);
    return plain;
  }

  #remember(number: number, plain: Buffer): void {
    this.#remembered.set(number, plain);
    const [oldest] = this.#remembered.keys();
    if (this.#remembered.size > REMEMBERED_MAX && oldest !== undefined) this.#remembered.delete(oldest);
  }

  #nextChunk(): number {
    return this.#chunks.push({ offset: 0, storedBytes: 0, plainBytes: 0, hash: 0n }) - 1;
  }

  async #closeChunk(): Promise<void> {
    const open = this.#open;
    this.#open = undefined;
    if (open === undefined) return;
    await this.#store(open.number, open.content.subarray(0, open.pages * PAGE_BYTES));
  }

  /** Begins to compress and write it, once few enough are under way. */
  async #store(number: number, plain: Buffer): Promise<void> {
    this.#remember(number, plain);
    while (this.#underWay.size >= UNDER_WAY_MAX) await Promise.race(this.#underWay.values());
    this.#throwFailure();
    const storing = this.#compressAndWrite(number, plain)
      .catch((cause: unknown) => {
        this.#failure ??= { cause };
      })
      .finally(() => this.#underWay.delete(number));
    this.#underWay.set(number, storing);
  }

  async #compressAndWrite(number: number, plain: Buffer): Promise<void> {
    const small = await compress(plain, ZSTD);
    const best = small.length < plain.length ? small : plain;
    const stored = this.#cipher === undefined ? best : this.#cipher.seal(best, { kind: 'chunk', number });
    const offset = this.#endByte;
    this.#endByte += stored.length;
    this.#chunks[number] = {
      offset,
      storedBytes: stored.length,
      plainBytes: plain.length,
      hash: hashOf(stored),
    };
    await this.#write(stored, offset);
  }

  async #write(bytes: Buffer, at: number): Promise<void> {
    await this.#orNoRoom(async () => {
      for (let done = 0; done < bytes.length; ) {
        const { bytesWritten } = await this.#handle.write(bytes, done, bytes.length - done, at + done);
        done += bytesWritten;
      }
    });
  }

  async #orNoRoom(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (cause) {
      if (errnoNameOf(cause) !== 'ENOSPC') throw cause;
      const directory = dirname(this.#path);
      throw new SnapshotError('SNAPSHOT_NO_ROOM', `no room for a snapshot in ${directory}: it is full`, {
        hint: 'Make room there, or remove old snapshots: understudy snapshot prune',
        facts: { directory },
        cause,
      });
    }
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure.cause;
  }
}

/** @throws SnapshotError SNAPSHOT_STORE_REFUSED */
async function begin(path: string): Promise<FileHandle> {
  const directory = dirname(path);
  try {
    makeDirectory(directory, { mode: 0o700 });
    return await open(path, 'wx+', 0o600);
  } catch (cause) {
    throw new SnapshotError(
      'SNAPSHOT_STORE_REFUSED',
      `a snapshot cannot be written to ${directory}: ${messageOf(cause)}`,
      {
        hint: 'Name another directory with --store, or in the specification, and see that there is room.',
        facts: { directory },
        cause,
      },
    );
  }
}

async function syncDirectory(path: string): Promise<void> {
  const handle = await open(path, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
