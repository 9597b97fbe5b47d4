import { readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { messageOf } from '../src/base/errors.ts';
import { BenchError } from './bench-error.ts';

/** One column of a trace: a value per step, NaN where it is missing. */
export interface Trace {
  /** The file without its ending, then the column: `cpu-avg/vm007`. */
  readonly name: string;
  readonly file: string;
  readonly stepMs: number;
  /** Of the first step: Unix time in ms. Traces without times begin on a Monday at midnight, UTC. */
  readonly startMs: number;
  readonly values: Float64Array;
}

export interface TraceOptions {
  /** Of traces without timestamps: between one step and the next. */
  readonly stepMs: number;
}

const ENDING = /\.csv(\.gz)?$/;
const MONDAY_MS = Date.UTC(2018, 0, 1);
/** A gap in the timestamps must not become an array of billions. */
const STEPS_MAX = 5_000_000;

/**
 * All columns of all CSV files directly in a folder, by name, or of one file. The first line names the columns. `timestamp` (Unix seconds,
 * or a date; UTC where it has no zone) or `step` (a count) says when a line was; without both, each line is one step.
 * The distance of timestamps is their median; a step without a line is NaN, of several lines in one step the last counts.
 */
export function readTraces(folder: string, options: TraceOptions): Trace[] {
  return pathsIn(folder).flatMap((path) => {
    const bytes = readFileSync(path);
    const text = (path.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString('utf8');
    return parseTraces(text, { file: basename(path), ...options });
  });
}

function pathsIn(folder: string): string[] {
  let names: string[];
  try {
    if (statSync(folder).isFile()) return [folder];
    names = readdirSync(folder).filter((name) => ENDING.test(name));
  } catch (cause) {
    throw unusable(`cannot read ${folder}: ${messageOf(cause)}`);
  }
  if (names.length === 0) throw unusable(`there is no .csv and no .csv.gz in ${folder}`);
  return names.sort().map((name) => join(folder, name));
}

export function parseTraces(
  text: string,
  { file, stepMs }: TraceOptions & { readonly file: string },
): Trace[] {
  const [head = '', ...lines] = text.split(/\r?\n/).filter((line) => line.trim() !== '');
  const columns = head.split(',').map((name) => name.trim());
  const timeColumn = columns.findIndex((name) => name === 'timestamp' || name === 'step');
  const rows = lines.map((line) => line.split(','));
  const { starts, step } = timesOf(rows, { file, stepMs, timeColumn, unit: columns[timeColumn] });
  const firstMs = starts.reduce((least, start) => Math.min(least, start), Number.POSITIVE_INFINITY);
  const lastMs = starts.reduce((most, start) => Math.max(most, start), Number.NEGATIVE_INFINITY);
  const length = rows.length === 0 ? 0 : Math.round((lastMs - firstMs) / step) + 1;
  if (length > STEPS_MAX) throw unusable(`${file}: ${length} steps, more than ${STEPS_MAX}`);
  const stem = basename(file).replace(ENDING, '');
  return columns.flatMap((column, index) => {
    if (index === timeColumn) return [];
    const values = new Float64Array(length).fill(Number.NaN);
    for (const [row, cells] of rows.entries()) {
      const cell = cells[index]?.trim() ?? '';
      const at = Math.round(((starts[row] ?? firstMs) - firstMs) / step);
      if (cell !== '' && Number.isFinite(Number(cell))) values[at] = Number(cell);
    }
    return [{ name: `${stem}/${column}`, file, stepMs: step, startMs: firstMs, values }];
  });
}

interface TimeOptions extends TraceOptions {
  readonly file: string;
  readonly timeColumn: number;
  readonly unit: string | undefined;
}

function timesOf(
  rows: readonly (readonly string[])[],
  { file, stepMs, timeColumn, unit }: TimeOptions,
): { readonly starts: readonly number[]; readonly step: number } {
  const starts = rows.map((cells, index) => {
    if (unit === undefined) return MONDAY_MS + index * stepMs;
    const cell = cells[timeColumn]?.trim() ?? '';
    const time = unit === 'step' ? MONDAY_MS + Number(cell) * stepMs : timestampMs(cell);
    if (cell !== '' && Number.isFinite(time)) return time;
    throw unusable(`${file}, line ${index + 2}: '${cell}' is no ${unit}`);
  });
  if (unit !== 'timestamp') return { starts, step: stepMs };
  const distances = starts
    .slice(1)
    .map((start, index) => start - (starts[index] ?? start))
    .filter((distance) => distance > 0)
    .sort((a, b) => a - b);
  return { starts, step: distances[Math.floor(distances.length / 2)] ?? stepMs };
}

/** Unix seconds, or a date: UTC where it has no zone. Unix time in ms, NaN where it is neither. */
export function timestampMs(cell: string): number {
  if (/^\d+(\.\d+)?$/.test(cell)) return Number(cell) * 1000;
  const hasZone = /(Z|[+-]\d\d:?\d\d)$/.test(cell);
  return Date.parse(hasZone ? cell : `${cell.replace(' ', 'T')}Z`);
}

function unusable(message: string): BenchError {
  return new BenchError('BENCH_USAGE', message, {
    hint: 'A folder of CSV files: a first line of names, a column "timestamp" or "step", one column per series.',
  });
}
