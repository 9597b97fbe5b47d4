import { MIB } from '../base/units.ts';
import { HASH_BYTES, HASH_KEY_BYTES } from '../block/block-hashes.ts';
import { REGION_BYTES } from '../block/dirty-regions.ts';
import type { DiskWrite } from '../block/disk-write.ts';
import { type DiskRange, HINT_BYTES_MAX } from '../block/read-hints.ts';
import { garbled } from './peer-messages.ts';

/**
 * What is said about disks before the first epoch, little endian. Disks are numbered as in the hello.
 *
 *   disk-copy     u16 disk, u16 kind (1 data, 2 zeros), u32 0, u64 offset, u64 length, then the data
 *   disk-ask      u16 disk, u16 what (1 hashes, 2 synced), u32 regions, u64 first region, key: then the hashes of these
 *                 are sent back, or, when all that was copied before is on the disk there, nothing but the head
 *   disk-answer   the same head without the key, then the hashes
 *
 * and after it, while nothing else is to be said:
 *
 *   disk-hints    for each u16 disk, u16 0, u32 length, u64 offset: what the guest reads, or is about to
 */
const COPY_HEAD_BYTES = 24;
const ASK_HEAD_BYTES = 16;
const HINT_BYTES = 16;
const DATA = 1;
const ZERO = 2;
const HASHES = 1;
const SYNCED = 2;

/** Sent in one message. */
export const COPY_BYTES_MAX = MIB;
/** Asked for at once: 64 MiB of a disk. */
export const ASKED_REGIONS_MAX = 1024;

export interface DiskPiece {
  readonly disk: number;
  readonly write: DiskWrite;
}

export interface DiskQuestion {
  readonly disk: number;
  readonly what: 'hashes' | 'synced';
  readonly first: number;
  readonly count: number;
}

/** In one message. */
export const HINTS_MAX = 128;

export interface DiskHint extends DiskRange {
  readonly disk: number;
}

/** Which disks there are, by their numbers. */
export type DiskSizes = readonly { readonly sizeBytes: number }[];

export function encodePiece({ disk, write }: DiskPiece): Uint8Array[] {
  const head = Buffer.alloc(COPY_HEAD_BYTES);
  head.writeUInt16LE(disk, 0);
  head.writeUInt16LE(write.kind === 'data' ? DATA : ZERO, 2);
  head.writeBigUInt64LE(BigInt(write.offset), 8);
  head.writeBigUInt64LE(BigInt(write.kind === 'data' ? write.bytes.length : write.lengthBytes), 16);
  return write.kind === 'data' ? [head, write.bytes] : [head];
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodePiece(body: Uint8Array, disks: DiskSizes): DiskPiece {
  if (body.length < COPY_HEAD_BYTES) throw garbled('a part of a disk without a head');
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const disk = view.getUint16(0, true);
  const kind = view.getUint16(2, true);
  const offset = Number(view.getBigUint64(8, true));
  const lengthBytes = Number(view.getBigUint64(16, true));
  const bytes = body.subarray(COPY_HEAD_BYTES);
  const sizeBytes = disks[disk]?.sizeBytes ?? 0;
  if (lengthBytes === 0 || offset + lengthBytes > sizeBytes) throw garbled('a part of no disk');
  if (bytes.length !== (kind === DATA ? lengthBytes : 0)) throw garbled('a part of a disk of another length');
  if (kind === DATA) return { disk, write: { kind: 'data', offset, bytes } };
  if (kind !== ZERO) throw garbled('a part of a disk of no known kind');
  return { disk, write: { kind: 'zero', offset, lengthBytes, mayPunch: true } };
}

export function encodeHints(hints: readonly DiskHint[]): Uint8Array {
  const body = Buffer.alloc(hints.length * HINT_BYTES);
  for (const [index, { disk, offset, lengthBytes }] of hints.entries()) {
    body.writeUInt16LE(disk, index * HINT_BYTES);
    body.writeUInt32LE(lengthBytes, index * HINT_BYTES + 4);
    body.writeBigUInt64LE(BigInt(offset), index * HINT_BYTES + 8);
  }
  return body;
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeHints(body: Uint8Array, disks: DiskSizes): DiskHint[] {
  const count = body.length / HINT_BYTES;
  if (!Number.isInteger(count) || count === 0 || count > HINTS_MAX) throw garbled('hints that are cut short');
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  return Array.from({ length: count }, (_, index) => {
    const disk = view.getUint16(index * HINT_BYTES, true);
    const lengthBytes = view.getUint32(index * HINT_BYTES + 4, true);
    const offset = Number(view.getBigUint64(index * HINT_BYTES + 8, true));
    const sizeBytes = disks[disk]?.sizeBytes ?? 0;
    const isInside = lengthBytes > 0 && offset + lengthBytes <= sizeBytes;
    if (!isInside || lengthBytes > HINT_BYTES_MAX || view.getUint16(index * HINT_BYTES + 2, true) !== 0)
      throw garbled('a hint about no part of a disk');
    return { disk, offset, lengthBytes };
  });
}

export function encodeQuestion(question: DiskQuestion, key: Uint8Array): Uint8Array[] {
  return [questionHead(question), key];
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeQuestion(
  body: Uint8Array,
  disks: DiskSizes,
): { readonly question: DiskQuestion; readonly key: Uint8Array } {
  if (body.length !== ASK_HEAD_BYTES + HASH_KEY_BYTES) throw garbled('a question of another length');
  return { question: takeQuestion(body, disks), key: Uint8Array.from(body.subarray(ASK_HEAD_BYTES)) };
}

export function encodeAnswer(question: DiskQuestion, hashes: Uint8Array): Uint8Array[] {
  return [questionHead(question), hashes];
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeAnswer(
  body: Uint8Array,
  disks: DiskSizes,
): { readonly question: DiskQuestion; readonly hashes: Uint8Array } {
  if (body.length < ASK_HEAD_BYTES) throw garbled('an answer without a head');
  const question = takeQuestion(body, disks);
  const hashes = Uint8Array.from(body.subarray(ASK_HEAD_BYTES));
  const expected = question.what === 'hashes' ? question.count * HASH_BYTES : 0;
  if (hashes.length !== expected) throw garbled('another number of hashes than it was asked for');
  return { question, hashes };
}

function questionHead({ disk, what, first, count }: DiskQuestion): Buffer {
  const head = Buffer.alloc(ASK_HEAD_BYTES);
  head.writeUInt16LE(disk, 0);
  head.writeUInt16LE(what === 'hashes' ? HASHES : SYNCED, 2);
  head.writeUInt32LE(count, 4);
  head.writeBigUInt64LE(BigInt(first), 8);
  return head;
}

function takeQuestion(body: Uint8Array, disks: DiskSizes): DiskQuestion {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const disk = view.getUint16(0, true);
  const what = view.getUint16(2, true);
  const count = view.getUint32(4, true);
  const first = Number(view.getBigUint64(8, true));
  const sizeBytes = disks[disk]?.sizeBytes ?? 0;
  if (what === SYNCED) return { disk, what: 'synced', first, count };
  const isInside = (first + count - 1) * REGION_BYTES < sizeBytes;
  if (what !== HASHES || count === 0 || count > ASKED_REGIONS_MAX || !isInside)
    throw garbled('a question about no disk');
  return { disk, what: 'hashes', first, count };
}
