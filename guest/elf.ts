import { unexpectedPackage } from './guest-error.ts';

/** What the builder needs to know of an ELF file. Empty or undefined where the file has no such thing. */
interface ElfFacts {
  /** Names of the shared libraries it is linked to (DT_NEEDED), in order. */
  readonly neededLibraries: readonly string[];
  /** Path of the dynamic loader it asks for (PT_INTERP). */
  readonly interpreter: string | undefined;
  /** For a kernel module: names of the modules to load before it (`depends=` in .modinfo). */
  readonly moduleDependencies: readonly string[];
}

const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const DT_NEEDED = 1;
const DT_STRTAB = 5;
const HEADER_BYTES = 64;

interface Extent {
  readonly type: number;
  readonly offset: number;
  readonly address: number;
  readonly lengthBytes: number;
}

/**
 * Reads a 64-bit little-endian ELF file (System V ABI, chapters 4 and 5).
 * @throws GuestError GUEST_PACKAGE_UNEXPECTED if it is none, or a broken one.
 */
export function readElf(bytes: Buffer, name: string): ElfFacts {
  try {
    if (
      bytes.length < HEADER_BYTES ||
      bytes.readUInt32BE(0) !== 0x7f454c46 ||
      bytes.readUInt16BE(4) !== 0x0201
    )
      throw new RangeError('no 64-bit little-endian ELF header');
    const segments = readSegments(bytes);
    const interpreter = segments.find((segment) => segment.type === PT_INTERP);
    return {
      neededLibraries: readNeeded(bytes, segments),
      interpreter: interpreter && readString(bytes, interpreter.offset),
      moduleDependencies: readModuleDependencies(bytes),
    };
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw unexpectedPackage(`${name} is no ELF file for this builder: ${cause.message}`, cause);
  }
}

function readSegments(bytes: Buffer): Extent[] {
  return readTable(bytes, { offsetAt: 32, entryBytesAt: 54, countAt: 56 }, (at) => ({
    type: bytes.readUInt32LE(at),
    offset: readOffset(bytes, at + 8),
    address: readOffset(bytes, at + 16),
    lengthBytes: readOffset(bytes, at + 32),
  }));
}

function readNeeded(bytes: Buffer, segments: readonly Extent[]): string[] {
  const dynamic = segments.find((segment) => segment.type === PT_DYNAMIC);
  if (dynamic === undefined) return [];
  const nameOffsets: number[] = [];
  let names = 0;
  for (let at = dynamic.offset; at + 16 <= dynamic.offset + dynamic.lengthBytes; at += 16) {
    const tag = bytes.readBigUInt64LE(at);
    if (tag === BigInt(DT_NEEDED)) nameOffsets.push(readOffset(bytes, at + 8));
    if (tag === BigInt(DT_STRTAB)) names = fileOffsetOf(segments, readOffset(bytes, at + 8));
  }
  return nameOffsets.map((offset) => readString(bytes, names + offset));
}

function readModuleDependencies(bytes: Buffer): string[] {
  const sections = readTable(bytes, { offsetAt: 40, entryBytesAt: 58, countAt: 60 }, (at) => ({
    name: bytes.readUInt32LE(at),
    offset: readOffset(bytes, at + 24),
    lengthBytes: readOffset(bytes, at + 32),
  }));
  const names = sections[bytes.readUInt16LE(62)];
  if (names === undefined) return [];
  const info = sections.find((section) => readString(bytes, names.offset + section.name) === '.modinfo');
  if (info === undefined) return [];
  const lines = bytes.toString('latin1', info.offset, info.offset + info.lengthBytes).split('\0');
  const depends = lines.find((line) => line.startsWith('depends='))?.slice('depends='.length);
  return depends ? depends.split(',') : [];
}

/** Both header tables are described by three fields of the ELF header: where, entry size, count. */
function readTable<Entry>(
  bytes: Buffer,
  fields: { offsetAt: number; entryBytesAt: number; countAt: number },
  readEntry: (at: number) => Entry,
): Entry[] {
  const start = readOffset(bytes, fields.offsetAt);
  const entryBytes = bytes.readUInt16LE(fields.entryBytesAt);
  const count = bytes.readUInt16LE(fields.countAt);
  return Array.from({ length: count }, (_, index) => readEntry(start + index * entryBytes));
}

function fileOffsetOf(segments: readonly Extent[], address: number): number {
  const segment = segments.find(
    (candidate) =>
      candidate.type === PT_LOAD &&
      address >= candidate.address &&
      address < candidate.address + candidate.lengthBytes,
  );
  if (segment === undefined) throw new RangeError('an address lies in no segment');
  return address - segment.address + segment.offset;
}

function readOffset(bytes: Buffer, at: number): number {
  return Number(bytes.readBigUInt64LE(at));
}

function readString(bytes: Buffer, at: number): string {
  const end = at < bytes.length ? bytes.indexOf(0, at) : -1;
  if (end === -1) throw new RangeError('a string has no end');
  return bytes.toString('latin1', at, end);
}
