import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { systemClock } from '../src/base/clock.ts';
import { type Benchmark, BenchRun, type FigureInfo, reaches, sampleFigures } from './harness.ts';
import { machineFacts, versions } from './machine-facts.ts';
import { reportMarkdown, reportText } from './report.ts';

const MACHINE = { cpu: 'a CPU', cores: 2, kernel: '6.18', memoryMiB: 4096, loadBefore: 0.1 };
const VERSIONS = { node: '24', qemu: '7.2', understudy: 'abc' };

const benchmark: Benchmark = {
  name: 'example',
  summary: 'An example.',
  figures: {
    pauseP50Ms: { meaning: 'a pause', target: { atMost: 2.5 } },
    peerP50Ms: { meaning: 'the pause of a peer' },
  },
  run: async () => {},
};

function runOf(quick = false): BenchRun {
  return new BenchRun(benchmark, {
    quick,
    kills: undefined,
    traces: undefined,
    stepMs: 300_000,
    clock: systemClock,
    signal: new AbortController().signal,
    onProgress: () => {},
  });
}

describe('the result of a benchmark', () => {
  it('has machine, versions, figures, samples and notes, and a reason for each figure that is null', () => {
    const run = runOf();
    run.sample('pauseMs', 3, 1, 2.00004);
    run.figure('pauseP50Ms', run.p50('pauseMs'));
    run.missing('peerP50Ms', 'it does not run here');
    run.describe({ machine: { accel: 'tcg' }, versions: { redis: '7' } });
    expect(run.result(MACHINE, VERSIONS)).toEqual({
      bench: 'example',
      machine: { ...MACHINE, accel: 'tcg' },
      versions: { ...VERSIONS, redis: '7' },
      figures: { pauseP50Ms: 2, peerP50Ms: null },
      samples: { pauseMs: { n: 3, p50: 2, p99: 3, min: 1, max: 3 } },
      notes: ['peerP50Ms: it does not run here'],
    });
  });

  it('is refused while a figure has neither a value nor a reason', () => {
    const run = runOf();
    run.figure('pauseP50Ms', 1);
    expect(() => run.result(MACHINE, VERSIONS)).toThrow('peerP50Ms');
  });

  it('takes no figure that is not declared, and none that is no number', () => {
    expect(() => runOf().figure('other', 1)).toThrow('other');
    expect(() => runOf().figure('pauseP50Ms', Number.NaN)).toThrow('pauseP50Ms');
  });

  it('says when it was measured quickly', () => {
    const run = runOf(true);
    run.figure('pauseP50Ms', 1);
    run.figure('peerP50Ms', 1);
    expect(run.result(MACHINE, VERSIONS).notes).toEqual([expect.stringContaining('--quick')]);
  });

  it('is shown to people with targets beside the figures', () => {
    const run = runOf();
    run.figure('pauseP50Ms', 3);
    run.missing('peerP50Ms', 'it does not run here');
    const text = reportText(run.result(MACHINE, VERSIONS), benchmark);
    expect(text).toMatch(/pauseP50Ms +3 +≤ 2.5 +.*missed/);
    expect(text).toMatch(/peerP50Ms +—/);
    expect(text).toContain('- peerP50Ms: it does not run here');
  });

  it('is written for the documentation as tables', () => {
    const run = runOf();
    run.sample('pauseMs', 3);
    run.figure('pauseP50Ms', 3);
    run.missing('peerP50Ms', 'it does not run here');
    const text = reportMarkdown(run.result(MACHINE, VERSIONS), benchmark);
    expect(text).toContain('| `pauseP50Ms` | 3 (missed) | ≤ 2.5 | a pause |');
    expect(text).toContain('| `peerP50Ms` | — |  | the pause of a peer |');
    expect(text).toContain('| `pauseMs` | 1 | 3 | 3 | 3 | 3 |');
    expect(text).toContain('- peerP50Ms: it does not run here');
  });
});

describe('samples', () => {
  it('are summed up by quantiles that are samples themselves, in order', () => {
    const values = fc.array(fc.integer({ min: -999, max: 999 }), { minLength: 1 });
    fc.assert(
      fc.property(values, (samples) => {
        const { n, p50, p99, min, max } = sampleFigures(samples);
        expect(n).toBe(samples.length);
        expect([min, max]).toEqual([Math.min(...samples), Math.max(...samples)]);
        expect(samples).toEqual(expect.arrayContaining([p50, p99]));
        expect([min, p50, p99, max]).toEqual([min, p50, p99, max].toSorted((a, b) => a - b));
        // Half of the samples, and not fewer, are no larger than the median.
        expect(samples.filter((sample) => sample <= p50).length * 2).toBeGreaterThanOrEqual(n);
      }),
    );
  });
});

describe('a target', () => {
  it.each<[FigureInfo['target'], number | null, boolean | undefined]>([
    [{ atMost: 2 }, 2, true],
    [{ atMost: 2 }, 2.1, false],
    [{ atLeast: 0.6 }, 0.6, true],
    [{ atLeast: 0.6 }, 0.5, false],
    [{ atMost: 2 }, null, undefined],
    [undefined, 1, undefined],
  ])('%o with %s is reached: %s', (target, value, reached) => {
    expect(reaches(value, { meaning: '', ...(target && { target }) })).toBe(reached);
  });
});

describe('the machine', () => {
  it('is described by its processor, cores, kernel, memory and load', () => {
    expect(machineFacts()).toEqual({
      cpu: expect.stringMatching(/./),
      cores: expect.any(Number),
      kernel: expect.stringMatching(/^\d+\.\d+/),
      memoryMiB: expect.any(Number),
      loadBefore: expect.any(Number),
    });
  });

  it('is described by the versions that were measured', async () => {
    expect(await versions()).toEqual({
      node: process.versions.node,
      qemu: expect.stringMatching(/^\d+\.\d+/),
      understudy: expect.stringMatching(/./),
    });
  });
});
