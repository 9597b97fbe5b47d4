import { errnoNameOf, LinuxError } from '../linux/linux-error.ts';
import type { DiskExtent } from './block-device.ts';
import {
  ALLOCATION,
  CHUNK,
  type Cookie,
  NBD_CHUNK_BYTES,
  NBD_ERRNO,
  NBD_SIMPLE_REPLY_BYTES,
  type NbdErrno,
  putChunk,
  putSimpleReply,
  putUint64,
} from './nbd-wire.ts';

/** A failure that the client is told by this errno. */
export class NbdRefusal extends Error {
  override readonly name = 'NbdRefusal';
  readonly errno: NbdErrno;

  constructor(errno: NbdErrno) {
    super(errno);
    this.errno = errno;
  }
}

export function errnoOf(thrown: unknown): NbdErrno {
  if (thrown instanceof NbdRefusal) return thrown.errno;
  const name = thrown instanceof LinuxError ? thrown.errnoName : errnoNameOf(thrown);
  if (name === 'EDQUOT') return 'ENOSPC';
  return name !== undefined && name in NBD_ERRNO ? (name as NbdErrno) : 'EIO';
}

/** Success without data. */
export function doneReply(cookie: Cookie, structured: boolean): Buffer {
  if (!structured) return simpleReply(cookie, 0);
  const bytes = Buffer.allocUnsafe(NBD_CHUNK_BYTES);
  putChunk(bytes, cookie, { type: CHUNK.none, lengthBytes: 0 });
  return bytes;
}

export function errorReply(
  cookie: Cookie,
  errno: NbdErrno,
  { structured }: { readonly structured: boolean },
): Buffer {
  if (!structured) return simpleReply(cookie, NBD_ERRNO[errno]);
  const bytes = Buffer.allocUnsafe(NBD_CHUNK_BYTES + 6);
  putChunk(bytes, cookie, { type: CHUNK.error, lengthBytes: 6 });
  bytes.writeUInt32BE(NBD_ERRNO[errno], NBD_CHUNK_BYTES);
  bytes.writeUInt16BE(0, NBD_CHUNK_BYTES + 4);
  return bytes;
}

/** Bytes in front of the data of a read. */
export function readHeaderBytes(structured: boolean): number {
  return structured ? NBD_CHUNK_BYTES + 8 : NBD_SIMPLE_REPLY_BYTES;
}

/** Puts the header in front of data that lies in the same buffer already, so that both go out as one. */
export function putReadHeader(
  bytes: Buffer,
  cookie: Cookie,
  read: { structured: boolean; offset: number },
): void {
  if (!read.structured) {
    putSimpleReply(bytes, cookie, 0);
    return;
  }
  putChunk(bytes, cookie, { type: CHUNK.data, lengthBytes: bytes.length - NBD_CHUNK_BYTES });
  putUint64(bytes, NBD_CHUNK_BYTES, read.offset);
}

export function statusReply(cookie: Cookie, extents: readonly DiskExtent[]): Buffer {
  const bytes = Buffer.alloc(NBD_CHUNK_BYTES + 4 + 8 * extents.length);
  putChunk(bytes, cookie, { type: CHUNK.blockStatus, lengthBytes: bytes.length - NBD_CHUNK_BYTES });
  bytes.writeUInt32BE(ALLOCATION.id, NBD_CHUNK_BYTES);
  for (const [index, { lengthBytes, hole, zero }] of extents.entries()) {
    const at = NBD_CHUNK_BYTES + 4 + 8 * index;
    bytes.writeUInt32BE(lengthBytes, at);
    bytes.writeUInt32BE((hole ? ALLOCATION.hole : 0) | (zero ? ALLOCATION.zero : 0), at + 4);
  }
  return bytes;
}

function simpleReply(cookie: Cookie, error: number): Buffer {
  const bytes = Buffer.allocUnsafe(NBD_SIMPLE_REPLY_BYTES);
  putSimpleReply(bytes, cookie, error);
  return bytes;
}
