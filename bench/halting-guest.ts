import { writeFileSync } from 'node:fs';

const LOAD_ADDRESS = 0x10_0000;
/** Multiboot 0.6.96, 3.1.1: the file says itself where it goes. */
const MAGIC = 0x1bad_b002;
const HAS_ADDRESSES = 0x0001_0000;
const HEADER_BYTES = 32;
/** cli; hlt; jmp to hlt */
const HALT_FOR_EVER = [0xfa, 0xf4, 0xeb, 0xfd];

/** The smallest guest: a multiboot kernel that halts its processor for ever, and so takes none from the host. */
export function writeHaltingKernel(path: string): void {
  const words = [
    ...[MAGIC, HAS_ADDRESSES, -(MAGIC + HAS_ADDRESSES) >>> 0],
    // Header and code lie at the beginning; 0: the whole file, and nothing beyond it.
    ...[LOAD_ADDRESS, LOAD_ADDRESS, 0, 0, LOAD_ADDRESS + HEADER_BYTES],
  ];
  const kernel = Buffer.alloc(HEADER_BYTES + HALT_FOR_EVER.length);
  for (const [index, word] of words.entries()) kernel.writeUInt32LE(word, 4 * index);
  kernel.set(HALT_FOR_EVER, HEADER_BYTES);
  writeFileSync(path, kernel);
}
