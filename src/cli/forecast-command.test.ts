import { expect, test } from 'vitest';
import type { Allocation, Forecast } from '../api/foresight-resources.ts';
import { forecastChart } from './forecast-chart.ts';
import { allocationText, forecastText } from './forecast-command.ts';

const HOUR_MS = 3_600_000;
const LEVELS = [0.1, 0.5, 0.9, 0.95, 0.99];

test('the past is left of now, the fan right of it, and what the VM has goes through both', () => {
  const past = Array.from({ length: 24 }, (_, hour) => ({ atMs: (hour - 23) * HOUR_MS, value: 1 }));
  const future = [1, 12, 24].map((hour) => ({ atMs: hour * HOUR_MS, low: 0.5, middle: 2, high: 3 }));
  const chart = forecastChart({ past, future, allocated: 4, valueText: String }, { columns: 54, rows: 5 });
  expect(chart.split('\n')).toEqual([
    `${'4'.padStart(12)} ${'┄'.repeat(19)}│${'┄'.repeat(20)}`,
    `${' '.repeat(32)}│${'░'.repeat(20)}`,
    `${'2'.padStart(12)} ${' '.repeat(19)}│${'━'.repeat(20)}`,
    `${' '.repeat(13)}${'•'.repeat(20)}${'░'.repeat(20)}`,
    `${'0'.padStart(12)} ${' '.repeat(19)}│${'░'.repeat(20)}`,
    `${' '.repeat(13)}-23 h${' '.repeat(13)}now${' '.repeat(14)}+24 h`,
  ]);
});

const known: Forecast = {
  ...{ vm: 'a', resource: 'cpu', unit: 'millicores', at: '2026-01-01T00:00:00.000Z' },
  history: { stepSeconds: 300, startedAt: '2026-01-01T00:00:00.000Z', values: [100, null, 200] },
  levels: LEVELS,
  rows: [
    { horizonSeconds: 5, values: [1, 2, 3, 4, 5] },
    { horizonSeconds: 3600, values: [100, 200, 300, 400, 500] },
  ],
  peak: { levels: LEVELS, values: [100, 250, 350, 450, 550] },
  peakHorizonSeconds: 3600,
  allocation: { allocated: 1000, reserved: 0, min: 100, max: 2000 },
  isAnomalous: false,
};

test('a forecast is told in numbers, too', () => {
  const text = forecastText(known, 80);
  expect(text).toContain('in 1 h  0.1 cores  0.2 cores  0.3 cores  0.5 cores');
  expect(text).toContain(
    'peak within 1 h: 50 % below 0.25 cores, 95 % below 0.45 cores, 99 % below 0.55 cores',
  );
  expect(text).toContain('it has 1 cores and 0 cores reserved, of 0.1 cores to 2 cores');
  expect(forecastText({ ...known, rows: [] }, 80)).toBe(
    'a, cpu: too little is known yet; ask again in a minute',
  );
});

test('a decision is told with its reason and the forecast behind it', () => {
  const allocation: Allocation = {
    ...{ vm: 'a', mode: 'recommend', horizonSeconds: 3600 },
    resources: [
      {
        resource: 'cpu',
        unit: 'millicores',
        allocation: known.allocation,
        peak: known.peak,
        isAnomalous: false,
      },
      { resource: 'net', unit: 'bytes per second', allocation: null, peak: null, isAnomalous: false },
    ],
    decisions: [
      {
        ...{ id: 7, time: '2026-01-01T00:00:00.000Z' },
        facts: {
          ...{
            resource: 'cpuMillicores',
            decision: 'reserve',
            reason: 'forecast',
            amount: 1500,
            granted: 1000,
          },
          ...{ allocated: 500, reserved: 0, used: 400, peak: { 0.95: 1800 } },
        },
      },
    ],
  };
  const text = allocationText(allocation);
  expect(text).toContain('a: what is decided is only said (allocation.mode: recommend)');
  expect(text).toContain(
    'reserve 1.5 cores (1 cores granted): the forecast says that it will need more; it had 0.5 cores and 0 cores reserved, and used 0.4 cores; 95 % of its peaks are below 1.8 cores',
  );
  expect(allocationText({ ...allocation, decisions: [] })).toContain('nothing has been decided yet');
});
