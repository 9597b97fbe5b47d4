/** For tests: guest memory with content, and what is told of a snapshot of it. */
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { SnapshotFile } from './snapshot-file.ts';
import type { SnapshotFacts } from './snapshot-format.ts';

export const FIXTURE_PAGES = (2 * MIB) / PAGE_BYTES;

export const FIXTURE_FACTS: SnapshotFacts = {
  vm: 'vm',
  savedAtMs: 1,
  epoch: 7,
  token: 3,
  memoryBytes: FIXTURE_PAGES * PAGE_BYTES,
  qemuVersion: '7.2.22',
  accel: 'tcg',
  machineHash: 'a'.repeat(64),
};

/** Each page filled with one byte, or with noise. */
export function writePages(memory: GuestMemory, pages: ReadonlyMap<number, number | 'noise'>): void {
  using page = Mapping.anonymous(PAGE_BYTES);
  for (const [firstPage, content] of pages) {
    if (content === 'noise') page.bytes.set(randomBytes(PAGE_BYTES));
    else page.bytes.fill(content);
    memory.writeRuns([{ firstPage, pageCount: 1 }], page);
  }
}

/**
 * Changes one byte of this chunk. Where it lies is for the index to say: chunks are in the order in which their compression
 * ended, which is not that of their numbers on a busy machine.
 */
export function damageChunk(path: string, chunk: number): void {
  using file = SnapshotFile.open(path);
  const at = (file.index.chunks[chunk]?.offset ?? 0) + 100;
  const bytes = readFileSync(path);
  bytes[at] = (bytes[at] ?? 0) ^ 1;
  writeFileSync(path, bytes);
}
