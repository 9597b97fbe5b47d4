import { closeSync, constants, fstatSync, openSync, readFileSync, rmSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import { messageOf } from '../base/errors.ts';
import { GIB, PAGE_BYTES } from '../base/units.ts';
import type { Machine } from './machine.ts';
import { QemuError } from './qemu-error.ts';

/** The RAM block of the firmware. It ends where the 32-bit address space does. */
const BLOCK = 'pc.bios';
const END_ADDRESS = 4 * GIB;

/** migration/savevm.c and migration/ram.c: the stream of a migration, big endian. */
const STREAM_HEADER_BYTES = 8;
const SECTION_FULL = 0x04;
const SECTION_FOOTER = 0x7e;
const RAM_VERSION = 4;
const RAM_MEM_SIZE = 0x04n;
const RAM_PAGE = 0x08n;
const RAM_EOS = 0x10n;

/**
 * Reads the firmware of a machine, running or not, through the file `path`, which QEMU must be able to write.
 * @throws {QemuError} the QMP codes; QEMU_FIRMWARE_REFUSED when what lies there is no file of the firmware's size
 */
export async function readFirmware(
  machine: Pick<Machine, 'monitor' | 'qmp'>,
  path: string,
): Promise<Uint8Array> {
  const bytes = firmwareBytes(await machine.monitor('info ramblock'));
  try {
    await machine.qmp.execute('pmemsave', { val: END_ADDRESS - bytes, size: bytes, filename: path });
    return readRegular(path, bytes);
  } finally {
    rmSync(path, { force: true });
  }
}

/** QEMU may run as another user, who could have put a link or a pipe there: what we may read is not for its guest. */
function readRegular(path: string, bytes: number): Uint8Array {
  let fd: number | undefined;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const found = fstatSync(fd);
    if (!found.isFile() || found.size !== bytes || found.nlink !== 1)
      throw new Error(`that is no file of ${bytes} bytes with one name`);
    return readFileSync(fd);
  } catch (cause) {
    throw new QemuError('QEMU_FIRMWARE_REFUSED', `${path} cannot be read as the firmware`, {
      hint: 'Only QEMU may write there: look which other processes run as its user.',
      facts: { path, reason: messageOf(cause) },
      cause,
    });
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

/**
 * A QEMU that waits for a migration leaves its firmware empty, as the migration would bring it (rom_reset in
 * hw/core/loader.c). Device state brings no memory: a guest that reboots after its promotion would find nothing
 * to boot from. So the firmware is put before the device state, as a section of memory with this one block.
 */
export function withFirmware(deviceState: Uint8Array, firmware: Uint8Array): Buffer {
  return Buffer.concat([
    deviceState.subarray(0, STREAM_HEADER_BYTES),
    ramSection(firmware),
    deviceState.subarray(STREAM_HEADER_BYTES),
  ]);
}

function ramSection(block: Uint8Array): Buffer {
  assert(block.length > 0 && block.length % PAGE_BYTES === 0, 'firmware is whole pages');
  const parts: Uint8Array[] = [
    u8(SECTION_FULL),
    u32(0),
    text('ram'),
    ...[u32(0), u32(RAM_VERSION)],
    ...[u64(BigInt(block.length) | RAM_MEM_SIZE), text(BLOCK), u64(BigInt(block.length))],
  ];
  for (let at = 0; at < block.length; at += PAGE_BYTES) {
    parts.push(u64(BigInt(at) | RAM_PAGE), text(BLOCK), block.subarray(at, at + PAGE_BYTES));
  }
  parts.push(u64(RAM_EOS), u8(SECTION_FOOTER), u32(0));
  return Buffer.concat(parts);
}

/** A line of `info ramblock`: name, page size, offset, used bytes, total bytes. */
function firmwareBytes(table: string): number {
  const used = new RegExp(`^\\s*${BLOCK}\\s+\\d+ [KMG]iB\\s+0x\\w+\\s+(0x\\w+)`, 'm').exec(table)?.[1];
  assert(used !== undefined, `every machine has the RAM block ${BLOCK}`);
  return Number(used);
}

function u8(value: number): Buffer {
  return Buffer.from([value]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function u64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}

/** A name with its length in one byte. */
function text(name: string): Buffer {
  return Buffer.concat([u8(name.length), Buffer.from(name, 'latin1')]);
}
