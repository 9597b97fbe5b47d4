import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { formatBytes } from '../base/units.ts';
import type { DiskSpec } from '../config/vm-spec-schema.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { BlockError } from './block-error.ts';
import { QCOW2_HEADER_BYTES, type Qcow2Header, readQcow2Header } from './qcow2-header.ts';

type ImageFormat = DiskSpec['format'];

/** An image file, looked at without opening anything that it names. */
interface DiskImage {
  readonly fileBytes: number;
  /** Undefined where it is none, whatever it shall be. */
  readonly qcow2: Qcow2Header | undefined;
}

/**
 * Sees that the image of a disk is there and is what the specification says: format, size, what it stands on. Only
 * reads. `absent` when there is nothing at its path.
 * @throws BlockError BLOCK_IMAGE_UNFIT, BLOCK_IMAGE_FOREIGN, BLOCK_IMAGE_MISSING (what it stands on)
 */
export function checkDiskImage(disk: DiskSpec): 'fit' | 'absent' {
  checkBacking(disk);
  const image = openImage(disk.path);
  if (image === undefined) return 'absent';
  checkFormat(disk, image);
  checkSize(disk, image);
  return 'fit';
}

/** What a disk stands on has to be there and stand on nothing itself: one level is all that QEMU is told of. */
function checkBacking({ backing }: DiskSpec): void {
  if (backing === undefined) return;
  const image = openImage(backing.path);
  if (image === undefined) throw imageMissing(backing.path);
  checkFormat(backing, image);
}

export function imageMissing(path: string): BlockError {
  return new BlockError('BLOCK_IMAGE_MISSING', `${path}: there is no such image`, {
    hint: 'Correct the path, or have it made with create: true and a size.',
    facts: { path },
  });
}

function checkFormat(
  { path, format, backing }: Pick<DiskSpec, 'path' | 'format' | 'backing'>,
  { qcow2 }: DiskImage,
): void {
  // A raw disk may well look like another format: its guest decides what is on it.
  if (format === 'raw') return;
  if (qcow2 === undefined) throw wrongFormat(path, format);
  if (qcow2.encrypted) throw unfit(path, { what: 'the image is encrypted, which is not supported' });
  if (qcow2.corrupt) {
    const hint = `Repair a copy of it with: qemu-img check -r all ${path}`;
    throw unfit(path, { what: 'the image is marked as corrupt', hint });
  }
  if (qcow2.hasDataFile) {
    const hint = 'Convert it with qemu-img convert -O qcow2.';
    throw foreign(path, { what: 'keeps its data in another file', hint });
  }
  checkReference(path, { named: qcow2.backingFile, said: backing?.path });
}

interface Reference {
  /** By the image. */
  readonly named: string | undefined;
  /** By the specification. */
  readonly said: string | undefined;
}

/** An image may name any file of the host, and a guest would read it: only what the specification names is opened. */
function checkReference(path: string, { named, said }: Reference): void {
  if (named === undefined && said === undefined) return;
  if (named === undefined) {
    const what = `the image stands on nothing, but the specification says ${said}`;
    throw unfit(path, { what, hint: 'Leave backing out.' });
  }
  // As QEMU takes it: relative to the image, not to whoever runs.
  if (resolve(dirname(path), named) === said) return;
  if (said !== undefined) {
    const hint = 'Correct backing.path, or rebase the image with qemu-img rebase.';
    throw foreign(path, { what: `stands on ${JSON.stringify(named)}, not on ${said}`, hint });
  }
  throw foreign(path, {
    what: `stands on ${JSON.stringify(named)}`,
    hint: 'If that is right, say so with backing: {path, format}, for one level; else convert it with qemu-img convert -O qcow2.',
  });
}

function checkSize({ path, format, size }: DiskSpec, { fileBytes, qcow2 }: DiskImage): void {
  const hasBytes = format === 'qcow2' ? (qcow2?.sizeBytes ?? 0) : fileBytes;
  if (size === undefined || size === hasBytes) return;
  throw unfit(path, {
    what: `the disk has ${formatBytes(hasBytes)} (${hasBytes} bytes), the specification says ${formatBytes(size)}`,
    hint: 'An image that is there is never changed: correct size, leave it out, or use qemu-img resize while nothing runs.',
  });
}

/** Undefined when there is nothing. @throws BlockError BLOCK_IMAGE_UNFIT for what is no plain file or cannot be read */
function openImage(path: string): DiskImage | undefined {
  let fd: number;
  try {
    // Else a FIFO would wait for somebody who writes.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (cause) {
    if (errnoNameOf(cause) === 'ENOENT') return undefined;
    throw unfit(path, { what: `the image cannot be read (${errnoNameOf(cause)})`, cause });
  }
  try {
    const stats = fstatSync(fd);
    if (!stats.isFile()) throw unfit(path, { what: 'is no plain file' });
    const bytes = Buffer.alloc(QCOW2_HEADER_BYTES);
    const count = readSync(fd, bytes, 0, bytes.length, 0);
    return { fileBytes: stats.size, qcow2: readQcow2Header(bytes.subarray(0, count)) };
  } finally {
    closeSync(fd);
  }
}

function wrongFormat(path: string, format: ImageFormat): BlockError {
  const hint = 'Correct format: it says what the image is, it converts nothing.';
  return unfit(path, { what: `is no ${format} image that can be used`, hint });
}

interface Fault {
  readonly what: string;
  readonly hint?: string;
  readonly cause?: unknown;
}

function unfit(path: string, { what, hint, cause }: Fault): BlockError {
  return new BlockError('BLOCK_IMAGE_UNFIT', `${path}: ${what}`, {
    hint: hint ?? 'Give the path of an image in a plain file that this user may read and write.',
    facts: { path },
    cause,
  });
}

function foreign(path: string, { what, hint }: Required<Pick<Fault, 'what' | 'hint'>>): BlockError {
  return new BlockError('BLOCK_IMAGE_FOREIGN', `${path}: the image ${what}`, { hint, facts: { path } });
}
