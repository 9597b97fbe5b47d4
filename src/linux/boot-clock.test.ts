import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { bootId, bootTimeMs } from './boot-clock.ts';

test('the boot clock never goes back, and is the one that the kernel tells as its uptime', () => {
  const before = bootTimeMs();
  const uptimeMs = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]) * 1000;
  const after = bootTimeMs();
  // The kernel cuts its figure off after hundredths of a second.
  expect(uptimeMs).toBeGreaterThan(before - 10);
  expect(uptimeMs).toBeLessThanOrEqual(after);
});

test('a run of the machine has one name', () => {
  expect(bootId()).toMatch(/^[0-9a-f-]{36}$/);
  expect(bootId()).toBe(bootId());
});
