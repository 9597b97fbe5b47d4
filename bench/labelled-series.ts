import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { messageOf } from '../src/base/errors.ts';
import { BenchError } from './bench-error.ts';
import type { LabelledWindow } from './nab-score.ts';
import { timestampMs } from './trace-folder.ts';

/** A series and where it is known not to be as usual. Row for row as its file has it, as NAB counts them. */
export interface LabelledSeries {
  readonly name: string;
  readonly stepMs: number;
  /** Unix time in ms. */
  readonly startsMs: readonly number[];
  /** NaN where a row has no value. */
  readonly values: readonly number[];
  readonly windows: readonly LabelledWindow[];
}

const WINDOWS_FILE = 'windows.json';
const windowsSchema = z.record(z.string(), z.array(z.tuple([z.string(), z.string()])));

/** The series that `windows.json` of a folder names (file → list of [start, end]), from files with `timestamp` and `value`. */
export function readLabelledSeries(folder: string): LabelledSeries[] {
  const labels = readWindows(folder);
  if (Object.keys(labels).length === 0) throw unusable(`${WINDOWS_FILE} in ${folder} names no file`);
  if (Object.values(labels).every((windows) => windows.length === 0))
    throw unusable(`${WINDOWS_FILE} in ${folder} has no windows: there is nothing to find`);
  return Object.entries(labels).map(([file, windows]) => {
    let text: string;
    try {
      text = readFileSync(join(folder, file), 'utf8');
    } catch (cause) {
      throw unusable(`${WINDOWS_FILE} names ${file}, which cannot be read: ${messageOf(cause)}`);
    }
    return parseLabelledSeries(text, { file, windows });
  });
}

interface ParseOptions {
  readonly file: string;
  readonly windows: readonly (readonly [string, string])[];
}

export function parseLabelledSeries(text: string, { file, windows }: ParseOptions): LabelledSeries {
  const [head = '', ...lines] = text.split(/\r?\n/).filter((line) => line.trim() !== '');
  const columns = head.split(',').map((name) => name.trim());
  const timeColumn = columns.indexOf('timestamp');
  const valueColumn = columns.indexOf('value');
  if (timeColumn < 0 || valueColumn < 0) throw unusable(`${file} has no columns "timestamp" and "value"`);
  const rows = lines.map((line) => line.split(','));
  const startsMs = rows.map((cells, row) => {
    const timeMs = timestampMs(cells[timeColumn]?.trim() ?? '');
    if (Number.isFinite(timeMs)) return timeMs;
    throw unusable(`${file}, line ${row + 2}: '${cells[timeColumn] ?? ''}' is no timestamp`);
  });
  const values = rows.map((cells) => {
    const cell = cells[valueColumn]?.trim() ?? '';
    return cell === '' ? Number.NaN : Number(cell);
  });
  const labelled = windows.map((window) => windowOf(window, { file, startsMs }));
  labelled.sort((a, b) => a.first - b.first);
  for (const [index, window] of labelled.entries())
    if (window.first <= (labelled[index - 1]?.last ?? -1)) throw unusable(`windows of ${file} overlap`);
  return { name: file, stepMs: medianStep(startsMs), startsMs, values, windows: labelled };
}

function windowOf(
  [start, end]: readonly [string, string],
  { file, startsMs }: { readonly file: string; readonly startsMs: readonly number[] },
): LabelledWindow {
  const startMs = timestampMs(start);
  const endMs = timestampMs(end);
  const first = startsMs.findIndex((timeMs) => timeMs >= startMs);
  const last = startsMs.findLastIndex((timeMs) => timeMs <= endMs);
  if (first >= 0 && last >= first) return { first, last };
  throw unusable(`the window ${start} to ${end} of ${file} holds none of its rows`);
}

function medianStep(startsMs: readonly number[]): number {
  const steps = startsMs
    .slice(1)
    .map((timeMs, index) => timeMs - (startsMs[index] ?? timeMs))
    .filter((stepMs) => stepMs > 0)
    .sort((a, b) => a - b);
  return steps[Math.floor(steps.length / 2)] ?? 1;
}

function readWindows(folder: string): z.infer<typeof windowsSchema> {
  const path = join(folder, WINDOWS_FILE);
  try {
    return windowsSchema.parse(JSON.parse(readFileSync(path, 'utf8')));
  } catch (cause) {
    const what = cause instanceof z.ZodError ? z.prettifyError(cause) : messageOf(cause);
    throw unusable(`cannot use ${path}: ${what}`);
  }
}

function unusable(message: string): BenchError {
  return new BenchError('BENCH_USAGE', message, {
    hint: `A folder with ${WINDOWS_FILE}, an object of file names, each with a list of [start, end], and these CSV files with the columns "timestamp" and "value".`,
  });
}
