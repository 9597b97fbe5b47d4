import { expect, test } from 'vitest';
import { MethodScratch } from '../forecast/method-scratch.ts';
import { HostOutlook, overcommit } from './host-outlook.ts';
import { quantileAt } from './resource-tracker.ts';

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const START_MS = Date.UTC(2026, 0, 5);

/** Two VMs of which each is busy every other hour, in turn or both at once. */
function outlookOf(inTurn: boolean): HostOutlook {
  const outlook = new HostOutlook({ horizonMs: HOUR_MS, scratch: new MethodScratch() });
  for (let atMs = 0; atMs < 3 * 24 * HOUR_MS; atMs += MINUTE_MS) {
    const odd = Math.floor(atMs / HOUR_MS) % 2 === 1;
    for (const [vm, busy] of [
      ['a', odd],
      ['b', inTurn ? !odd : odd],
    ] as const) {
      const used = busy ? 1000 : 100;
      const demands = { cpuMillicores: { used, pressureShare: 0, outOfMemory: false } };
      outlook.note(vm, { demands, untilMs: atMs + MINUTE_MS });
    }
    outlook.take({ wallMs: START_MS + atMs, monotonicMs: atMs });
  }
  return outlook;
}

test('what VMs need together is the peak of their sum: less than the sum of their peaks where these come in turn', () => {
  const [inTurn, together] = [true, false].map((it) => outlookOf(it).view('cpuMillicores').peakOfSum);
  const [high, higher] = [inTurn, together].map((peak) => peak && quantileAt(peak, 0.99));
  expect(high).toBeGreaterThanOrEqual(1100);
  expect(high).toBeLessThan(1400);
  expect(higher).toBeGreaterThan(1900);
});

test('a VM that is silent, or gone, uses nothing', () => {
  const outlook = outlookOf(false);
  expect(outlook.view('cpuMillicores')).toMatchObject({ vms: 2 });
  outlook.forget('a');
  expect(outlook.view('cpuMillicores')).toMatchObject({ vms: 1, used: 1000 });
  outlook.take({ wallMs: START_MS + 4 * 24 * HOUR_MS, monotonicMs: 4 * 24 * HOUR_MS });
  expect(outlook.view('cpuMillicores')).toMatchObject({ vms: 0, used: 0 });
});

test('as much more may be promised as the risk allows', () => {
  const peak = { levels: [0.5, 0.9, 0.99], values: [1000, 2000, 4000] };
  const common = { capacity: 8000, promised: 4000 };
  expect(overcommit(peak, { ...common, risk: 0.01 })).toEqual({ needed: 4000, promisable: 8000 });
  expect(overcommit(peak, { ...common, risk: 0.1 })).toEqual({ needed: 2000, promisable: 16_000 });
  expect(overcommit({ levels: [0.5], values: [0] }, { ...common, risk: 0.1 })).toEqual({
    needed: 0,
    promisable: 8000,
  });
});
