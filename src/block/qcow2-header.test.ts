import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { GIB } from '../base/units.ts';
import { qcow2Bytes } from './image-fixture.ts';
import { readQcow2Header } from './qcow2-header.ts';

describe('the header of a qcow2 image', () => {
  it('tells the size of the disk, what it stands on, and what stands against using it', () => {
    expect(readQcow2Header(qcow2Bytes({ sizeBytes: 7 * GIB }))).toEqual({
      sizeBytes: 7 * GIB,
      backingFile: undefined,
      encrypted: false,
      hasDataFile: false,
      corrupt: false,
    });
    const odd = qcow2Bytes({ backingFile: '/etc/shadow', incompatible: 0b110n, encryption: 2 });
    expect(readQcow2Header(odd)).toMatchObject({
      backingFile: '/etc/shadow',
      encrypted: true,
      hasDataFile: true,
      corrupt: true,
    });
    expect(readQcow2Header(qcow2Bytes({ version: 2, backingFile: 'a' }))).toMatchObject({ backingFile: 'a' });
    expect(readQcow2Header(qcow2Bytes({ backingFile: 'garbled' }))).toMatchObject({ backingFile: 'garbled' });
  });

  it('is none where it is cut short, of another version, or has features that QEMU 7.2 does not know', () => {
    expect(readQcow2Header(qcow2Bytes({}).subarray(0, 90))).toBeUndefined();
    expect(readQcow2Header(qcow2Bytes({ version: 4 }))).toBeUndefined();
    expect(readQcow2Header(qcow2Bytes({ incompatible: 1n << 40n }))).toBeUndefined();
    expect(readQcow2Header(qcow2Bytes({ sizeBytes: 2n ** 63n }))).toBeUndefined();
    expect(readQcow2Header(Buffer.from('no image at all'))).toBeUndefined();
  });

  it('that was made by a stranger is read or refused, whatever is in it', () => {
    const valid = qcow2Bytes({ backingFile: 'base.raw' });
    const edit = fc.tuple(fc.nat(valid.length - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(edit, { maxLength: 40 }), fc.nat(valid.length), (edits, length) => {
        const bytes = Buffer.from(valid.subarray(0, length));
        for (const [at, value] of edits) if (at < length) bytes[at] = value;
        const header = readQcow2Header(bytes);
        if (header !== undefined) expect(Number.isSafeInteger(header.sizeBytes)).toBe(true);
      }),
      { numRuns: 2000 },
    );
  });
});
