import { expect, test } from 'vitest';
import { Mapping } from './mapping.ts';
import { Pagemap } from './pagemap.ts';

test('memory that was not write-protected is refused rather than called clean', () => {
  using memory = Mapping.anonymous(16 * 4096);
  using pagemap = Pagemap.open(process.pid);
  memory.bytes[0] = 1;
  const range = { startAddress: memory.address, lengthBytes: memory.lengthBytes };
  expect(() => pagemap.scanWritten({ ...range, rearm: true })).toThrow(
    expect.objectContaining({ code: 'LINUX_CALL_FAILED', call: 'ioctl PAGEMAP_SCAN' }),
  );
});

test('a process that does not exist has no page map', () => {
  expect(() => Pagemap.open(2 ** 22 + 1)).toThrow(expect.objectContaining({ errnoName: 'ENOENT' }));
});
