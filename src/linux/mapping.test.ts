import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { Mapping } from './mapping.ts';

test('anonymous memory is zero and can be written', () => {
  using mapping = Mapping.anonymous(10_000);
  expect(mapping.bytes).toHaveLength(10_000);
  expect(mapping.bytes.every((byte) => byte === 0)).toBe(true);
  mapping.bytes[9_999] = 7;
  expect(mapping.bytes[9_999]).toBe(7);
});

test('a file mapped twice is the same memory, and the file', () => {
  const path = join(mkdtempSync(join(tmpdir(), 'understudy-mapping-')), 'file');
  onTestFinished(() => rmSync(join(path, '..'), { recursive: true }));
  writeFileSync(path, new Uint8Array(4096));
  const fd = openSync(path, 'r+');
  using one = Mapping.ofFile(fd, 4096, { writable: true });
  using other = Mapping.ofFile(fd, 4096, { writable: false });
  closeSync(fd);
  one.bytes.set([1, 2, 3], 100);
  expect([...other.bytes.subarray(100, 103)]).toEqual([1, 2, 3]);
  expect([...readFileSync(path).subarray(100, 103)]).toEqual([1, 2, 3]);
});

test('a view that outlives its mapping is empty instead of dangling', () => {
  const mapping = Mapping.anonymous(4096);
  const view = mapping.bytes.subarray(10);
  mapping[Symbol.dispose]();
  mapping[Symbol.dispose]();
  expect(view).toHaveLength(0);
  expect(mapping.bytes).toHaveLength(0);
});

test('more than 4 GiB can be seen through one view', () => {
  const lengthBytes = 6 * 2 ** 30;
  using mapping = Mapping.anonymous(lengthBytes);
  mapping.bytes[lengthBytes - 1] = 3;
  expect(mapping.bytes.at(-1)).toBe(3);
});

test('a refused mapping names the call and the errno', () => {
  expect(() => Mapping.ofFile(-1, 4096, { writable: false })).toThrow(
    expect.objectContaining({ code: 'LINUX_CALL_FAILED', call: 'mmap', errnoName: 'EBADF' }),
  );
});
