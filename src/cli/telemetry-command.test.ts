import { describe, expect, it } from 'vitest';
import { Output } from './output.ts';
import { buildProgram } from './program.ts';
import { sampleText, telemetryText, valueText } from './telemetry-command.ts';

const sample = {
  ...{ vm: 'a', instanceId: 'one', wallMs: 10_000, monotonicMs: 7, intervalMs: 1000 },
  values: {
    'cpu.usedCores': 0.931,
    'net.nic0.receivedBytesPerSecond': 1024,
    'net.nic1.receivedBytesPerSecond': 2048,
    'telemetry.sampleMicroseconds': 84.2,
  },
};

describe('understudy telemetry', () => {
  it('shows what was measured last, and before', () => {
    const metrics = {
      'cpu.usedCores': { count: 2, min: 0, mean: 0.5, max: 1, p50: 0.4, p95: 1 },
      'cpu.throttledShare': { count: 1, min: 0.25, mean: 0.25, max: 0.25, p50: 0.25, p95: 0.25 },
    };
    const profile = {
      ...{ vm: 'a', instanceId: 'one', timestamp: '1970-01-01T00:00:10.000Z', windowMs: 2000, samples: 2 },
      metrics,
    };
    const status = { intervalMs: 250, failing: ['disks'], last: sample, profile };
    expect(telemetryText('a', status, 10_120).split('\n')).toEqual([
      'a, measured every 250 ms, the last time 120 ms ago; 2 samples of 2 s; nothing is known of: disks',
      '',
      'METRIC              NOW   MEAN  P50   P95   MAX',
      'cpu.throttledShare        25 %  25 %  25 %  25 %',
      'cpu.usedCores       0.93  0.5   0.4   1     1',
    ]);
    expect(telemetryText('a', { ...status, last: null, profile: null, failing: [] }, 0)).toBe(
      'a is measured every 250 ms; there is no sample yet',
    );
  });

  it('shows a sample in a line, with all disks and all cards together, and says what was lost', () => {
    const line = sampleText({ sample, lost: 0 });
    expect(line).toMatch(/^\d\d:\d\d:10\.000 +0\.93 +3 KiB\/s +84\.2 µs$/);
    expect(sampleText({ sample, lost: 7 })).toBe(`(7 samples were lost here)\n${line}`);
  });

  it.each([
    ['disk.disk0.latencyP99Ms', 1.2345, '1.23 ms'],
    ['disk.disk0.readOpsPerSecond', 1234.4, '1234/s'],
    ['memory.residentBytes', 134_217_728, '128 MiB'],
    ['epoch.pausedShare', 0.29, '29 %'],
    ['disk.disk0.queueDepth', 12.34, '12.3'],
  ])('shows %s with its unit', (metric, value, text) => expect(valueText(metric, value)).toBe(text));

  it.each(['99ms', '61s', '0s', 'fast', '250'])('takes no interval such as %s', async (text) => {
    const program = buildProgram(new Output({ json: true }), () => {});
    const args = ['telemetry', 'a', '--interval', text];
    await expect(program.parseAsync(args, { from: 'user' })).rejects.toThrow('from 100ms to 60s');
  });
});
