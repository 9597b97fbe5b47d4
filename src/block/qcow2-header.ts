/** What a qcow2 image says of itself at its beginning. All of it was written by whoever made the image. */
export interface Qcow2Header {
  /** Of the disk that a guest sees. */
  readonly sizeBytes: number;
  /** As it stands there: a path, or what QEMU would take for a protocol. */
  readonly backingFile: string | undefined;
  readonly encrypted: boolean;
  /** Its data lies in another file, which the image names. */
  readonly hasDataFile: boolean;
  /** QEMU found it damaged, and refuses to write to it. */
  readonly corrupt: boolean;
}

/** As much as is looked at: the header and the name of the backing file lie in the first cluster, which has at least that. */
export const QCOW2_HEADER_BYTES = 64 * 1024;

const MAGIC = 0x514649fb;
const VERSION_2_BYTES = 72;
const VERSION_3_BYTES = 104;
const BACKING_NAME_BYTES_MAX = 1023;
const CORRUPT = 1n << 1n;
const DATA_FILE = 1n << 2n;
/** What QEMU 7.2 knows: dirty, corrupt, data file, compression type, extended L2. */
const KNOWN_INCOMPATIBLE = 0b11111n;

/**
 * Reads the header of a qcow2 image, versions 2 and 3 (docs/interop/qcow2.txt in QEMU). Here and not by qemu-img,
 * because nothing that the image names may be opened to find out that it names it. Undefined for anything else.
 */
export function readQcow2Header(bytes: Buffer): Qcow2Header | undefined {
  if (bytes.length < VERSION_2_BYTES || bytes.readUInt32BE(0) !== MAGIC) return undefined;
  const version = bytes.readUInt32BE(4);
  if (version !== 2 && version !== 3) return undefined;
  if (version === 3 && bytes.length < VERSION_3_BYTES) return undefined;
  const sizeBytes = Number(bytes.readBigUInt64BE(24));
  const incompatible = version === 3 ? bytes.readBigUInt64BE(72) : 0n;
  const backing = backingFileIn(bytes);
  if (!Number.isSafeInteger(sizeBytes) || backing === 'garbled') return undefined;
  if ((incompatible & ~KNOWN_INCOMPATIBLE) !== 0n) return undefined;
  return {
    sizeBytes,
    backingFile: backing?.name,
    encrypted: bytes.readUInt32BE(32) !== 0,
    hasDataFile: (incompatible & DATA_FILE) !== 0n,
    corrupt: (incompatible & CORRUPT) !== 0n,
  };
}

function backingFileIn(bytes: Buffer): { name: string } | undefined | 'garbled' {
  const offset = bytes.readBigUInt64BE(8);
  const lengthBytes = bytes.readUInt32BE(16);
  if (offset === 0n) return undefined;
  if (lengthBytes > BACKING_NAME_BYTES_MAX || offset + BigInt(lengthBytes) > BigInt(bytes.length))
    return 'garbled';
  return { name: bytes.toString('utf8', Number(offset), Number(offset) + lengthBytes) };
}
