import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { parseExposition, sampleOf } from '../../test/kit/exposition.ts';
import { observedStateSchema } from '../api/resources.ts';
import type { VmMetrics } from '../control/vm-metrics.ts';
import { PHASES } from '../shadow/protection.ts';
import { HostMetrics } from './host-metrics.ts';
import { expositionOf } from './metric-family.ts';
import { vmFamilies } from './vm-families.ts';
import type { CountedVm } from './vm-stats.ts';

const measured = (bounds: number[], counts: number[], sum: number) => ({
  recent: { count: counts.reduce((a, b) => a + b, 0), p50: 0, p99: 0, max: 0 },
  histogram: { bounds, counts, sum },
});

const busy: VmMetrics = {
  phase: 'protected',
  upMs: 60_000,
  memoryBytes: 134_217_728,
  epochs: {
    committed: 812,
    open: 813,
    commits: 800,
    pauseMs: measured([1, 1.5, 2.5], [500, 200, 90, 10], 1234.5),
    commitMs: measured([10], [800, 0], 4000),
    dirtyPages: measured([64, 256], [0, 700, 100], 90_000),
    pauseShare: 0.21,
    pauseShareMax: 0.3,
  },
  shadowEnabled: true,
  shadow: { copiedShare: 1, lagMs: 42, reconnects: 3, savedBytes: 4096 },
  clock: { errorMs: -20, answeredAgoMs: 500, corrections: 60 },
  links: {
    ...{ heldItems: 2, heldBytes: 3000, loggedItems: 1, loggedBytes: 60, releasedItems: 9000 },
    ...{ replayedItems: 4, droppedItems: 3, refusedItems: 0 },
  },
  promotions: 2,
  restarts: 1,
  promoteMs: measured([10], [2, 0], 11),
  outageMs: measured([10, 100], [0, 2, 0], 90),
};
const alone: VmMetrics = {
  ...busy,
  phase: 'alone',
  shadow: null,
  epochs: { ...busy.epochs, open: null },
  clock: { errorMs: null, answeredAgoMs: null, corrections: 0 },
};

const vm = (name: string, more: Partial<CountedVm> = {}): CountedVm => ({
  ...{ name, state: 'protected', desired: 'running' },
  ...more,
});

async function exposed(vms: CountedVm[], figures: Record<string, VmMetrics | undefined>) {
  return parseExposition(await expositionOf(vmFamilies(vms, new Map(Object.entries(figures)))));
}

