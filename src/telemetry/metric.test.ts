import { describe, expect, it } from 'vitest';
import { METRICS, metricInfo, metricOf } from './metric.ts';

describe('the name of a metric', () => {
  it('has the disk or network card in its middle', () => {
    expect(metricOf('disk.readOpsPerSecond', 'disk0')).toBe('disk.disk0.readOpsPerSecond');
    expect(metricInfo('disk.disk0.readOpsPerSecond')).toBe(METRICS['disk.readOpsPerSecond']);
    expect(metricInfo('cpu.usedCores')).toBe(METRICS['cpu.usedCores']);
  });

  it.each(['disk.readOpsPerSecond', 'cpu.0.usedCores', 'cpu', '', 'toString', 'disk.constructor'])(
    'is not %s',
    (name) => expect(metricInfo(name)).toBeUndefined(),
  );
});
