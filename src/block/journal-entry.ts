import { randomBytes } from 'node:crypto';
import { Xxh64, xxh64 } from '@node-rs/xxhash';
import { type EpochId, epochId } from '../epoch/epoch-id.ts';
import type { DiskWrite } from './disk-write.ts';

/** Where a disk is: which epoch it holds, and by which token that was written. */
export interface DiskPosition {
  readonly epoch: EpochId;
  readonly token: number;
}

export interface JournalEntry extends DiskPosition {
  readonly writes: readonly DiskWrite[];
}

/** Position in the journal's own counting, which never repeats. */
export interface JournalHead extends DiskPosition {
  readonly sequence: number;
}

/** What a disk of ours writes at once, or not at all. */
export const SECTOR_BYTES = 512;
export const ENTRY_HEADER_BYTES = 64;
const ENTRY_MAGIC = 'USDJENT1';
const HEAD_MAGIC = 'USDJHED2';
const IDENTITY_BYTES = 16;
const PARTIAL = 1n;
const ROW_BYTES = 24;
const DATA = 1;
const ZERO = 2;
const HOLE = 3;

/** An entry as it lies in the journal, padded to whole sectors. */
export function encodeEntry(entry: JournalEntry, sequence: number): Uint8Array[] {
  const { writes } = entry;
  const table = Buffer.alloc(writes.length * ROW_BYTES);
  const parts: Uint8Array[] = [table];
  for (const [index, write] of writes.entries()) {
    const lengthBytes = write.kind === 'data' ? write.bytes.length : write.lengthBytes;
    const row = index * ROW_BYTES;
    table.writeBigUInt64LE(BigInt(write.offset), row);
    table.writeBigUInt64LE(BigInt(lengthBytes), row + 8);
    table.writeUInt32LE(write.kind === 'data' ? DATA : write.mayPunch ? HOLE : ZERO, row + 16);
    if (write.kind === 'data') parts.push(write.bytes);
  }
  const sum = new Xxh64();
  let bodyBytes = 0;
  for (const part of parts) {
    sum.update(part);
    bodyBytes += part.length;
  }
  const header = Buffer.alloc(ENTRY_HEADER_BYTES);
  header.write(ENTRY_MAGIC, 0, 'latin1');
  putPosition(header, { ...entry, sequence });
  header.writeUInt32LE(writes.length, 32);
  header.writeBigUInt64LE(BigInt(bodyBytes), 40);
  header.writeBigUInt64LE(sum.digest(), 48);
  header.writeBigUInt64LE(xxh64(header.subarray(0, 56)), 56);
  const padding = Buffer.alloc(padded(ENTRY_HEADER_BYTES + bodyBytes) - ENTRY_HEADER_BYTES - bodyBytes);
  return [header, ...parts, padding];
}

export interface EntryHeader extends JournalHead {
  readonly count: number;
  readonly bodyBytes: number;
  readonly bodySum: bigint;
}

/** Undefined where no whole header lies. */
export function decodeEntryHeader(header: Buffer): EntryHeader | undefined {
  if (header.toString('latin1', 0, 8) !== ENTRY_MAGIC) return undefined;
  if (header.readBigUInt64LE(56) !== xxh64(header.subarray(0, 56))) return undefined;
  return {
    ...takePosition(header),
    count: header.readUInt32LE(32),
    bodyBytes: Number(header.readBigUInt64LE(40)),
    bodySum: header.readBigUInt64LE(48),
  };
}

/** Undefined where the body is not what the header says: it was not written whole. */
export function decodeBody(header: EntryHeader, body: Buffer): DiskWrite[] | undefined {
  if (xxh64(body) !== header.bodySum) return undefined;
  let at = header.count * ROW_BYTES;
  return Array.from({ length: header.count }, (_, index): DiskWrite => {
    const row = index * ROW_BYTES;
    const offset = Number(body.readBigUInt64LE(row));
    const lengthBytes = Number(body.readBigUInt64LE(row + 8));
    const kind = body.readUInt32LE(row + 16);
    if (kind !== DATA) return { kind: 'zero', offset, lengthBytes, mayPunch: kind === HOLE };
    at += lengthBytes;
    return { kind: 'data', offset, bytes: body.subarray(at - lengthBytes, at) };
  });
}

/** How far an image is. */
export interface ImageHead extends JournalHead {
  readonly diskBytes: number;
  /** Counts heads: more than one may be of the same entry. */
  readonly generation: number;
  /** Where the entries that follow begin. */
  readonly entriesAt: number;
  /** Which disk this is: the same for all its copies, on whatever host, and for no other disk. Hexadecimal digits. */
  readonly identity: string;
  /** A copy in the making: the image is that of no epoch before an entry follows. */
  readonly isPartial: boolean;
}

export function newIdentity(): string {
  return randomBytes(IDENTITY_BYTES).toString('hex');
}

/** One sector, so that it is written whole or not at all. */
export function encodeHead(head: ImageHead): Buffer {
  const sector = Buffer.alloc(SECTOR_BYTES);
  sector.write(HEAD_MAGIC, 0, 'latin1');
  putPosition(sector, head);
  sector.writeBigUInt64LE(BigInt(head.diskBytes), 32);
  sector.writeBigUInt64LE(BigInt(head.entriesAt), 40);
  sector.writeBigUInt64LE(BigInt(head.generation), 48);
  sector.write(head.identity, 56, 'hex');
  sector.writeBigUInt64LE(head.isPartial ? PARTIAL : 0n, 72);
  sector.writeBigUInt64LE(xxh64(sector.subarray(0, 80)), 80);
  return sector;
}

export function decodeHead(sector: Buffer): ImageHead | undefined {
  if (sector.toString('latin1', 0, 8) !== HEAD_MAGIC) return undefined;
  if (sector.readBigUInt64LE(80) !== xxh64(sector.subarray(0, 80))) return undefined;
  return {
    ...takePosition(sector),
    diskBytes: Number(sector.readBigUInt64LE(32)),
    entriesAt: Number(sector.readBigUInt64LE(40)),
    generation: Number(sector.readBigUInt64LE(48)),
    identity: sector.toString('hex', 56, 56 + IDENTITY_BYTES),
    isPartial: sector.readBigUInt64LE(72) === PARTIAL,
  };
}

export function padded(lengthBytes: number): number {
  return Math.ceil(lengthBytes / SECTOR_BYTES) * SECTOR_BYTES;
}

function putPosition(bytes: Buffer, { sequence, epoch, token }: JournalHead): void {
  bytes.writeBigUInt64LE(BigInt(sequence), 8);
  bytes.writeBigUInt64LE(BigInt(epoch), 16);
  bytes.writeBigUInt64LE(BigInt(token), 24);
}

function takePosition(bytes: Buffer): JournalHead {
  return {
    sequence: Number(bytes.readBigUInt64LE(8)),
    epoch: epochId(Number(bytes.readBigUInt64LE(16))),
    token: Number(bytes.readBigUInt64LE(24)),
  };
}
