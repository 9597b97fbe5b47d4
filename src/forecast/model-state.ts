/** Numbers that a model has learnt. They stay where they are: `readState` fills them. */
export interface StatePart {
  readonly values: Float64Array;
  /** Whether seven digits of the largest are enough: half of the bytes. */
  readonly compact?: boolean;
}

/**
 * Parts one after the other, little endian: of an exact one doubles; of a compact one a double, the largest magnitude, and
 * floats in units of that. NaN is written as what it is.
 */
export function writeState(parts: readonly StatePart[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + bytesOf(part), 0));
  const view = new DataView(bytes.buffer);
  let offset = 0;
  for (const { values, compact } of parts) {
    const unit = compact ? largestOf(values) : 1;
    if (compact) {
      view.setFloat64(offset, unit, true);
      offset += 8;
    }
    for (const value of values) {
      if (compact) view.setFloat32(offset, value / unit, true);
      else view.setFloat64(offset, value, true);
      offset += compact ? 4 : 8;
    }
  }
  return bytes;
}

/** False where these bytes are no such parts: their length differs, or a number is infinite. Then parts mean nothing. */
export function readState(bytes: Uint8Array, parts: readonly StatePart[]): boolean {
  if (bytes.byteLength !== parts.reduce((sum, part) => sum + bytesOf(part), 0)) return false;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let offset = 0;
  for (const { values, compact } of parts) {
    const unit = compact ? view.getFloat64(offset, true) : 1;
    if (compact) offset += 8;
    if (!Number.isFinite(unit)) return false;
    for (let index = 0; index < values.length; index += 1) {
      const value = compact ? view.getFloat32(offset, true) * unit : view.getFloat64(offset, true);
      if (Math.abs(value) === Number.POSITIVE_INFINITY) return false;
      values[index] = value;
      offset += compact ? 4 : 8;
    }
  }
  return true;
}

function bytesOf({ values, compact }: StatePart): number {
  return compact ? 8 + 4 * values.length : 8 * values.length;
}

function largestOf(values: Float64Array): number {
  let largest = 0;
  for (const value of values) if (Math.abs(value) > largest) largest = Math.abs(value);
  return largest > 0 ? largest : 1;
}
