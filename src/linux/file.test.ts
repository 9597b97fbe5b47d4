import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, expect, onTestFinished, test } from 'vitest';
import { marked } from '../../test/kit/run-mark.ts';
import { dataExtents, freeBytesOf, preadInto, punchHole, pwriteFrom, tryLockExclusive } from './file.ts';
import { Mapping } from './mapping.ts';

let path: string;
let fd: number;

beforeEach(() => {
  const directory = mkdtempSync(`/dev/shm/${marked('file')}-`);
  path = join(directory, 'file');
  fd = openSync(path, 'wx+');
  onTestFinished(() => {
    closeSync(fd);
    rmSync(directory, { recursive: true });
  });
});

test('bytes are written from and read into any place of a mapping', () => {
  using source = Mapping.anonymous(8192);
  using target = Mapping.anonymous(8192);
  source.bytes.fill(5, 100, 200);
  pwriteFrom(fd, source, { sourceOffset: 100, lengthBytes: 100, fileOffset: 3000 });
  preadInto(fd, target, { targetOffset: 50, lengthBytes: 100, fileOffset: 3000 });
  expect(target.bytes.subarray(49, 151)).toEqual(Uint8Array.of(0, ...new Array(100).fill(5), 0));
});

test('a read beyond the end of the file is an error, not a short read', () => {
  using target = Mapping.anonymous(4096);
  ftruncateSync(fd, 100);
  expect(() => preadInto(fd, target, { targetOffset: 0, lengthBytes: 101, fileOffset: 0 })).toThrow(
    expect.objectContaining({ code: 'LINUX_FILE_ENDED' }),
  );
});

test('a transfer that would leave the mapping is refused before the kernel sees it', () => {
  using mapping = Mapping.anonymous(4096);
  expect(() => preadInto(fd, mapping, { targetOffset: 1, lengthBytes: 4096, fileOffset: 0 })).toThrow(
    'outside',
  );
  expect(() => pwriteFrom(fd, mapping, { sourceOffset: -1, lengthBytes: 1, fileOffset: 0 })).toThrow(
    'outside',
  );
});

test('data extents show what was written and not what was punched out', () => {
  ftruncateSync(fd, 100 * 4096);
  expect(dataExtents(fd, { endBytes: 100 * 4096 })).toEqual([]);
  for (const page of [3, 4, 5, 99]) writeSync(fd, Uint8Array.of(1), 0, 1, page * 4096);
  punchHole(fd, 4 * 4096, { lengthBytes: 4096 });
  const pages = dataExtents(fd, { endBytes: 100 * 4096 }).map(({ startByte, endByte }) => [
    startByte / 4096,
    endByte / 4096,
  ]);
  expect(pages).toEqual([
    [3, 4],
    [5, 6],
    [99, 100],
  ]);
  expect(dataExtents(fd, { endBytes: 4 * 4096 })).toEqual([{ startByte: 3 * 4096, endByte: 4 * 4096 }]);
});

test('only one open file at a time holds the lock', () => {
  const other = openSync(path, 'r');
  try {
    expect(tryLockExclusive(fd)).toBe(true);
    expect(tryLockExclusive(fd)).toBe(true);
    expect(tryLockExclusive(other)).toBe(false);
  } finally {
    closeSync(other);
  }
});

test('free space is known for a directory and an error for none', () => {
  expect(freeBytesOf('/dev/shm')).toBeGreaterThan(0);
  expect(() => freeBytesOf('/no/such/place')).toThrow(expect.objectContaining({ errnoName: 'ENOENT' }));
});
