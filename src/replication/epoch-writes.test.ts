import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { DiskWrite } from '../block/disk-write.ts';
import { decodeWrites, encodeWrites } from './epoch-writes.ts';
import { ReplicationError } from './replication-error.ts';

const data = (offset: number, lengthBytes: number): DiskWrite => ({
  ...{ kind: 'data', offset, bytes: new Uint8Array(lengthBytes).fill(7) },
});
const zeros = (offset: number, lengthBytes: number): DiskWrite => ({
  ...{ kind: 'zero', offset, lengthBytes, mayPunch: false },
});

describe('writes to disks that another host sent', () => {
  it.each<{ why: string; bytes: Uint8Array }>([
    { why: 'overlap', bytes: encoded([data(0, 4096), data(4095, 10)]) },
    { why: 'are out of order', bytes: encoded([data(4096, 4096), data(0, 4096)]) },
    { why: 'are of no length', bytes: encoded([data(0, 0)]) },
    { why: 'reach beyond all numbers', bytes: encoded([zeros(Number.MAX_SAFE_INTEGER, 1)]) },
    { why: 'are of no known kind', bytes: withByte(encoded([zeros(0, 1)]), { at: 30, byte: 9 }) },
    { why: 'have bytes behind them', bytes: Buffer.concat([encoded([data(0, 9)]), Buffer.of(1)]) },
    { why: 'are of a name that is no text', bytes: withByte(encoded([zeros(0, 1)]), { at: 6, byte: 0xff }) },
    {
      why: 'promise more disks than there are',
      bytes: withByte(encoded([zeros(0, 1)]), { at: 3, byte: 0xff }),
    },
    {
      why: 'name a disk twice',
      bytes: Buffer.concat(
        encodeWrites([
          { disk: 'root', writes: [zeros(0, 1)] },
          { disk: 'root', writes: [zeros(4096, 1)] },
        ]),
      ),
    },
  ])('are refused when they $why', ({ bytes }) => {
    expect(() => decodeWrites(bytes)).toThrow(expect.objectContaining({ code: 'REPLICATION_EPOCH_CORRUPT' }));
  });

  it('are refused, or read, but nothing else, however they were cut or changed', () => {
    const whole = encoded([data(0, 20), zeros(4096, 4096), data(9000, 30)]);
    fc.assert(
      fc.property(fc.nat(whole.length), fc.nat(whole.length - 1), fc.nat(255), (endByte, at, byte) => {
        const bytes = withByte(whole, { at, byte }).subarray(0, endByte);
        try {
          decodeWrites(bytes);
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(ReplicationError);
        }
      }),
      { numRuns: 2000 },
    );
  });
});

function encoded(writes: readonly DiskWrite[]): Buffer {
  return Buffer.concat(encodeWrites([{ disk: 'root', writes }]));
}

function withByte(bytes: Uint8Array, { at, byte }: { at: number; byte: number }): Buffer {
  const changed = Buffer.from(bytes);
  changed[at] = byte;
  return changed;
}
