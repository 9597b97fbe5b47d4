import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { expect, onTestFinished, test } from 'vitest';
import { parseTraces, readTraces } from './trace-folder.ts';

const stepMs = 300_000;

test('a step without a line, or without a value in it, is missing', () => {
  const [first, second] = parseTraces('step,a,b\n0,1,5\n1,,6\n3,4,x\n', { file: 't.csv', stepMs });
  expect(first).toMatchObject({ name: 't/a', stepMs });
  expect([...(first?.values ?? [])]).toEqual([1, Number.NaN, Number.NaN, 4]);
  expect([...(second?.values ?? [])]).toEqual([5, 6, Number.NaN, Number.NaN]);
});

test('times are UTC and their median distance is the step', () => {
  const text =
    'timestamp,value\n2014-01-16 00:00:00,1\n2014-01-16 00:05:00,2\n2014-01-16 00:10:00,3\n2014-01-16 00:25:00,4\n';
  const [trace] = parseTraces(text, { file: 't.csv', stepMs: 1000 });
  expect(trace).toMatchObject({ stepMs, startMs: Date.UTC(2014, 0, 16) });
  expect([...(trace?.values ?? [])]).toEqual([1, 2, 3, Number.NaN, Number.NaN, 4]);
});

test('without a column of time each line is one step', () => {
  const [trace] = parseTraces('a\n7\n8\n', { file: 't.csv', stepMs: 10_000 });
  expect(trace).toMatchObject({ stepMs: 10_000, values: new Float64Array([7, 8]) });
});

test('a time that is none is refused with its file and line', () => {
  expect(() => parseTraces('timestamp,a\n1,2\nnever,3\n', { file: 't.csv', stepMs })).toThrow(
    "t.csv, line 3: 'never' is no timestamp",
  );
});

test('packed files are read, a single one too, and a folder without any is refused', () => {
  const folder = mkdtempSync(join(tmpdir(), 'us-traces-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  expect(() => readTraces(folder, { stepMs })).toThrow('there is no .csv');
  writeFileSync(join(folder, 'x.csv.gz'), gzipSync('step,a\n0,1\n'));
  expect(readTraces(join(folder, 'x.csv.gz'), { stepMs })).toHaveLength(1);
  expect(readTraces(folder, { stepMs })).toMatchObject([{ name: 'x/a', values: new Float64Array([1]) }]);
});
