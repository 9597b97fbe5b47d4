import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { hashOf } from './snapshot-format.ts';

/**
 * Beside a snapshot: the chunks that the guest asked for when it was last gone on from, in that order. A hint only: what
 * is no such file, or of another snapshot, is passed over.
 *
 * Layout, little endian: magic, the hash of the snapshot that it belongs to (u64), an xxh64 over the rest, chunk numbers.
 */
const MAGIC = Buffer.from('USWSET1\n', 'latin1');
const NUMBERS_AT = MAGIC.length + 16;
const SUFFIX = '.working-set';

export function workingSetPath(snapshot: string): string {
  return `${snapshot}${SUFFIX}`;
}

interface Belonging {
  /** Tells snapshots apart. */
  readonly snapshotHash: bigint;
}

/** Never fails for what it finds. Numbers of chunks that are not there are left out. */
export function readWorkingSet(
  snapshot: string,
  { snapshotHash, chunkCount }: Belonging & { chunkCount: number },
): number[] {
  let bytes: Buffer;
  try {
    bytes = readFileSync(workingSetPath(snapshot));
  } catch {
    return [];
  }
  if (bytes.length < NUMBERS_AT || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) return [];
  const numbers = bytes.subarray(NUMBERS_AT);
  if (bytes.readBigUInt64LE(8) !== snapshotHash || bytes.readBigUInt64LE(16) !== hashOf(numbers)) return [];
  const chunks = Array.from({ length: Math.floor(numbers.length / 4) }, (_, index) =>
    numbers.readUInt32LE(index * 4),
  );
  return chunks.filter((chunk) => chunk < chunkCount);
}

/** Renamed into place. */
export function writeWorkingSet(
  snapshot: string,
  { snapshotHash, chunks }: Belonging & { chunks: readonly number[] },
): void {
  const bytes = Buffer.alloc(NUMBERS_AT + chunks.length * 4);
  MAGIC.copy(bytes, 0);
  bytes.writeBigUInt64LE(snapshotHash, 8);
  for (const [index, chunk] of chunks.entries()) bytes.writeUInt32LE(chunk, NUMBERS_AT + index * 4);
  bytes.writeBigUInt64LE(hashOf(bytes.subarray(NUMBERS_AT)), 16);
  const path = workingSetPath(snapshot);
  try {
    writeFileSync(`${path}.new`, bytes, { mode: 0o600 });
    renameSync(`${path}.new`, path);
  } finally {
    rmSync(`${path}.new`, { force: true });
  }
}
