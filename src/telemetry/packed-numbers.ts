import { assert } from '../base/assert.ts';
import { TelemetryError } from './telemetry-error.ts';

const FIRST_BYTES = 256;
const DOUBLE_BYTES = 8;

const double = new Float64Array(1);
const doubleBytes = new Uint8Array(double.buffer);

/** Writes numbers into as few bytes as they need; little-endian. One lives as long as its buffer is of use: `reset`. */
export class NumberWriter {
  #bytes = new Uint8Array(FIRST_BYTES);
  #at = 0;

  reset(): void {
    this.#at = 0;
  }

  /** A copy. */
  bytes(): Uint8Array {
    return this.#bytes.slice(0, this.#at);
  }

  /** LEB128: 7 bits a byte, the lowest first. */
  unsigned(value: number): void {
    assert(Number.isSafeInteger(value) && value >= 0, `${value} is no count`);
    this.#reserve(DOUBLE_BYTES);
    let rest = value;
    while (rest >= 0x80) {
      this.#bytes[this.#at++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    this.#bytes[this.#at++] = rest;
  }

  /** Zigzag: small numbers stay small whatever their sign. */
  signed(value: number): void {
    this.unsigned(value >= 0 ? value * 2 : -value * 2 - 1);
  }

  /**
   * Each by the bytes in which it differs from the one before, as Facebook's Gorilla does by bits (Pelkonen et al., VLDB 2015,
   * section 4.1.2): one byte where nothing changed, nine at most.
   */
  doubles(values: Iterable<number>): void {
    const before = new Uint8Array(DOUBLE_BYTES);
    for (const value of values) {
      this.#reserve(DOUBLE_BYTES + 1);
      double[0] = value;
      let low = 0;
      while (low < DOUBLE_BYTES && before[low] === doubleBytes[low]) low += 1;
      let high = DOUBLE_BYTES;
      while (high > low && before[high - 1] === doubleBytes[high - 1]) high -= 1;
      this.#bytes[this.#at++] = (low << 4) | (high - low);
      for (let index = low; index < high; index += 1) {
        this.#bytes[this.#at++] = doubleBytes[index] ?? 0;
        before[index] = doubleBytes[index] ?? 0;
      }
    }
  }

  #reserve(count: number): void {
    if (this.#at + count <= this.#bytes.length) return;
    const larger = new Uint8Array(this.#bytes.length * 2);
    larger.set(this.#bytes);
    this.#bytes = larger;
  }
}

/** Reads what a {@link NumberWriter} wrote. Throws TelemetryError TELEMETRY_STORE_CORRUPT where it cannot be that. */
export class NumberReader {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  unsigned(): number {
    let value = 0;
    for (let factor = 1; ; factor *= 0x80) {
      const byte = this.#byte();
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
  }

  signed(): number {
    const value = this.unsigned();
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
  }

  doubles(count: number): number[] {
    const values: number[] = [];
    doubleBytes.fill(0);
    for (let read = 0; read < count; read += 1) {
      const head = this.#byte();
      const low = head >> 4;
      const high = low + (head & 0xf);
      if (high > DOUBLE_BYTES) throw damaged();
      for (let index = low; index < high; index += 1) doubleBytes[index] = this.#byte();
      values.push(double[0] ?? 0);
    }
    return values;
  }

  #byte(): number {
    const byte = this.#bytes[this.#at++];
    if (byte === undefined) throw damaged();
    return byte;
  }
}

function damaged(): TelemetryError {
  return new TelemetryError('TELEMETRY_STORE_CORRUPT', 'a row of the series store is damaged', {
    hint: 'Check the disk. What can be read is still used.',
  });
}
