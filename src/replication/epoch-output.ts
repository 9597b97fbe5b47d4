import { ReplicationError } from './replication-error.ts';

/** What one link of the VM (a nic, the console) sent during an epoch, in order. */
export interface LinkOutput {
  readonly link: string;
  readonly items: readonly Uint8Array[];
}

/**
 * Wire form of an epoch's output, little endian:
 * u32 links, then for each link: u16 name length, name, u32 items, then for each item: u32 length, bytes.
 */
export function encodeOutputs(outputs: readonly LinkOutput[]): Buffer {
  const parts: Buffer[] = [u32(outputs.length)];
  for (const { link, items } of outputs) {
    const name = Buffer.from(link, 'utf8');
    const nameLength = Buffer.alloc(2);
    nameLength.writeUInt16LE(name.length);
    parts.push(nameLength, name, u32(items.length));
    for (const item of items)
      parts.push(u32(item.length), Buffer.from(item.buffer, item.byteOffset, item.length));
  }
  return Buffer.concat(parts);
}

/** Throws REPLICATION_EPOCH_CORRUPT on anything that `encodeOutputs` did not write. */
export function decodeOutputs(bytes: Buffer): LinkOutput[] {
  let at = 0;
  const take = (length: number): Buffer => {
    if (length > bytes.length - at) {
      throw new ReplicationError(
        'REPLICATION_EPOCH_CORRUPT',
        `an epoch's output ends at byte ${bytes.length}, in the middle of an item`,
      );
    }
    at += length;
    return bytes.subarray(at - length, at);
  };
  const outputs: LinkOutput[] = [];
  for (let links = take(4).readUInt32LE(); links > 0; links -= 1) {
    const link = take(take(2).readUInt16LE()).toString('utf8');
    const items: Uint8Array[] = [];
    for (let left = take(4).readUInt32LE(); left > 0; left -= 1)
      items.push(Uint8Array.from(take(take(4).readUInt32LE())));
    outputs.push({ link, items });
  }
  if (at !== bytes.length) {
    throw new ReplicationError(
      'REPLICATION_EPOCH_CORRUPT',
      `${bytes.length - at} bytes stand behind an epoch's output`,
    );
  }
  return outputs;
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}
