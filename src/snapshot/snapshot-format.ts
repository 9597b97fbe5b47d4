import { createHash } from 'node:crypto';
import { xxh64 } from '@node-rs/xxhash';
import { z } from 'zod';
import { assert } from '../base/assert.ts';
import { PAGE_BYTES } from '../base/units.ts';

/**
 * A snapshot is one file, little endian:
 *
 *   prologue  4096 bytes, written last: magic "USSNAP\n\0", u32 version, u32 flags (1: encrypted), 16 bytes of random
 *             file id, u32 header bytes, the header as JSON, zeros, and the SHA-256 of all this, which the index is bound to
 *   chunks    up to 32 pages each, or a piece of a blob: compressed with zstd where that makes them smaller; then sealed
 *   index     where the chunks lie, with an xxh64 of each, and which page is found where; compressed, then sealed
 *   trailer   offset, stored and plain bytes of the index (u64 each), a SHA-256 over the hash of the prologue, these
 *             three and the index as it is stored, and the magic again
 *
 * A page that stands in no run is all zeros. Several pages may be found in the same place.
 */
export const MAGIC = Buffer.from('USSNAP\n\0', 'latin1');
const VERSION = 1;
const FLAG_ENCRYPTED = 1;
const FIXED_BYTES = MAGIC.length + 4 + 4 + 16 + 4;
export const PROLOGUE_BYTES = 4096;
export const HASH_BYTES = 32;
export const TRAILER_BYTES = 24 + HASH_BYTES + MAGIC.length;
const HEADER_BYTES_MAX = PROLOGUE_BYTES - FIXED_BYTES - HASH_BYTES;

/** 128 KiB: a fault waits for a whole chunk, less than 0.2 ms; smaller ones compress worse. */
export const CHUNK_PAGES = 32;
export const CHUNK_BYTES = CHUNK_PAGES * PAGE_BYTES;
export const ZSTD_LEVEL = 3;

const BLOBS = ['deviceState', 'firmware', 'spec'] as const;
export type BlobName = (typeof BLOBS)[number];
const BLOB_BYTES_MAX = 96 * 1024 * 1024;
const CHUNK_RECORD_BYTES = 24;
const RUN_RECORD_BYTES = 12;

const factsSchema = z.object({
  vm: z.string().min(1).max(255),
  savedAtMs: z.number(),
  epoch: z.int().nonnegative(),
  /** Of the QEMU that acted. */
  token: z.int().nonnegative(),
  memoryBytes: z.int().positive().multipleOf(PAGE_BYTES),
  /** State loads only into a machine that was built in the same way by the same QEMU. */
  qemuVersion: z.string(),
  accel: z.enum(['kvm', 'tcg']),
  /** Over all of the specification that the machine is built from. */
  machineHash: z.string().regex(/^[0-9a-f]{64}$/),
  /** Why it was taken; left out: somebody asked for it. */
  reason: z.enum(['manual', 'schedule', 'shutdown']).optional(),
});

/** What can be told of a snapshot without its key. */
export type SnapshotFacts = z.output<typeof factsSchema>;

export interface Prologue {
  readonly facts: SnapshotFacts;
  readonly isEncrypted: boolean;
  readonly fileId: Uint8Array;
  /** SHA-256 of the prologue. */
  readonly hash: Buffer;
}

export interface ChunkRecord {
  readonly offset: number;
  readonly storedBytes: number;
  readonly plainBytes: number;
  /** Of the bytes as they are stored. */
  readonly hash: bigint;
}

export interface SnapshotIndex {
  readonly chunks: readonly ChunkRecord[];
  /** By page: 1 + number of chunk × CHUNK_PAGES + place in the chunk, or 0 for a page of zeros. */
  readonly places: Uint32Array;
  /** The chunks of each blob, from `first` on. */
  readonly blobs: Readonly<Record<BlobName, { readonly first: number; readonly bytes: number }>>;
}

export function encodePrologue(
  facts: SnapshotFacts,
  { fileId, isEncrypted }: { fileId: Uint8Array; isEncrypted: boolean },
): { readonly bytes: Buffer; readonly hash: Buffer } {
  const header = Buffer.from(JSON.stringify(facts));
  assert(header.length <= HEADER_BYTES_MAX, 'what is told of a snapshot is short');
  const bytes = Buffer.alloc(PROLOGUE_BYTES);
  MAGIC.copy(bytes, 0);
  bytes.writeUInt32LE(VERSION, 8);
  bytes.writeUInt32LE(isEncrypted ? FLAG_ENCRYPTED : 0, 12);
  bytes.set(fileId, 16);
  bytes.writeUInt32LE(header.length, 32);
  header.copy(bytes, FIXED_BYTES);
  const hash = prologueHash(bytes);
  hash.copy(bytes, PROLOGUE_BYTES - HASH_BYTES);
  return { bytes, hash };
}

