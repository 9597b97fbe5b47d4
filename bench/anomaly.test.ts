import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { systemClock } from '../src/base/clock.ts';
import { alarmFigures } from './alarm-figures.ts';
import { anomaly } from './anomaly.ts';
import { ANOMALY_BASELINES, upperTail } from './anomaly-baselines.ts';
import { BenchRun } from './harness.ts';
import { parseLabelledSeries, readLabelledSeries } from './labelled-series.ts';
import { labelledWorkloads } from './labelled-workloads.ts';

function folderOf(files: Readonly<Record<string, string>>): string {
  const folder = mkdtempSync(join(tmpdir(), 'us-labels-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  return folder;
}

async function figuresOf(traces: string | undefined) {
  const run = new BenchRun(anomaly, {
    quick: false,
    kills: undefined,
    traces,
    stepMs: 300_000,
    clock: systemClock,
    signal: new AbortController().signal,
    onProgress: () => {},
  });
  await anomaly.run(run);
  const machine = { cpu: 'a CPU', cores: 2, kernel: '6', memoryMiB: 1, loadBefore: 0 };
  return run.result(machine, { node: '24', qemu: '7', understudy: 'a' });
}

const CSV = `timestamp,value
2014-02-14 14:30:00,1
2014-02-14 14:35:00,2
2014-02-14 14:35:00,
2014-02-14 14:40:00,4
`;

const WINDOWS = '{"a.csv": [["2014-02-14 14:34:00.000000", "2014-02-14 14:35:00.000000"]]}';

describe('labelled series', () => {
  it('are read row for row, with the rows that lie within each window', () => {
    const [series] = readLabelledSeries(folderOf({ 'a.csv': CSV, 'windows.json': WINDOWS }));
    expect(series).toMatchObject({
      name: 'a.csv',
      stepMs: 300_000,
      values: [1, 2, Number.NaN, 4],
      windows: [{ first: 1, last: 2 }],
    });
    expect(series?.startsMs[0]).toBe(Date.UTC(2014, 1, 14, 14, 30));
  });

  it.each([
    ['no windows.json', {}, 'windows.json: ENOENT'],
    ['one that is no JSON', { 'windows.json': '{' }, 'cannot use'],
    ['one of another shape', { 'windows.json': '{"a.csv": [["2014-01-01"]]}' }, 'cannot use'],
    ['one that names nothing', { 'windows.json': '{}' }, 'names no file'],
    ['one without windows', { 'windows.json': '{"a.csv": []}', 'a.csv': CSV }, 'nothing to find'],
    ['a missing file', { 'windows.json': WINDOWS }, 'names a.csv, which cannot be read'],
    ['a file without values', { 'windows.json': WINDOWS, 'a.csv': 'step,b\n1,2\n' }, 'no columns'],
    [
      'a window beside the series',
      { 'windows.json': '{"a.csv": [["2015-01-01", "2015-01-02"]]}', 'a.csv': CSV },
      'holds none of its rows',
    ],
    [
      'windows that overlap',
      {
        'windows.json':
          '{"a.csv": [["2014-02-14 14:30", "2014-02-14 14:35"], ["2014-02-14 14:35", "2014-02-14 14:40"]]}',
        'a.csv': CSV,
      },
      'overlap',
    ],
  ])('are refused with what is wrong: %s', (_, files, message) => {
    expect(() => readLabelledSeries(folderOf(files as Record<string, string>))).toThrow(message);
  });

  it('are refused with the line of a time that is none', () => {
    const text = 'timestamp,value\n2014-02-14,1\nsoon,2\n';
    expect(() => parseLabelledSeries(text, { file: 'a.csv', windows: [] })).toThrow("a.csv, line 3: 'soon'");
  });
});

describe('the figures of alarms', () => {
  const startsMs = Array.from({ length: 1000 }, (_, row) => row * 300_000);
  const windows = [
    { first: 300, last: 399 },
    { first: 700, last: 799 },
  ];

  it('count alarms within and outside of windows, those close to each other once', () => {
    const alarms = [10, 200, 203, 350, 355, 500];
    const scores = startsMs.map((_, row) => (alarms.includes(row) ? 0.9 : 0.1));
    const figures = alarmFigures([{ scores, windows, startsMs }], 0.5);
    expect(figures).toMatchObject({ precision: 1 / 3, recall: 0.5, delays: [{ minutes: 250, share: 0.5 }] });
    expect(figures.falseAlarmsPerDay).toBeCloseTo(2 / ((849 * 5) / 1440), 10);
  });
});

describe('the baselines', () => {
  const [series] = labelledWorkloads(1);

  it('know the tail of the normal distribution', () => {
    expect(upperTail(0)).toBeCloseTo(0.5, 6);
    expect(upperTail(1.959964)).toBeCloseTo(0.025, 6);
    expect(upperTail(4) / 3.167124e-5).toBeCloseTo(1, 5);
  });

  it.each(Object.entries(ANOMALY_BASELINES))('%s scores each row from 0 to 1', (_, baseline) => {
    const scores = baseline(series ?? parseLabelledSeries('', { file: '', windows: [] }));
    expect(scores).toHaveLength(4000);
    expect(scores.every((score) => score >= 0 && score <= 1)).toBe(true);
  });
});

describe('the benchmark', () => {
  it('finds anomalies in series of its own, better than each baseline; silence gets 0', async () => {
    const { figures, samples, notes } = await figuresOf(undefined);
    expect(figures.silentNabStandard).toBe(0);
    for (const name of ['gaussian', 'entropy', 'sigma'])
      expect(figures.nabStandard, name).toBeGreaterThan(figures[`${name}NabStandard`] ?? 100);
    expect(figures.nabStandard).toBeGreaterThan(55);
    expect(samples.updateUs?.n).toBe(20 * 20);
    expect(notes).toContainEqual(expect.stringContaining('20 series, 40 windows'));
  });

  it('has series that the same seed makes again, and another one does not', () => {
    expect(labelledWorkloads(3)).toEqual(labelledWorkloads(3));
    expect(labelledWorkloads(3)[0]?.values).not.toEqual(labelledWorkloads(4)[0]?.values);
  });

  it('says so where nothing was found', async () => {
    const { figures, notes } = await figuresOf(folderOf({ 'a.csv': CSV, 'windows.json': WINDOWS }));
    expect(figures).toMatchObject({ recall: 0, delayP50Minutes: null, nabStandardCrossed: null });
    expect(notes).toContain('delayP50Minutes: no window was found');
  });
});