describe('the metrics of VMs', () => {
  it('say in base units what the keeper measured', async () => {
    const families = await exposed([vm('a')], { a: busy });
    const value = (name: string, labels = {}) =>
      sampleOf(families, `understudy_vm_${name}`, { vm: 'a', ...labels });
    expect(value('up')).toBe(1);
    expect(value('epochs_committed_total')).toBe(800);
    expect(value('pause_seconds_count')).toBe(800);
    expect(value('pause_seconds_sum')).toBeCloseTo(1.2345);
    expect(value('pause_seconds_bucket', { le: '0.0015' })).toBe(700);
    expect(value('pause_seconds_bucket', { le: '0.0025' })).toBe(790);
    expect(value('pause_seconds_bucket', { le: '+Inf' })).toBe(800);
    expect(value('epoch_dirty_pages_bucket', { le: '256' })).toBe(700);
    expect(value('shadow_enabled')).toBe(1);
    expect(value('shadow_lag_seconds')).toBeCloseTo(0.042);
    expect([value('shadow_reconnects'), value('shadow_saved_bytes')]).toEqual([3, 4096]);
    expect(value('guest_clock_error_seconds')).toBeCloseTo(-0.02);
    expect(value('outage_seconds_sum')).toBeCloseTo(0.09);
    expect(value('phase', { phase: 'protected' })).toBe(1);
    expect(PHASES.reduce((sum, phase) => sum + (value('phase', { phase }) ?? 0), 0)).toBe(1);
  });

  it('leave out what cannot be said', async () => {
    const families = await exposed([vm('a', { state: 'alone' })], { a: alone });
    for (const name of ['shadow_lag_seconds', 'epoch_open', 'guest_clock_error_seconds'])
      expect(families.get(`understudy_vm_${name}`)?.samples).toEqual([]);
    expect(sampleOf(families, 'understudy_vm_epochs_committed_total', { vm: 'a' })).toBe(800);
  });

  it('say of a VM whose keeper does not answer that it does not, and nothing else', async () => {
    const families = await exposed([vm('a'), vm('b', { state: 'no-answer' }), vm('c', { state: 'lost' })], {
      a: busy,
      b: undefined,
    });
    const series = (name: string) =>
      [...families.values()].flatMap(({ samples }) =>
        samples.filter(({ labels }) => labels.get('vm') === name),
      );
    expect(series('b').map(({ name, value }) => [name, value])).toEqual([['understudy_vm_up', 0]]);
    expect(series('c').map(({ name, value }) => [name, value])).toEqual([['understudy_vm_up', 0]]);
    expect(series('a').length).toBeGreaterThan(50);
  });

  it('say nothing of a VM that shall not run and does not, nor of one that is forgotten', async () => {
    const families = await exposed([vm('a', { state: 'absent', desired: 'stopped' })], { gone: busy });
    expect([...families.values()].flatMap(({ samples }) => samples)).toEqual([]);
  });

  it('are one well-formed text, whatever keepers measure', async () => {
    const amount = fc.double({ min: 0, max: 1e15, noNaN: true });
    const bounds = fc
      .uniqueArray(fc.double({ min: 1e-3, max: 1e9, noNaN: true }), {
        maxLength: 8,
        // Two bounds that are the same to twelve digits would be one bucket by name.
        selector: (bound) => bound.toPrecision(10),
      })
      .map((some) => some.sort((a, b) => a - b));
    const histogram = bounds.chain((some) =>
      fc
        .tuple(fc.array(fc.nat(), { minLength: some.length + 1, maxLength: some.length + 1 }), amount)
        .map(([counts, sum]) => measured(some, counts, sum)),
    );
    const metrics = fc
      .tuple(fc.constantFrom(...PHASES), histogram, amount, fc.nat(), fc.boolean())
      .map(([phase, some, value, count, bare]) => ({
        ...(bare ? alone : busy),
        ...{ phase, upMs: value, promotions: count, promoteMs: some, outageMs: some },
      }));
    const named = fc.dictionary(fc.stringMatching(/^[a-z0-9][a-z0-9-]{0,39}$/), metrics, {
      maxKeys: 5,
      noNullPrototype: true,
    });
    await fc.assert(
      fc.asyncProperty(named, async (figures) => {
        const families = await exposed(
          Object.keys(figures).map((name) => vm(name)),
          figures,
        );
        expect(families.get('understudy_vm_up')?.samples).toHaveLength(Object.keys(figures).length);
      }),
      { numRuns: 50 },
    );
  });
});

describe('the metrics of a host', () => {
  it('count VMs by state, actions and events, and are one text with those of the VMs', async () => {
    const metrics = new HostMetrics({ version: '1.2.3' });
    metrics.noteAction('start', 'failed');
    metrics.noteAction('start', 'done');
    metrics.noteAction('start', 'done');
    metrics.noteEvent();
    const vms = [vm('a'), vm('b'), vm('c', { state: 'absent', desired: 'stopped' })];
    const families = parseExposition(
      await metrics.exposition({ vms, figures: new Map([['a', busy]]), isDegraded: true }),
    );
    const value = (name: string, labels = {}) => sampleOf(families, name, labels);
    expect(value('understudy_host_vms', { state: 'protected' })).toBe(2);
    expect(value('understudy_host_vms', { state: 'absent' })).toBe(1);
    expect(families.get('understudy_host_vms')?.samples).toHaveLength(observedStateSchema.options.length);
    expect(value('understudy_host_vms_desired', { desired: 'stopped' })).toBe(1);
    expect(value('understudy_host_degraded')).toBe(1);
    expect(value('understudy_host_actions_total', { kind: 'start', outcome: 'done' })).toBe(2);
    expect(value('understudy_host_actions_total', { kind: 'start', outcome: 'failed' })).toBe(1);
    expect(value('understudy_host_events_total')).toBe(1);
    expect(value('understudy_build_info', { version: '1.2.3', node: process.versions.node })).toBe(1);
    for (const name of [
      'process_resident_memory_bytes',
      'process_start_time_seconds',
      'nodejs_heap_size_used_bytes',
    ])
      expect(value(name)).toBeGreaterThan(1e6);
    expect(value('process_open_fds')).toBeGreaterThan(2);
    expect(value('process_cpu_seconds_total')).toBeGreaterThan(0);
    expect(value('understudy_vm_up', { vm: 'b' })).toBe(0);
  });
});
