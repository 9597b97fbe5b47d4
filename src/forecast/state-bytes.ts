import { crc32 } from 'node:zlib';
import { ForecastError } from './forecast-error.ts';

const MAGIC = 0x55_53_46_31;
const HEAD_BYTES = 8;
const SUM_BYTES = 4;

/** Bytes of a state: a mark, a version, values one after the other, and a checksum over all of it. Little endian. */
export class StateWriter {
  #bytes = new Uint8Array(4096);
  #view = new DataView(this.#bytes.buffer);
  #size = 0;

  constructor(version: number) {
    this.uint32(MAGIC);
    this.uint32(version);
  }

  uint32(value: number): void {
    this.#reserve(4);
    this.#view.setUint32(this.#size, value, true);
    this.#size += 4;
  }

  float64(value: number): void {
    this.#reserve(8);
    this.#view.setFloat64(this.#size, value, true);
    this.#size += 8;
  }

  text(value: string): void {
    this.bytes(new TextEncoder().encode(value));
  }

  bytes(value: Uint8Array): void {
    this.uint32(value.length);
    this.#reserve(value.length);
    this.#bytes.set(value, this.#size);
    this.#size += value.length;
  }

  float32s(values: Float32Array): void {
    this.uint32(values.length);
    this.#reserve(4 * values.length);
    for (let index = 0; index < values.length; index += 1) {
      this.#view.setFloat32(this.#size, values[index] ?? 0, true);
      this.#size += 4;
    }
  }

  /** All of it, with its checksum. */
  finish(): Uint8Array {
    this.uint32(crc32(this.#bytes.subarray(0, this.#size)));
    return this.#bytes.slice(0, this.#size);
  }

  #reserve(more: number): void {
    if (this.#size + more <= this.#bytes.length) return;
    const grown = new Uint8Array(Math.max(2 * this.#bytes.length, this.#size + more));
    grown.set(this.#bytes);
    this.#bytes = grown;
    this.#view = new DataView(grown.buffer);
  }
}

/** Reads what {@link StateWriter} wrote. Throws FORECAST_STATE_INVALID for all else. */
export class StateReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #at = 0;

  constructor(bytes: Uint8Array, version: number) {
    if (bytes.length < HEAD_BYTES + SUM_BYTES) throw invalid('it is too short');
    const end = bytes.length - SUM_BYTES;
    this.#bytes = bytes.subarray(0, end);
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (this.#view.getUint32(end, true) !== crc32(this.#bytes)) throw invalid('its checksum does not fit');
    if (this.uint32() !== MAGIC) throw invalid('it is something else');
    const written = this.uint32();
    if (written !== version) throw invalid(`it is of version ${written}, not ${version}`);
  }

  uint32(): number {
    return this.#view.getUint32(this.#take(4), true);
  }

  float64(): number {
    return this.#view.getFloat64(this.#take(8), true);
  }

  text(): string {
    return new TextDecoder().decode(this.bytes());
  }

  bytes(): Uint8Array {
    const length = this.uint32();
    const from = this.#take(length);
    return this.#bytes.slice(from, from + length);
  }

  /** A number of items that cannot be more than `most`. */
  countUpTo(most: number): number {
    const count = this.uint32();
    if (count > most) throw invalid(`it claims to have ${count} parts`);
    return count;
  }

  float32s(): Float32Array {
    const length = this.uint32();
    const from = this.#take(4 * length);
    const values = new Float32Array(length);
    for (let index = 0; index < length; index += 1)
      values[index] = this.#view.getFloat32(from + 4 * index, true);
    return values;
  }

  #take(bytes: number): number {
    const from = this.#at;
    if (from + bytes > this.#bytes.length) throw invalid('it ends too early');
    this.#at += bytes;
    return from;
  }
}

function invalid(why: string): ForecastError {
  return new ForecastError('FORECAST_STATE_INVALID', `what a forecast has learnt cannot be read: ${why}`, {
    hint: 'The forecast begins anew and is as good as before after some days.',
  });
}
