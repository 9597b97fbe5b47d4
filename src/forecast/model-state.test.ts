import { expect, it } from 'vitest';
import { readState, writeState } from './model-state.ts';

const exact = () => ({ values: new Float64Array(4) });
const compact = () => ({ values: new Float64Array(4), compact: true });

it('exact numbers come back as they were, compact ones nearly, NaN as NaN, of any size', () => {
  const numbers = [1 / 3, Number.NaN, -1e100, 1e-300];
  const written = [
    { values: Float64Array.from(numbers) },
    { values: Float64Array.from(numbers), compact: true },
  ];
  const read = [exact(), compact()];
  expect(readState(writeState(written), read)).toBe(true);
  expect([...(read[0]?.values ?? [])]).toEqual(numbers);
  expect(read[1]?.values[1]).toBeNaN();
  expect((read[1]?.values[2] ?? 0) / -1e100).toBeCloseTo(1, 6);
});

it('bytes of another length, and infinite numbers, are refused', () => {
  const bytes = writeState([exact()]);
  expect(readState(bytes, [exact(), compact()])).toBe(false);
  expect(readState(bytes, [compact()])).toBe(false);
  new DataView(bytes.buffer).setFloat64(8, Number.NEGATIVE_INFINITY, true);
  expect(readState(bytes, [exact()])).toBe(false);
});

it('a view into a larger buffer is read where it begins', () => {
  const bytes = writeState([{ values: Float64Array.of(1, 2, 3, 4) }]);
  const larger = new Uint8Array(bytes.length + 3);
  larger.set(bytes, 3);
  const part = exact();
  expect(readState(larger.subarray(3), [part])).toBe(true);
  expect([...part.values]).toEqual([1, 2, 3, 4]);
});
