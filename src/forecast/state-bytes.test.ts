import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ForecastError } from './forecast-error.ts';
import { StateReader, StateWriter } from './state-bytes.ts';

function written(): Uint8Array {
  const writer = new StateWriter(3);
  writer.text('größe');
  writer.float64(Number.NaN);
  writer.uint32(7);
  writer.float32s(Float32Array.of(1.5, Number.NEGATIVE_INFINITY));
  writer.bytes(Uint8Array.of(1, 2, 3));
  return writer.finish();
}

describe('a saved state', () => {
  it('is read as it was written', () => {
    const reader = new StateReader(written(), 3);
    expect(reader.text()).toBe('größe');
    expect(reader.float64()).toBeNaN();
    expect(reader.uint32()).toBe(7);
    expect(reader.float32s()).toEqual(Float32Array.of(1.5, Number.NEGATIVE_INFINITY));
    expect(reader.bytes()).toEqual(Uint8Array.of(1, 2, 3));
    expect(() => reader.uint32()).toThrow(ForecastError);
  });

  it('is noticed to be damaged wherever a bit is flipped or it is cut', () => {
    const bytes = written();
    fc.assert(
      fc.property(fc.nat(bytes.length * 8 - 1), (bit) => {
        const flipped = bytes.slice();
        flipped[bit >> 3] = (flipped[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        expect(() => new StateReader(flipped, 3)).toThrow(ForecastError);
      }),
    );
    for (let length = 0; length < bytes.length; length += 1)
      expect(() => new StateReader(bytes.subarray(0, length), 3)).toThrow(ForecastError);
  });

  it('of another version is refused by name of both', () => {
    expect(() => new StateReader(written(), 4)).toThrow(/version 3, not 4/);
  });
});
