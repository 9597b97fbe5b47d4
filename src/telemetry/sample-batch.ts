import { assert } from '../base/assert.ts';
import type { Sample } from './sample.ts';
import { TelemetryError } from './telemetry-error.ts';

const NAME_LENGTH_MAX = 255;
const HEADER_BYTES = 12;
const SAMPLE_BYTES = 16;
const VALUE_BYTES = 12;

/** Takes one value of a batch. */
type BatchEntry = (vm: string, metric: string, wallMs: number, value: number) => void;

/**
 * Samples as they are sent between threads and lie on disk, little-endian: count of values, bytes of the names, count of samples; names as JSON;
 * then for each sample the numbers of its VM and of its values, and its wall time, followed by number of the
 * metric and value for each. Many samples have the same names, so each name is there once.
 * @throws TelemetryError TELEMETRY_SAMPLE_INVALID
 */
export function packBatch(samples: readonly Sample[]): Uint8Array<ArrayBuffer> {
  const names = new Map<string, number>();
  const numberOf = (name: string) => {
    const known = names.get(name);
    if (known !== undefined) return known;
    assertName(name);
    names.set(name, names.size);
    return names.size - 1;
  };
  let valueCount = 0;
  for (const { vm, wallMs, values } of samples) {
    numberOf(vm);
    if (!Number.isSafeInteger(Math.round(wallMs)) || wallMs < 0)
      throw invalid('a sample has no moment', { vm, wallMs: String(wallMs) });
    for (const metric in values) {
      const value = values[metric];
      if (!Number.isFinite(value))
        throw invalid('a value is no number', { vm, metric, value: String(value) });
      numberOf(metric);
      valueCount += 1;
    }
  }
  const text = Buffer.from(JSON.stringify([...names.keys()]));
  const bodyAt = HEADER_BYTES + text.length;
  const bytes = new Uint8Array(bodyAt + samples.length * SAMPLE_BYTES + valueCount * VALUE_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, valueCount, true);
  view.setUint32(4, text.length, true);
  view.setUint32(8, samples.length, true);
  bytes.set(text, HEADER_BYTES);
  let at = bodyAt;
  for (const { vm, wallMs, values } of samples) {
    view.setUint32(at, names.get(vm) ?? 0, true);
    const countAt = at + 4;
    view.setFloat64(at + 8, Math.round(wallMs), true);
    at += SAMPLE_BYTES;
    let count = 0;
    for (const metric in values) {
      view.setUint32(at, names.get(metric) ?? 0, true);
      view.setFloat64(at + 4, values[metric] ?? 0, true);
      at += VALUE_BYTES;
      count += 1;
    }
    view.setUint32(countAt, count, true);
  }
  assert(at === bytes.length, 'a batch is as long as was counted');
  return bytes;
}

/** How many values are in a batch. */
export function batchCount(bytes: Uint8Array): number {
  return viewOf(bytes).getUint32(0, true);
}

/** Calls `entry` for each value. */
export function unpackBatch(bytes: Uint8Array, entry: BatchEntry): void {
  const view = viewOf(bytes);
  const textLength = view.getUint32(4, true);
  const sampleCount = view.getUint32(8, true);
  let at = HEADER_BYTES + textLength;
  const text = Buffer.from(bytes.buffer, bytes.byteOffset + HEADER_BYTES, textLength).toString();
  const names = JSON.parse(text) as string[];
  for (let sample = 0; sample < sampleCount; sample += 1) {
    const vm = names[view.getUint32(at, true)] ?? '';
    const count = view.getUint32(at + 4, true);
    const wallMs = view.getFloat64(at + 8, true);
    at += SAMPLE_BYTES;
    for (let read = 0; read < count; read += 1) {
      entry(vm, names[view.getUint32(at, true)] ?? '', wallMs, view.getFloat64(at + 4, true));
      at += VALUE_BYTES;
    }
  }
}

/** Any text may be a name: guests have a say in some of them. But it has to be text, and to end. */
export function assertName(name: string): void {
  if (name !== '' && name.length <= NAME_LENGTH_MAX && name.isWellFormed() && !name.includes('\0')) return;
  throw invalid('a name is empty, too long or no text', { name: JSON.stringify(name).slice(0, 300) });
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function invalid(what: string, facts: Readonly<Record<string, unknown>>): TelemetryError {
  return new TelemetryError('TELEMETRY_SAMPLE_INVALID', `${what}: ${JSON.stringify(facts)}`, {
    hint: 'This is a bug of the sampler that made it: please report it.',
    facts,
  });
}
