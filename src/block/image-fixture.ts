import { MIB } from '../base/units.ts';

export interface HeaderFields {
  readonly version?: number;
  readonly sizeBytes?: number | bigint;
  readonly backingFile?: string;
  readonly incompatible?: bigint;
  readonly encryption?: number;
}

/** The beginning of a qcow2 image that says this of itself, for tests: good and bad ones. */
export function qcow2Bytes(fields: HeaderFields): Buffer {
  const { version = 3, sizeBytes = MIB, backingFile, incompatible = 0n, encryption = 0 } = fields;
  const bytes = Buffer.alloc(4096);
  bytes.write('QFI\xfb', 0, 'latin1');
  bytes.writeUInt32BE(version, 4);
  bytes.writeUInt32BE(16, 20);
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 24);
  bytes.writeUInt32BE(encryption, 32);
  if (version > 2) {
    bytes.writeBigUInt64BE(incompatible, 72);
    bytes.writeUInt32BE(4, 96);
    bytes.writeUInt32BE(104, 100);
  }
  if (backingFile !== undefined) {
    bytes.writeBigUInt64BE(512n, 8);
    bytes.writeUInt32BE(Buffer.byteLength(backingFile), 16);
    bytes.write(backingFile, 512);
  }
  return bytes;
}
