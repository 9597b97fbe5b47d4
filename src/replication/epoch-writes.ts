import { assert } from '../base/assert.ts';
import { MIB } from '../base/units.ts';
import { type DiskWrite, endOf } from '../block/disk-write.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import type { EpochParticipant } from '../epoch/participant.ts';
import { ReplicationError } from './replication-error.ts';

/** What one disk of the VM received during an epoch: in the order of the disk, and nothing of it twice. */
export interface EpochWrites {
  readonly disk: string;
  readonly writes: readonly DiskWrite[];
}

/** A disk whose writes travel with the epochs. */
export interface EpochDiskSource extends EpochParticipant {
  readonly name: string;
  /** The VM is about to be stopped: until the next `seal` no write waits for room, as `stop` would wait for it. */
  letThrough(): void;
  /** Between `seal` and `commit`. */
  sealedWrites(epoch: EpochId): readonly DiskWrite[];
}

/** Of all disks in one epoch. What disks may hold in memory is less, and the lists take less than holding did. */
export const WRITES_BYTES_MAX = 640 * MIB;
const DISK_BYTES = 2 + 4;
const ROW_BYTES = 24;
const DATA = 1;
const ZERO = 2;
const HOLE = 3;

/**
 * Wire form, little endian: u32 disks; for each u16 name length, name, u32 writes, then for each write u64 offset,
 * u64 length, u32 kind (1 data, 2 zeros, 3 zeros that may become a hole), u32 0; at last the bytes of all data, one after
 * the other. In parts, which are no copies. Nothing where nothing was written.
 */
export function encodeWrites(disks: readonly EpochWrites[]): Uint8Array[] {
  const written = disks.filter(({ writes }) => writes.length > 0);
  if (written.length === 0) return [];
  const names = written.map(({ disk }) => Buffer.from(disk, 'utf8'));
  const listBytes = written.reduce(
    (sum, { writes }, index) => sum + DISK_BYTES + (names[index]?.length ?? 0) + writes.length * ROW_BYTES,
    4,
  );
  const list = Buffer.alloc(listBytes);
  const parts: Uint8Array[] = [list];
  let at = list.writeUInt32LE(written.length, 0);
  for (const [index, { writes }] of written.entries()) {
    const name = names[index];
    assert(name !== undefined && name.length <= 0xffff, 'a disk has a name, and a short one');
    at = list.writeUInt16LE(name.length, at);
    at += name.copy(list, at);
    at = list.writeUInt32LE(writes.length, at);
    for (const write of writes) {
      at = list.writeBigUInt64LE(BigInt(write.offset), at);
      at = list.writeBigUInt64LE(BigInt(endOf(write) - write.offset), at);
      at = list.writeUInt32LE(kindOf(write), at) + 4;
      if (write.kind === 'data') parts.push(write.bytes);
    }
  }
  return parts;
}

/** Data are views of `bytes`. @throws ReplicationError REPLICATION_EPOCH_CORRUPT: anything that `encodeWrites` did not write */
export function decodeWrites(bytes: Uint8Array): EpochWrites[] {
  if (bytes.length === 0) return [];
  const reader = new ListReader(bytes);
  const lists = Array.from({ length: reader.count(DISK_BYTES) }, () => {
    const disk = reader.text(reader.u16());
    return { disk, rows: Array.from({ length: reader.count(ROW_BYTES) }, () => reader.row()) };
  });
  if (new Set(lists.map(({ disk }) => disk)).size !== lists.length) throw corrupt('name a disk twice');
  const disks = lists.map(({ disk, rows }) => {
    let endByte = 0;
    const writes = rows.map((row): DiskWrite => {
      if (row.offset < endByte) throw corrupt('overlap');
      endByte = row.offset + row.lengthBytes;
      return row.kind === DATA
        ? { kind: 'data', offset: row.offset, bytes: reader.take(row.lengthBytes) }
        : { kind: 'zero', offset: row.offset, lengthBytes: row.lengthBytes, mayPunch: row.kind === HOLE };
    });
    return { disk, writes };
  });
  if (reader.leftBytes > 0) throw corrupt('have bytes behind them');
  return disks;
}

interface Row {
  readonly offset: number;
  readonly lengthBytes: number;
  readonly kind: number;
}

class ListReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  get leftBytes(): number {
    return this.#bytes.length - this.#at;
  }

  take(lengthBytes: number): Uint8Array {
    const at = this.#skip(lengthBytes);
    return this.#bytes.subarray(at, at + lengthBytes);
  }

  text(lengthBytes: number): string {
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(this.take(lengthBytes).slice());
    } catch (cause) {
      if (cause instanceof ReplicationError) throw cause;
      throw corrupt('are of a disk whose name is no text');
    }
  }

  u16(): number {
    return this.#view.getUint16(this.#skip(2), true);
  }

  /** How many of something follow that takes `eachBytes` at least: a length is believed only when there is so much. */
  count(eachBytes: number): number {
    const count = this.#view.getUint32(this.#skip(4), true);
    if (count * eachBytes > this.leftBytes) throw corrupt('are cut short');
    return count;
  }

  row(): Row {
    const at = this.#skip(ROW_BYTES);
    const [offset, lengthBytes] = [this.#number(at), this.#number(at + 8)];
    const kind = this.#view.getUint32(at + 16, true);
    if (![DATA, ZERO, HOLE].includes(kind)) throw corrupt('are of no kind that is known');
    if (lengthBytes === 0 || !Number.isSafeInteger(offset + lengthBytes)) throw corrupt('are nowhere');
    return { offset, lengthBytes, kind };
  }

  #number(at: number): number {
    const value = this.#view.getBigUint64(at, true);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw corrupt('are nowhere');
    return Number(value);
  }

  #skip(lengthBytes: number): number {
    if (lengthBytes > this.leftBytes) throw corrupt('are cut short');
    this.#at += lengthBytes;
    return this.#at - lengthBytes;
  }
}

function kindOf(write: DiskWrite): number {
  if (write.kind === 'data') return DATA;
  return write.mayPunch ? HOLE : ZERO;
}

function corrupt(what: string): ReplicationError {
  return new ReplicationError('REPLICATION_EPOCH_CORRUPT', `the writes to disks of an epoch ${what}`, {
    hint: 'The shadow cannot be trusted; the VM is not promoted from it. Check the memory of this host.',
  });
}
