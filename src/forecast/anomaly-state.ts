import { z } from 'zod';
import { AnomalySigns, WINDOW_STEPS } from './anomaly-signs.ts';
import { ANOMALY_KINDS } from './anomaly-verdict.ts';

const VERSION = 1;
const HEAD_BYTES = 8;
/** Over so many steps a detector looks whether what is rare lasts: an hour of steps of 5 min. */
export const LASTING_STEPS = 12;

const number = z.number();
const count = z.number().nonnegative();
const runSchema = z.strictObject({ run: count, longest: count, isKnown: z.boolean() });
const episodeSchema = z.strictObject({
  kind: z.enum(ANOMALY_KINDS),
  reason: z.string(),
  sinceMs: number,
  steps: count,
  score: count,
});

/** What a detector knows beside what its signs do. */
export const progressSchema = z.strictObject({
  lastMs: number.nullable(),
  late: count,
  values: count,
  peak: count,
  /** Rarities of the last steps. */
  recent: z.array(count).max(LASTING_STEPS),
  calmSteps: count,
  isArmed: z.boolean(),
  episode: episodeSchema.optional(),
});

export type AnomalyProgress = z.infer<typeof progressSchema>;

const stateSchema = z.strictObject({
  progress: progressSchema,
  kept: z.strictObject({
    ...{ last: number, largest: count, high: number, low: number, changes: count },
    ...{ median: number, scale: count },
  }),
  same: runSchema,
  missing: runSchema,
  totals: z.array(count),
  day: number,
  days: count,
  slot: z.int().min(0).max(23),
});

/** Some kilobytes: a version, the length of a JSON object, that object, and arrays in the byte order of this machine. */
export function saveAnomalyState(signs: AnomalySigns, progress: AnomalyProgress): Uint8Array {
  const { kept, same, missing, envelope, histograms } = signs;
  const state: z.infer<typeof stateSchema> = {
    progress,
    kept: { ...kept },
    same: { run: same.run, longest: same.longest, isKnown: same.isKnown },
    missing: { run: missing.run, longest: missing.longest, isKnown: missing.isKnown },
    totals: histograms.map(({ total }) => total),
    day: envelope.day,
    days: envelope.days,
    slot: envelope.slot,
  };
  const json = Buffer.from(JSON.stringify(state));
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt32LE(VERSION, 0);
  head.writeUInt32LE(json.length, 4);
  const arrays = [...singles(signs), signs.window.values()];
  return Buffer.concat([
    head,
    json,
    ...arrays.map(({ buffer, byteOffset, byteLength }) => Buffer.from(buffer, byteOffset, byteLength)),
  ]);
}

/** Undefined where the bytes are not such a state, whole and of this version: then a detector begins anew. */
export function restoreAnomalyState(
  bytes: Uint8Array,
): { readonly signs: AnomalySigns; readonly progress: AnomalyProgress } | undefined {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (buffer.length < HEAD_BYTES || buffer.readUInt32LE(0) !== VERSION) return undefined;
  const arraysAt = HEAD_BYTES + buffer.readUInt32LE(4);
  const parsed = stateSchema.safeParse(parsedJson(buffer.subarray(HEAD_BYTES, arraysAt)));
  if (!parsed.success) return undefined;
  const signs = new AnomalySigns();
  const { progress, kept, same, missing, totals, day, days, slot } = parsed.data;
  const singlesBytes = singles(signs).reduce((sum, { byteLength }) => sum + byteLength, 0);
  const windowBytes = buffer.length - arraysAt - singlesBytes;
  const values = windowBytes / Float64Array.BYTES_PER_ELEMENT;
  if (!Number.isInteger(values) || values < 0 || values > WINDOW_STEPS) return undefined;
  if (totals.length !== signs.histograms.length) return undefined;

  // A copy: what was given need not begin where a number may begin.
  const arrays = new Uint8Array(buffer.subarray(arraysAt)).buffer;
  let at = 0;
  for (const target of singles(signs)) {
    target.set(new Float32Array(arrays, at, target.length));
    if (!target.every((value) => value >= 0 && Number.isFinite(value))) return undefined;
    at += target.byteLength;
  }
  const window = new Float64Array(arrays.slice(at));
  if (!window.every(Number.isFinite)) return undefined;
  signs.restoreWindows(window);
  for (const [index, histogram] of signs.histograms.entries()) histogram.total = totals[index] ?? 0;
  Object.assign(signs.kept, kept);
  Object.assign(signs.same, same);
  Object.assign(signs.missing, missing);
  Object.assign(signs.envelope, { day, days, slot });
  return { signs, progress };
}

function singles({ histograms, envelope }: AnomalySigns): Float32Array[] {
  return [...histograms.map(({ counts }) => counts), envelope.largest];
}

function parsedJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    return undefined;
  }
}
