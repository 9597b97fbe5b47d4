import { stripVTControlCharacters } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Figures } from '../api/stats.ts';
import { offsetMax, sortedVms, TOP_COLUMNS, type TopView, topFrame, topText } from './top-frame.ts';
import { type TopSample, type TopVm, withRates } from './top-sample.ts';

const figures: Figures = {
  upMs: 10_000,
  memoryBytes: 268_435_456,
  commits: 100,
  pauseMs: { p50: 1.234, p99: 4.56 },
  pauseShare: 0.123,
  dirtyPages: { p50: 120, p99: 900 },
  heldItems: 2,
  heldBytes: 2048,
  lagMs: 34.5,
  promotions: 3,
  restarts: 0,
  clockErrorMs: -12.3,
};
const host = {
  name: 'here',
  accel: null,
  maintenance: false,
  cpus: 2,
  memory: { totalBytes: 8, freeBytes: 4 },
  version: '1.2.3',
  pid: 7,
  startedAt: '2026-01-01T00:00:00.000Z',
  vms: { declared: 3, running: 2, protected: 1 },
};
const vm = (name: string, more: Partial<TopVm> = {}): TopVm => ({
  ...{ name, state: 'protected', desired: 'running', figures, epochsPerSecond: 9.87 },
  ...more,
});
const view = (more: Partial<TopView> = {}): TopView => ({
  ...{ vms: [vm('a')], host, wallMs: Date.parse('2026-01-01T00:02:05Z'), offset: 0, columns: 140, rows: 10 },
  ...{ order: { column: 0, reversed: false }, trouble: undefined, coloured: false },
  ...more,
});
const column = (title: string) => TOP_COLUMNS.indexOf(title);

describe('a frame of top', () => {
  it('shows the host, and a line for each VM under the heads of the columns', () => {
    const [head, trouble, columns, row, ...rest] = topFrame(view());
    expect(head).toBe('00:02:05 UTC  host 1.2.3, up 2 min 5 s: 3 declared, 2 running, 1 protected');
    expect(trouble).toBe('');
    expect(columns?.trim().split(/\s+/)).toEqual(['NAME↓', ...TOP_COLUMNS.slice(1)]);
    expect(row?.split(/ {2,}/)).toEqual([
      ...['a', 'protected', '9.9', '1.2 ms', '4.6 ms', '12.3 %', '120', '2 KiB', '34.5 ms', '3'],
      ...['-12.3 ms', '256 MiB'],
    ]);
    expect(rest.at(-1)).toContain('q quit');
  });

  it('leaves out what is not known, and says what went wrong', () => {
    const bare = vm('b', { state: 'no-answer', figures: null, epochsPerSecond: null });
    const [head, trouble, , row] = topFrame(view({ vms: [bare], host: null, trouble: 'the host hangs' }));
    expect(head).toContain('no host answers; 1 VM of this user');
    expect(trouble).toBe('the host hangs');
    expect(row).toBe('b      no-answer');
    expect(topFrame(view({ vms: [] })).join('\n')).toContain('no VMs');
  });

  it('is as high as the terminal and never wider, whatever there is to show', () => {
    const names = fc.uniqueArray(fc.stringMatching(/^[a-z0-9][a-z0-9-]{0,39}$/), { maxLength: 30 });
    const sizes = fc.record({
      columns: fc.integer({ min: 1, max: 200 }),
      rows: fc.integer({ min: 1, max: 60 }),
    });
    const order = fc.record({ column: fc.nat(TOP_COLUMNS.length - 1), reversed: fc.boolean() });
    fc.assert(
      fc.property(names, sizes, order, fc.nat(40), fc.boolean(), (some, size, by, offset, coloured) => {
        const lines = topFrame(
          view({ vms: some.map((name) => vm(name)), ...size, order: by, offset, coloured }),
        );
        expect(lines).toHaveLength(size.rows);
        for (const line of lines)
          expect(stripVTControlCharacters(line).length).toBeLessThanOrEqual(size.columns);
      }),
    );
  });

  it('scrolls to the last VM and no further', () => {
    const vms = Array.from({ length: 30 }, (_, index) => vm(`vm-${String(index).padStart(2, '0')}`));
    const end = offsetMax(vms.length, 10);
    for (const offset of [end, end + 100]) {
      const lines = topFrame(view({ vms, offset }));
      expect(lines.some((line) => line.startsWith('vm-29'))).toBe(true);
      expect(lines.at(-1)).toContain(`${end} more above`);
      expect(lines.at(-1)).not.toContain('below');
    }
    expect(topFrame(view({ vms })).at(-1)).toContain('24 more below');
  });

  it('has colours only where they are wanted', () => {
    const plain = topFrame(view()).join('\n');
    const coloured = topFrame(view({ coloured: true })).join('\n');
    expect(stripVTControlCharacters(plain)).toBe(plain);
    expect(stripVTControlCharacters(coloured)).toBe(plain);
    expect(coloured).not.toBe(plain);
  });

  it('is a plain table for those who read no terminal', () => {
    const lines = topText(view({ vms: [vm('b'), vm('a')] }), { column: 0, reversed: false }).split('\n');
    expect(lines[0]).toMatch(/^host 1\.2\.3, up 2 min 5 s: /);
    expect(lines.slice(2).map((line) => line.split(' ')[0])).toEqual(['NAME', 'a', 'b']);
  });
});

describe('the order of top', () => {
  const slow = vm('slow', { figures: { ...figures, pauseMs: { p50: 9, p99: 90 } } });
  const quick = vm('quick', { figures: { ...figures, pauseMs: { p50: 1, p99: 2 } } });
  const deaf = vm('deaf', { figures: null, epochsPerSecond: null });
  const namesBy = (title: string, reversed = false) =>
    sortedVms([quick, deaf, slow], { column: column(title), reversed }).map(({ name }) => name);

  it('is that of the names, or from the largest figure; what has none comes last either way', () => {
    expect(namesBy('NAME')).toEqual(['deaf', 'quick', 'slow']);
    expect(namesBy('NAME', true)).toEqual(['slow', 'quick', 'deaf']);
    expect(namesBy('P99')).toEqual(['slow', 'quick', 'deaf']);
    expect(namesBy('P99', true)).toEqual(['quick', 'slow', 'deaf']);
    expect(namesBy('MEMORY')).toEqual(['quick', 'slow', 'deaf']);
  });
});

describe('the rate of epochs', () => {
  const sample = (commits: number, upMs: number): TopSample => ({
    wallMs: 0,
    host: null,
    vms: [{ name: 'a', state: 'protected', desired: null, figures: { ...figures, commits, upMs } }],
  });
  const rate = (now: TopSample, before?: TopSample) => withRates(now, before)[0]?.epochsPerSecond;

  it('is that between two looks at the same keeper', () => {
    expect(rate(sample(150, 12_000), sample(100, 10_000))).toBe(25);
    expect(rate(sample(150, 12_000))).toBeNull();
    // The keeper was started anew.
    expect(rate(sample(3, 500), sample(100, 10_000))).toBeNull();
    expect(rate({ ...sample(150, 12_000), vms: [] }, sample(100, 10_000))).toBeUndefined();
  });
});