/**
 * What the first 4096 bytes of a file say: `foreign` where they are a snapshot's of another version, and undefined where
 * they are none's, or do not fit their checksum.
 */
export function decodePrologue(bytes: Buffer): Prologue | { readonly foreign: number } | undefined {
  if (!bytes.subarray(0, MAGIC.length).equals(MAGIC)) return undefined;
  const version = bytes.readUInt32LE(8);
  const hash = prologueHash(bytes);
  if (!hash.equals(bytes.subarray(PROLOGUE_BYTES - HASH_BYTES))) return undefined;
  if (version !== VERSION) return { foreign: version };
  const headerBytes = bytes.readUInt32LE(32);
  if (headerBytes > HEADER_BYTES_MAX) return undefined;
  const header = bytes.subarray(FIXED_BYTES, FIXED_BYTES + headerBytes);
  const facts = factsSchema.safeParse(parsed(header.toString()));
  if (!facts.success) return undefined;
  const isEncrypted = (bytes.readUInt32LE(12) & FLAG_ENCRYPTED) !== 0;
  return { facts: facts.data, isEncrypted, fileId: Buffer.from(bytes.subarray(16, 32)), hash };
}

function prologueHash(bytes: Buffer): Buffer {
  return createHash('sha256')
    .update(bytes.subarray(0, PROLOGUE_BYTES - HASH_BYTES))
    .digest();
}

export function encodeTrailer(
  place: { readonly offset: number; readonly plainBytes: number },
  { stored, prologueHash }: { stored: Uint8Array; prologueHash: Uint8Array },
): Buffer {
  const numbers = Buffer.alloc(24);
  numbers.writeBigUInt64LE(BigInt(place.offset), 0);
  numbers.writeBigUInt64LE(BigInt(stored.length), 8);
  numbers.writeBigUInt64LE(BigInt(place.plainBytes), 16);
  return Buffer.concat([numbers, trailerHash(numbers, { stored, prologueHash }), MAGIC]);
}

export function trailerHash(
  numbers: Uint8Array,
  { stored, prologueHash }: { stored: Uint8Array; prologueHash: Uint8Array },
): Buffer {
  return createHash('sha256').update(prologueHash).update(numbers).update(stored).digest();
}

export function encodeIndex({ chunks, places, blobs }: SnapshotIndex): Buffer {
  const runs = [...runsOf(places)];
  const blobBytes = BLOBS.length * 8;
  const bytes = Buffer.alloc(
    8 + blobBytes + chunks.length * CHUNK_RECORD_BYTES + runs.length * RUN_RECORD_BYTES,
  );
  bytes.writeUInt32LE(chunks.length, 0);
  bytes.writeUInt32LE(runs.length, 4);
  let at = 8;
  for (const name of BLOBS) {
    bytes.writeUInt32LE(blobs[name].first, at);
    bytes.writeUInt32LE(blobs[name].bytes, at + 4);
    at += 8;
  }
  for (const { offset, storedBytes, plainBytes, hash } of chunks) {
    bytes.writeBigUInt64LE(BigInt(offset), at);
    bytes.writeUInt32LE(storedBytes, at + 8);
    bytes.writeUInt32LE(plainBytes, at + 12);
    bytes.writeBigUInt64LE(hash, at + 16);
    at += CHUNK_RECORD_BYTES;
  }
  for (const { firstPage, pageCount, place } of runs) {
    bytes.writeUInt32LE(firstPage, at);
    bytes.writeUInt32LE(pageCount, at + 4);
    bytes.writeUInt32LE(place, at + 8);
    at += RUN_RECORD_BYTES;
  }
  return bytes;
}

interface IndexBounds {
  readonly pageCount: number;
  /** Where the chunks end. */
  readonly endByte: number;
}

/** Undefined when it says what cannot be: nothing in it is believed because its checksum fits. */
export function decodeIndex(bytes: Buffer, bounds: IndexBounds): SnapshotIndex | undefined {
  try {
    return decodedIndex(bytes, bounds);
  } catch (thrown) {
    // A number that was not there.
    if (thrown instanceof RangeError) return undefined;
    throw thrown;
  }
}

