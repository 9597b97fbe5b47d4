/** The NBD protocol as doc/proto.md of NetworkBlockDevice/nbd describes it: numbers, and what is said in which bytes. */

/** Of a payload, either way. The protocol's own advice is 32 MiB. */
export const NBD_PAYLOAD_BYTES_MAX = 32 * 1024 * 1024;
export const NBD_NAME_BYTES_MAX = 4096;
/** Of one option. Room for a list of meta contexts; who sends more means no good. */
export const NBD_OPTION_BYTES_MAX = 64 * 1024;

export const NBD_MAGIC = 0x4e42444d41474943n;
export const NBD_OPTION_MAGIC = 0x49484156454f5054n;
export const NBD_OPTION_REPLY_MAGIC = 0x0003e889045565a9n;
export const NBD_REQUEST_MAGIC = 0x25609513;
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;

export const NBD_REQUEST_BYTES = 28;
export const NBD_SIMPLE_REPLY_BYTES = 16;
export const NBD_CHUNK_BYTES = 20;

export const HANDSHAKE = { fixedNewstyle: 1, noZeroes: 2 } as const;

export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

export const OPTION_REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: 0x80000001,
  policy: 0x80000002,
  invalid: 0x80000003,
  tlsRequired: 0x80000005,
  unknown: 0x80000006,
} as const;

export const INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

export const EXPORT_FLAG = {
  hasFlags: 1,
  readOnly: 2,
  flush: 4,
  fua: 8,
  trim: 32,
  writeZeroes: 64,
  doNotFragment: 128,
  multiConnection: 256,
  cache: 1024,
  fastZero: 2048,
} as const;

export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

export const COMMAND_FLAG = { fua: 1, noHole: 2, doNotFragment: 4, requestOne: 8, fastZero: 16 } as const;

export const CHUNK = {
  none: 0,
  data: 1,
  hole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;
export const CHUNK_DONE = 1;

export const ALLOCATION = { name: 'base:allocation', id: 1, hole: 1, zero: 2 } as const;

/** Errors that the protocol knows, by errno. */
export const NBD_ERRNO = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;
export type NbdErrno = keyof typeof NBD_ERRNO;

/** A client's name for a request: eight bytes, handed back as they came. */
export interface Cookie {
  readonly high: number;
  readonly low: number;
}

export interface NbdRequest extends Cookie {
  readonly flags: number;
  readonly command: number;
  /** Above 2^53 it is not exact, but then it is beyond the end of any disk all the same. */
  readonly offset: number;
  readonly lengthBytes: number;
}

export interface OptionRequest {
  readonly option: number;
  readonly data: Buffer;
}

export function greeting(): Buffer {
  const bytes = Buffer.alloc(18);
  bytes.writeBigUInt64BE(NBD_MAGIC, 0);
  bytes.writeBigUInt64BE(NBD_OPTION_MAGIC, 8);
  bytes.writeUInt16BE(HANDSHAKE.fixedNewstyle | HANDSHAKE.noZeroes, 16);
  return bytes;
}

export function optionRequest(option: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(16 + data.length);
  bytes.writeBigUInt64BE(NBD_OPTION_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(data.length, 12);
  bytes.set(data, 16);
  return bytes;
}

export function optionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(20 + data.length);
  bytes.writeBigUInt64BE(NBD_OPTION_REPLY_MAGIC, 0);
  bytes.writeUInt32BE(option, 8);
  bytes.writeUInt32BE(type, 12);
  bytes.writeUInt32BE(data.length, 16);
  bytes.set(data, 20);
  return bytes;
}

/** A text with its length in front, as names and queries are sent. */
export function lengthAndText(text: string): Buffer {
  const bytes = Buffer.alloc(4 + Buffer.byteLength(text));
  bytes.writeUInt32BE(bytes.length - 4, 0);
  bytes.write(text, 4);
  return bytes;
}

export function infoExport(sizeBytes: number, flags: number): Buffer {
  const bytes = Buffer.alloc(12);
  bytes.writeUInt16BE(INFO.export, 0);
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 2);
  bytes.writeUInt16BE(flags, 10);
  return bytes;
}

export function infoText(type: number, text: string): Buffer {
  const bytes = Buffer.alloc(2 + Buffer.byteLength(text));
  bytes.writeUInt16BE(type, 0);
  bytes.write(text, 2);
  return bytes;
}

export function infoBlockSize(sizes: { minimum: number; preferred: number; maximum: number }): Buffer {
  const bytes = Buffer.alloc(14);
  bytes.writeUInt16BE(INFO.blockSize, 0);
  bytes.writeUInt32BE(sizes.minimum, 2);
  bytes.writeUInt32BE(sizes.preferred, 6);
  bytes.writeUInt32BE(sizes.maximum, 10);
  return bytes;
}

/** What EXPORT_NAME is answered with; not in the form of an option's reply. */
export function exportNameReply(sizeBytes: number, options: { flags: number; zeroes: boolean }): Buffer {
  const bytes = Buffer.alloc(10 + (options.zeroes ? 124 : 0));
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 0);
  bytes.writeUInt16BE(options.flags, 8);
  return bytes;
}

export function request(of: NbdRequest): Buffer {
  const bytes = Buffer.allocUnsafe(NBD_REQUEST_BYTES);
  bytes.writeUInt32BE(NBD_REQUEST_MAGIC, 0);
  bytes.writeUInt16BE(of.flags, 4);
  bytes.writeUInt16BE(of.command, 6);
  bytes.writeUInt32BE(of.high, 8);
  bytes.writeUInt32BE(of.low, 12);
  bytes.writeUInt32BE(Math.floor(of.offset / 2 ** 32), 16);
  bytes.writeUInt32BE(of.offset >>> 0, 20);
  bytes.writeUInt32BE(of.lengthBytes, 24);
  return bytes;
}

/** The beginning of a simple reply; the data of a read follows where there was no error. */
export function putSimpleReply(bytes: Buffer, cookie: Cookie, error: number): void {
  bytes.writeUInt32BE(NBD_SIMPLE_REPLY_MAGIC, 0);
  bytes.writeUInt32BE(error, 4);
  bytes.writeUInt32BE(cookie.high, 8);
  bytes.writeUInt32BE(cookie.low, 12);
}

/** The beginning of a chunk that is the last one of its reply. */
export function putChunk(
  bytes: Buffer,
  cookie: Cookie,
  chunk: { readonly type: number; readonly lengthBytes: number },
): void {
  bytes.writeUInt32BE(NBD_STRUCTURED_REPLY_MAGIC, 0);
  bytes.writeUInt16BE(CHUNK_DONE, 4);
  bytes.writeUInt16BE(chunk.type, 6);
  bytes.writeUInt32BE(cookie.high, 8);
  bytes.writeUInt32BE(cookie.low, 12);
  bytes.writeUInt32BE(chunk.lengthBytes, 16);
}

/** A number of 64 bits. Above 2^53 it is not exact. */
export function readUint64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4);
}

export function putUint64(bytes: Buffer, at: number, value: number): void {
  bytes.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  bytes.writeUInt32BE(value >>> 0, at + 4);
}
