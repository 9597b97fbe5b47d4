import koffi from 'koffi';
import { assert } from '../base/assert.ts';

/** Debian's name of it; apt itself needs the package, so that every Debian has it. */
const LIBRARY = 'liblz4.so.1';

/** Places in the memory of this process. Nobody checks them: the caller has proven that they are its own. */
interface Block {
  readonly sourceAddress: number;
  readonly sourceBytes: number;
  readonly targetAddress: number;
  readonly targetBytes: number;
}

/** LZ4 blocks, from address to address. See lz4.h of LZ4 1.9. */
export interface Lz4 {
  /**
   * Number of bytes written, 0 when they do not fit into the target: that is how little the caller wants to pay.
   * `acceleration` from 1: the larger, the quicker and the worse.
   */
  compress(block: Block, acceleration: number): number;
  /** Number of bytes written, negative for what is no LZ4 block or is too large. Never goes beyond source and target. */
  decompress(block: Block): number;
}

let loaded: Lz4 | undefined;

/** @throws what the dynamic linker says where the library is missing */
export function loadLz4(): Lz4 {
  loaded ??= bind();
  return loaded;
}

function bind(): Lz4 {
  const library = koffi.load(LIBRARY);
  const compressFast = library.func('LZ4_compress_fast', 'int', [
    'uintptr_t',
    'uintptr_t',
    'int',
    'int',
    'int',
  ]) as (source: number, target: number, sourceBytes: number, targetBytes: number, speed: number) => number;
  const decompressSafe = library.func('LZ4_decompress_safe', 'int', [
    'uintptr_t',
    'uintptr_t',
    'int',
    'int',
  ]) as (source: number, target: number, sourceBytes: number, targetBytes: number) => number;
  return {
    compress: ({ sourceAddress, sourceBytes, targetAddress, targetBytes }, acceleration) =>
      compressFast(sourceAddress, targetAddress, sourceBytes, targetBytes, acceleration),
    decompress: ({ sourceAddress, sourceBytes, targetAddress, targetBytes }) =>
      decompressSafe(sourceAddress, targetAddress, sourceBytes, targetBytes),
  };
}

/** Where the bytes lie. Holds as long as their buffer lives and is not detached; the caller keeps it. */
export function addressOf(bytes: Uint8Array): number {
  // To ask for the buffer gives small arrays, which V8 keeps in its heap and moves, a place of their own.
  const { buffer } = bytes;
  assert(buffer instanceof ArrayBuffer && !buffer.detached, 'bytes that have a place in memory');
  return Number(koffi.address(bytes));
}
