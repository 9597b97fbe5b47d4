import { expect, test } from 'vitest';
import { parseVmSpec } from '../config/vm-spec.ts';
import { agentSettings } from './agent-settings.ts';

const BASE = 'name: a\nvcpus: 2\nmemory: 256MiB\nboot: {kernel: k}\n';

function settings(more = '') {
  return agentSettings(parseVmSpec(`${BASE}${more}`, { source: 'a.yaml', directory: '/' }));
}

test('a VM of which nothing is said gets recommendations about its processors', () => {
  expect(settings()).toMatchObject({
    mode: 'recommend',
    horizonMs: 3_600_000,
    scaled: { cpuMillicores: { allocated: 2000, policy: { min: 200, max: 2000, quantile: 0.95 } } },
  });
  expect(Object.keys(settings().scaled)).toEqual(['cpuMillicores']);
});

test('what is said of a resource bounds it, and never lets it have nothing', () => {
  const more =
    'forecast: {horizon: 2h}\nallocation: {mode: auto, scalingPolicy: eager, net: {max: 1MiB}, memory: {min: 64MiB}}\n';
  const { mode, scaled } = settings(more);
  expect(mode).toBe('auto');
  expect(scaled.netBytesPerSecond).toMatchObject({
    allocated: 1_048_576,
    policy: { min: 10_486, max: 1_048_576, quantile: 0.99, reservationMs: 7_200_000 },
  });
  expect(scaled.memoryBytes?.policy).toMatchObject({ min: 64 * 1_048_576, max: 256 * 1_048_576 });
});
