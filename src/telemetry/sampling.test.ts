import { describe, expect, it, onTestFinished } from 'vitest';
import type { MetricSource, Reading } from './metric-source.ts';
import type { Sample } from './sample.ts';
import { Sampling, type SamplingOptions, type SourceTrouble } from './sampling.ts';
import { SteppedClock } from './stepped-clock-fixture.ts';

/** A source that does what it is told. */
class ToldSource implements MetricSource {
  readonly name: string;
  reads = 0;
  answer: () => Reading | Promise<Reading>;
  isDisposed = false;

  constructor(name: string, answer: () => Reading | Promise<Reading>) {
    this.name = name;
    this.answer = answer;
  }

  read(): Reading | Promise<Reading> {
    this.reads += 1;
    return this.answer();
  }

  [Symbol.dispose](): void {
    this.isDisposed = true;
  }
}

const gauge = (name: string, value: number) => ({ of: 'it', counters: {}, gauges: { [name]: value } });

function samplingOf(sources: readonly MetricSource[], more: Partial<SamplingOptions> = {}) {
  const clock = new SteppedClock();
  const samples: Sample[] = [];
  const troubles: SourceTrouble[] = [];
  const sampling = new Sampling({
    ...{ vm: 'a', instanceId: () => 'first', sources, clock, intervalMs: 1000 },
    monotonicMs: () => clock.nowMs() + 5000,
    onSample: (sample) => samples.push(sample),
    onTrouble: (trouble) => troubles.push(trouble),
    ...more,
  });
  onTestFinished(() => sampling[Symbol.dispose]());
  return { clock, samples, troubles, sampling };
}

/** A counter of seconds that goes on as the clock does. */
const running = (clock: () => SteppedClock) =>
  new ToldSource('cpu', () => ({
    of: 'it',
    counters: { 'cpu.usedCores': clock().nowMs() / 1000 },
    gauges: {},
  }));

describe('samples of a VM', () => {
  it('say which VM, which instance, both times, and what they are of', async () => {
    const made = samplingOf([running(() => made.clock)]);
    made.sampling.start();
    await made.clock.go(1000);
    expect(made.samples).toEqual([
      {
        ...{ vm: 'a', instanceId: 'first', wallMs: 1_700_000_001_000, monotonicMs: 7000, intervalMs: 1000 },
        values: { 'cpu.usedCores': 1, 'telemetry.sampleMicroseconds': 0 },
      },
    ]);
  });

  it('are due at whole intervals, however late each one is', async () => {
    const late = new ToldSource('late', () => {
      made.clock.pass(37);
      return gauge('a', 1);
    });
    const made = samplingOf([late]);
    made.sampling.start();
    await made.clock.go(10_000);
    expect(made.samples.map(({ monotonicMs }) => monotonicMs - 6000)).toEqual(
      Array.from({ length: 10 }, (_, index) => (index + 1) * 1000),
    );
    // What a sample costs is in it.
    expect(made.samples[0]?.values['telemetry.sampleMicroseconds']).toBe(37_000);
  });

  it('are skipped, not made up for, when the thread was busy; the next one is of the true interval', async () => {
    const made = samplingOf([running(() => made.clock)]);
    made.sampling.start();
    await made.clock.go(1000);
    made.clock.pass(3400);
    await made.clock.go(1600);
    expect(made.samples.map(({ intervalMs }) => intervalMs)).toEqual([1000, 3400, 600, 1000]);
    for (const { values } of made.samples) expect(values['cpu.usedCores']).toBeCloseTo(1);
  });

  it('keep their interval when the wall clock is set', async () => {
    const made = samplingOf([running(() => made.clock)]);
    made.sampling.start();
    await made.clock.go(1000);
    made.clock.setWall(5000);
    await made.clock.go(1000);
    expect(made.samples[1]).toMatchObject({ wallMs: 6000, intervalMs: 1000, values: { 'cpu.usedCores': 1 } });
  });

  it('come as often as was said last, at once', async () => {
    const made = samplingOf([running(() => made.clock)]);
    made.sampling.start();
    await made.clock.go(1500);
    made.sampling.changeInterval(100);
    await made.clock.go(1000);
    expect(made.samples).toHaveLength(11);
    expect(made.samples.slice(2).map(({ intervalMs }) => Math.round(intervalMs))).toEqual(
      Array.from({ length: 9 }, () => 100),
    );
    made.sampling.changeInterval(60_000);
    await made.clock.go(59_999);
    expect(made.samples).toHaveLength(11);
    await made.clock.go(1);
    expect(made.samples).toHaveLength(12);
  });

  it('end with `stop`, and go on later without what was between', async () => {
    const made = samplingOf([running(() => made.clock)]);
    made.sampling.start();
    await made.clock.go(2000);
    made.sampling.stop();
    await made.clock.go(60_000);
    expect(made.samples).toHaveLength(2);
    expect(made.clock.waiting).toBe(0);
    made.sampling.start();
    made.sampling.start();
    await made.clock.go(1000);
    expect(made.samples).toHaveLength(3);
    expect(made.samples[2]).toMatchObject({ intervalMs: 1000, values: { 'cpu.usedCores': 1 } });
  });

  it('wait until what they would disturb is over, but not for long', async () => {
    const over = Promise.withResolvers<void>();
    let calm: Promise<void> | undefined = over.promise;
    const made = samplingOf([running(() => made.clock)], { calm: () => calm });
    made.sampling.start();
    await made.clock.go(1005);
    expect(made.samples).toHaveLength(0);
    over.resolve();
    await made.clock.go(0);
    expect(made.samples).toHaveLength(1);
    calm = new Promise(() => {});
    await made.clock.go(1020);
    expect(made.samples.map(({ intervalMs }) => intervalMs)).toEqual([1005, 1015]);
  });
});

