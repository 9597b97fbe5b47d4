import { expect, test } from 'vitest';
import { formatBytes, GIB, MIB, parseBytes, TIB } from './units.ts';

test.each([
  ['1048576', MIB],
  ['256MiB', 256 * MIB],
  ['0.5 G', GIB / 2],
  ['1TiB', TIB],
  ['2T', 2 * TIB],
])('%s is a size', (text, bytes) => {
  expect(parseBytes(text)).toBe(bytes);
});

test.each(['', '-1', '1.3B', '1 GB', 'TiB', '99999999T'])('%j is no size', (text) => {
  expect(parseBytes(text)).toBeUndefined();
});

test.each([MIB, 1.5 * GIB, TIB])('%i is read back as it was written', (bytes) => {
  expect(parseBytes(formatBytes(bytes))).toBe(bytes);
});
