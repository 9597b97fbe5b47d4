import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { beforeEach, expect, onTestFinished, test } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { SmallTmpfs } from '../../test/kit/small-tmpfs.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import { CompareLog } from './compare-log.ts';
import { GuestMemory } from './guest-memory.ts';

const PAGES = 64;

let path: string;
let memory: GuestMemory;

beforeEach(() => {
  const directory = mkdtempSync(`/dev/shm/${marked('memory')}-`);
  path = join(directory, 'vm.ram');
  memory = GuestMemory.create(path, PAGES * PAGE_BYTES);
  onTestFinished(() => {
    memory[Symbol.dispose]();
    rmSync(directory, { recursive: true });
  });
});

test('new memory is all holes, for its owner only', () => {
  expect(memory.dataRuns()).toEqual([]);
  expect(memory.residentBytes()).toBe(0);
  expect(statSync(path).size).toBe(PAGES * PAGE_BYTES);
  expect(statSync(path).mode & 0o777).toBe(0o600);
});

test('reading and comparing leave holes what they are', () => {
  using buffer = Mapping.anonymous(PAGES * PAGE_BYTES);
  using log = new CompareLog({ memory });
  buffer.bytes.fill(1);
  memory.writeRuns([{ firstPage: 5, pageCount: 1 }], buffer);
  const blocks = statSync(path).blocks;
  expect(memory.readRuns([{ firstPage: 0, pageCount: PAGES }], buffer)).toBe(PAGES * PAGE_BYTES);
  expect(log.collect()).toEqual([{ firstPage: 5, pageCount: 1 }]);
  expect(statSync(path).blocks).toBe(blocks);
  expect(memory.dataRuns()).toEqual([{ firstPage: 5, pageCount: 1 }]);
  expect(buffer.bytes.filter((byte) => byte !== 0)).toHaveLength(PAGE_BYTES);
});

test('runs of pages are packed one after the other, and come back to their places', () => {
  const page = fc.nat(PAGES - 1);
  fc.assert(
    fc.property(fc.uniqueArray(page, { minLength: 1 }), fc.integer({ min: 1, max: 255 }), (pages, byte) => {
      using buffer = Mapping.anonymous((PAGES + 1) * PAGE_BYTES);
      memory.discardAll();
      const runs = pages.map((firstPage) => ({ firstPage, pageCount: 1 }));
      for (let index = 0; index < pages.length; index++)
        buffer.bytes[(index + 1) * PAGE_BYTES] = byte + index;
      expect(memory.writeRuns(runs, buffer, PAGE_BYTES)).toBe(pages.length * PAGE_BYTES);
      buffer.bytes.fill(0);
      memory.readRuns([{ firstPage: 0, pageCount: PAGES }], buffer);
      for (const [index, at] of pages.entries()) {
        expect(buffer.bytes[at * PAGE_BYTES]).toBe((byte + index) % 256);
      }
    }),
  );
});

test('discarded pages read as zeros and take up no memory', () => {
  using buffer = Mapping.anonymous(PAGES * PAGE_BYTES);
  buffer.bytes.fill(7);
  memory.writeRuns([{ firstPage: 0, pageCount: PAGES }], buffer);
  memory.discard([
    { firstPage: 0, pageCount: 60 },
    { firstPage: 61, pageCount: 3 },
  ]);
  expect(memory.residentBytes()).toBe(PAGE_BYTES);
  memory.readRuns([{ firstPage: 59, pageCount: 3 }], buffer);
  expect([0, 1, 2].map((page) => buffer.bytes[page * PAGE_BYTES])).toEqual([0, 7, 0]);
  memory.discardAll();
  expect(memory.residentBytes()).toBe(0);
});

test('holes get pages of the host ahead, which still read as zeros, and what is there stays', async () => {
  using buffer = Mapping.anonymous(PAGES * PAGE_BYTES);
  buffer.bytes.fill(7, 0, PAGE_BYTES);
  memory.writeRuns([{ firstPage: 2, pageCount: 1 }], buffer);
  await memory.populate(PAGE_BYTES);
  expect(memory.residentBytes()).toBe(PAGE_BYTES);
  await memory.populate(5 * PAGE_BYTES - 1);
  expect(memory.residentBytes()).toBe(5 * PAGE_BYTES);
  await memory.populate(memory.sizeBytes);
  await memory.populate(memory.sizeBytes);
  expect(memory.residentBytes()).toBe(memory.sizeBytes);
  memory.readRuns([{ firstPage: 0, pageCount: PAGES }], buffer);
  const first = Array.from({ length: 4 }, (_, page) => buffer.bytes[page * PAGE_BYTES]);
  expect(first).toEqual([0, 0, 7, 0]);
});

test('pages outside of guest memory are refused', () => {
  using buffer = Mapping.anonymous(PAGES * PAGE_BYTES);
  expect(() => memory.readRuns([{ firstPage: PAGES, pageCount: 1 }], buffer)).toThrow('outside');
  expect(() => memory.discard([{ firstPage: -1, pageCount: 1 }])).toThrow('outside');
});

test('memory is made once, opened again, and gone when removed', () => {
  expect(() => GuestMemory.create(path, MIB)).toThrow(expect.objectContaining({ code: 'MEMORY_EXISTS' }));
  using again = GuestMemory.open(path);
  expect(again.sizeBytes).toBe(memory.sizeBytes);
  memory.remove();
  memory.remove();
  expect(() => GuestMemory.open(path)).toThrow(expect.objectContaining({ code: 'MEMORY_MISSING' }));
});

test('too little room is found before anything is made, and told in figures', () => {
  const large = join(path, '..', 'large.ram');
  const sizeBytes = 2 ** 50;
  expect(() => GuestMemory.create(large, sizeBytes)).toThrow(
    expect.objectContaining({
      code: 'MEMORY_NO_ROOM',
      facts: expect.objectContaining({ neededBytes: sizeBytes, directory: join(path, '..') }),
    }),
  );
  expect(() => statSync(large)).toThrow();
});

test('too little room names the mount point, which is what can be enlarged', () => {
  using small = new SmallTmpfs(4 * MIB);
  const directory = join(small.path, 'understudy-a');
  mkdirSync(directory);
  expect(() => GuestMemory.create(join(directory, 'a.ram'), 8 * MIB)).toThrow(
    expect.objectContaining({
      code: 'MEMORY_NO_ROOM',
      message: `${small.path} has 4 MiB free, and the memory needs 8 MiB`,
      facts: expect.objectContaining({ directory, mountPoint: small.path }),
      hint: expect.stringMatching(new RegExp(`remount,size=SIZE ${small.path}$`)),
    }),
  );
});