describe('a source', () => {
  it('that fails is left out, told of once, and asked again later, less and less often', async () => {
    const good = new ToldSource('good', () => gauge('a', 1));
    const bad = new ToldSource('bad', () => {
      throw new Error('no');
    });
    const made = samplingOf([bad, good]);
    made.sampling.start();
    await made.clock.go(40_000);
    expect(made.samples).toHaveLength(40);
    for (const { values } of made.samples) expect(values.a).toBe(1);
    expect(made.troubles).toEqual([{ source: 'bad', kind: 'failed', error: 'no' }]);
    expect(made.sampling.failing).toEqual(['bad']);
    expect(good.reads).toBe(41);
    // At 0, 1, 3, 7, 15, 31 s.
    expect(bad.reads).toBe(6);

    bad.answer = () => gauge('b', 2);
    await made.clock.go(60_000);
    expect(made.troubles.slice(1)).toEqual([{ source: 'bad', kind: 'recovered' }]);
    expect(made.samples.at(-1)?.values).toMatchObject({ a: 1, b: 2 });
    expect(made.sampling.failing).toEqual([]);
  });

  it('that fails once, as in a takeover, is nothing to tell', async () => {
    const source = new ToldSource('cpu', () => gauge('a', 1));
    const made = samplingOf([source]);
    made.sampling.start();
    await made.clock.go(1000);
    source.answer = () => Promise.reject(new Error('it is gone'));
    await made.clock.go(1000);
    source.answer = () => gauge('a', 2);
    await made.clock.go(1000);
    expect(made.samples.map(({ values }) => values.a)).toEqual([1, undefined, 2]);
    expect(made.troubles).toEqual([]);
  });

  it('that hangs delays its sample within bounds, no other one, and is not asked twice at a time', async () => {
    const hanging = Promise.withResolvers<Reading>();
    const slow = new ToldSource('slow', () => hanging.promise);
    const made = samplingOf([slow, running(() => made.clock)]);
    made.sampling.start();
    await made.clock.go(10_000);
    expect(slow.reads).toBe(1);
    expect(made.samples.length).toBeGreaterThanOrEqual(9);
    for (const { values } of made.samples) expect(values['cpu.usedCores']).toBeCloseTo(1);
    expect(made.troubles).toEqual([{ source: 'slow', kind: 'hangs' }]);
    slow.answer = () => gauge('b', 2);
    hanging.resolve(gauge('b', 1));
    await made.clock.go(2000);
    expect(made.troubles.at(-1)).toEqual({ source: 'slow', kind: 'recovered' });
    expect(made.samples.at(-1)?.values.b).toBe(2);
  });

  it('that answers later is waited for, and its rates are of its own times', async () => {
    const late = new ToldSource('late', async () => {
      await made.clock.sleep(300);
      return { of: 'it', counters: { 'disk.boot.queueDepth': made.clock.nowMs() / 1000 }, gauges: {} };
    });
    const made = samplingOf([late]);
    made.sampling.start();
    await made.clock.go(5000);
    expect(made.samples.length).toBeGreaterThanOrEqual(4);
    for (const { values } of made.samples) expect(values['disk.boot.queueDepth']).toBeCloseTo(1);
  });

  it('that is of another QEMU after a takeover has a gap of one sample, and no rate out of two processes', async () => {
    let process = { pid: 1, seconds: 100 };
    const cpu = new ToldSource('cpu', () => ({
      of: process,
      counters: { 'cpu.usedCores': process.seconds },
      gauges: {},
    }));
    const made = samplingOf([cpu]);
    made.sampling.start();
    const second = async () => {
      process.seconds += 0.5;
      await made.clock.go(1000);
    };
    await second();
    await second();
    process = { pid: 2, seconds: 4000 };
    await second();
    await second();
    expect(made.samples.map(({ values }) => values['cpu.usedCores'])).toEqual([0.5, 0.5, undefined, 0.5]);
  });

  it('is closed with the sampling', () => {
    const source = new ToldSource('a', () => gauge('a', 1));
    const { sampling } = samplingOf([source]);
    sampling[Symbol.dispose]();
    expect(source.isDisposed).toBe(true);
  });
});