function decodedIndex(bytes: Buffer, { pageCount, endByte }: IndexBounds): SnapshotIndex | undefined {
  const chunkCount = bytes.readUInt32LE(0);
  const runCount = bytes.readUInt32LE(4);
  const blobsEnd = 8 + BLOBS.length * 8;
  const runsAt = blobsEnd + chunkCount * CHUNK_RECORD_BYTES;
  if (bytes.length !== runsAt + runCount * RUN_RECORD_BYTES) return undefined;
  const chunks: ChunkRecord[] = [];
  for (let at = blobsEnd; at < runsAt; at += CHUNK_RECORD_BYTES) {
    const chunk = {
      offset: Number(bytes.readBigUInt64LE(at)),
      storedBytes: bytes.readUInt32LE(at + 8),
      plainBytes: bytes.readUInt32LE(at + 12),
      hash: bytes.readBigUInt64LE(at + 16),
    };
    const lies = chunk.offset >= PROLOGUE_BYTES && chunk.offset + chunk.storedBytes <= endByte;
    if (!lies || chunk.plainBytes === 0 || chunk.plainBytes > CHUNK_BYTES) return undefined;
    chunks.push(chunk);
  }
  const places = new Uint32Array(pageCount);
  for (let at = runsAt; at < bytes.length; at += RUN_RECORD_BYTES) {
    const run = {
      firstPage: bytes.readUInt32LE(at),
      pageCount: bytes.readUInt32LE(at + 4),
      place: bytes.readUInt32LE(at + 8),
    };
    if (!isSound(run, { chunks, pageCount })) return undefined;
    for (let index = 0; index < run.pageCount; index += 1) places[run.firstPage + index] = run.place + index;
  }
  const blobs = decodedBlobs(bytes, chunks);
  return blobs === undefined ? undefined : { chunks, places, blobs };
}

function isSound(
  { firstPage, pageCount, place }: PlacedRun,
  memory: { chunks: readonly ChunkRecord[]; pageCount: number },
): boolean {
  if (pageCount === 0 || firstPage + pageCount > memory.pageCount || place === 0) return false;
  const { chunk, slot } = locationOf(place);
  return (slot + pageCount) * PAGE_BYTES <= (memory.chunks[chunk]?.plainBytes ?? 0);
}

function decodedBlobs(bytes: Buffer, chunks: readonly ChunkRecord[]): SnapshotIndex['blobs'] | undefined {
  const entries = BLOBS.map((name, index) => {
    const at = 8 + index * 8;
    return [name, { first: bytes.readUInt32LE(at), bytes: bytes.readUInt32LE(at + 4) }] as const;
  });
  for (const [, { first, bytes: blobBytes }] of entries) {
    const parts = chunks.slice(first, first + chunksOfBlob(blobBytes));
    const found = parts.reduce((sum, { plainBytes }) => sum + plainBytes, 0);
    if (blobBytes > BLOB_BYTES_MAX || found !== blobBytes) return undefined;
  }
  return Object.fromEntries(entries) as SnapshotIndex['blobs'];
}

export function chunksOfBlob(bytes: number): number {
  return Math.ceil(bytes / CHUNK_BYTES);
}

/** Where a place that is not 0 is. */
export function locationOf(place: number): { readonly chunk: number; readonly slot: number } {
  return { chunk: Math.floor((place - 1) / CHUNK_PAGES), slot: (place - 1) % CHUNK_PAGES };
}

interface PlacedRun {
  readonly firstPage: number;
  readonly pageCount: number;
  readonly place: number;
}

/** Consecutive pages in consecutive places of one chunk. */
function* runsOf(places: Uint32Array): Generator<PlacedRun> {
  for (let page = 0; page < places.length; ) {
    const place = places[page] ?? 0;
    if (place === 0) {
      page += 1;
      continue;
    }
    const most = CHUNK_PAGES - locationOf(place).slot;
    let pageCount = 1;
    while (pageCount < most && places[page + pageCount] === place + pageCount) pageCount += 1;
    yield { firstPage: page, pageCount, place };
    page += pageCount;
  }
}

/** What is noted of stored bytes, to notice that they have changed. */
export function hashOf(stored: Uint8Array): bigint {
  return xxh64(stored);
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
