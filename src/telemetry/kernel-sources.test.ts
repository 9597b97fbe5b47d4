import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { cpuAffinity, setCpuAffinity } from '../linux/affinity.ts';
import { CgroupTree } from '../linux/cgroup.ts';
import { processCpuSeconds } from '../linux/cpu-clock.ts';
import { CpuSource } from './cpu-source.ts';
import { MemorySource } from './memory-source.ts';
import { FollowingSource, type MetricSource, type Reading } from './metric-source.ts';
import { HOST_PRESSURE, PressureSource, parsePressure } from './pressure-source.ts';
import { valuesOf } from './rates.ts';
import { parseThrottled, ThrottlingSource } from './throttling-source.ts';

const clock = systemClock;
const WAIT = { timeout: 60_000 };

/** A process of one thread that takes all it can get. */
function burning(): ChildProcess & { readonly pid: number } {
  const child = spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' });
  onTestFinished(() => void child.kill('SIGKILL'));
  return child as ChildProcess & { readonly pid: number };
}

/** What a source says of the time in which `counter` grows by `growth`. */
async function valuesUntil(
  source: MetricSource,
  { counter, growth }: { counter: string; growth: number },
): Promise<Record<string, number>> {
  const before = { reading: await source.read(), atMs: clock.nowMs() };
  const start = before.reading.counters[counter] ?? Number.NaN;
  let reading: Reading = before.reading;
  await expect
    .poll(async () => {
      reading = await source.read();
      return reading.counters[counter];
    }, WAIT)
    .toBeGreaterThan(start + growth);
  return valuesOf({ reading, atMs: clock.nowMs() }, before);
}

describe('processor time', () => {
  it('of vCPU threads is what they use; of all else in the process, and of ours, it is overhead', async () => {
    const { pid } = burning();
    const options = { pid, nowMs: () => clock.nowMs() };
    using vcpus = new CpuSource({ ...options, vcpuThreads: async () => [pid] });
    using others = new CpuSource({ ...options, vcpuThreads: async () => [] });
    const busy = await valuesUntil(vcpus, { counter: 'cpu.usedCores', growth: 0.2 });
    expect(busy['cpu.usedCores']).toBeGreaterThan(0);
    expect(busy['cpu.usedCores']).toBeLessThan(1.2);
    expect(busy['cpu.waitedCores']).toBeGreaterThanOrEqual(0);
    const idle = await valuesUntil(others, { counter: 'cpu.overheadCores', growth: 0.2 });
    expect(idle['cpu.usedCores']).toBe(0);
    expect(idle['cpu.overheadCores']).toBeGreaterThan(0);
  });

  it('that a thread waits for shows where two want one processor', async () => {
    const [one, other] = [burning(), burning()];
    for (const { pid } of [one, other]) setCpuAffinity(pid, cpuAffinity(0).slice(0, 1));
    using source = new CpuSource({
      ...{ pid: one.pid, vcpuThreads: async () => [one.pid], nowMs: () => clock.nowMs() },
    });
    const values = await valuesUntil(source, { counter: 'cpu.waitedCores', growth: 0.1 });
    expect(values['cpu.waitedCores']).toBeGreaterThan(0);
  });

  it('is not known while nobody says which threads are vCPUs, nor of a process that is gone', async () => {
    const child = burning();
    let fails = true;
    using source = new CpuSource({
      ...{ pid: child.pid, nowMs: () => clock.nowMs() },
      vcpuThreads: async () => {
        if (fails) throw new Error('QMP is away');
        return [child.pid];
      },
    });
    await expect(source.read()).rejects.toThrow('QMP is away');
    fails = false;
    expect((await source.read()).counters).toMatchObject({ 'cpu.usedCores': 0 });
    const ended = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await ended;
    await expect((async () => source.read())()).rejects.toThrow();
    expect(() => processCpuSeconds(child.pid)).toThrow(expect.objectContaining({ errnoName: 'EINVAL' }));
  });

  it('of a vCPU that was taken out stays in the sum, and that of a new one begins at nothing', async () => {
    const [first, second] = [burning(), burning()];
    let threads = [first.pid];
    let nowMs = 0;
    using source = new CpuSource({ pid: first.pid, vcpuThreads: async () => threads, nowMs: () => nowMs });
    await valuesUntil(source, { counter: 'cpu.usedCores', growth: 0.05 });
    const used = async () => (await source.read()).counters['cpu.usedCores'] ?? Number.NaN;
    const before = await used();
    threads = [];
    nowMs += 60_000;
    await used();
    await new Promise(setImmediate);
    const after = await used();
    expect(after).toBeGreaterThanOrEqual(before);
    expect(await used()).toBe(after);
    // One of another process is no thread of this one.
    threads = [second.pid];
    nowMs += 60_000;
    await expect((async () => source.read())()).rejects.toMatchObject({ errnoName: 'ENOENT' });
  });
});

const groups = CgroupTree.detect();

describe('the quota of a cgroup', () => {
  it.skipIf(groups.kind === 'unusable')(
    'shows where it holds a process back, and not where it does not',
    async () => {
      if (groups.kind === 'unusable') return;
      const group = groups.tree.create(`us-throttled-${process.pid}`);
      onTestFinished(() => group.remove({ clock, deadlineMs: 10_000 }));
      using source = new ThrottlingSource(group.directory);
      const child = burning();
      await group.addProcess(child.pid);
      const seconds = () => source.read().counters['cpu.throttledShare'];
      const free = seconds();
      await expect.poll(() => processCpuSeconds(child.pid), WAIT).toBeGreaterThan(0.2);
      expect(seconds()).toBe(free);
      group.setCpuShare(0.1);
      const values = await valuesUntil(source, { counter: 'cpu.throttledShare', growth: 0.2 });
      expect(values['cpu.throttledShare']).toBeGreaterThan(0.2);
      expect(values['cpu.throttledShare']).toBeLessThanOrEqual(1);
      const ended = new Promise((resolve) => child.once('exit', resolve));
      child.kill('SIGKILL');
      await ended;
    },
  );

  it('is told in nanoseconds by version 1 and in microseconds by version 2', () => {
    expect(parseThrottled('nr_periods 12\nnr_throttled 4\nthrottled_time 1500000000\n')).toBe(1.5);
    const v2 =
      'usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 1\nthrottled_usec 1500000\n';
    expect(parseThrottled(`${v2}nr_bursts 0\nburst_usec 0\n`)).toBe(1.5);
    // A group of version 2 without the controller has the first three lines only.
    expect(parseThrottled('usage_usec 9\nuser_usec 5\nsystem_usec 4\n')).toBeUndefined();
    expect(parseThrottled('')).toBeUndefined();
  });
});

describe('pressure', () => {
  it('is the time in which some task waited', () => {
    const text =
      'some avg10=34.62 avg60=34.80 avg300=38.02 total=21770606287\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n';
    expect(parsePressure(text)).toBeCloseTo(21_770.606287);
    expect(parsePressure('full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n')).toBeUndefined();
    expect(parsePressure('')).toBeUndefined();
  });

  it('is left out where the kernel has no such file', () => {
    using source = new PressureSource('none', [['/proc/pressure/nonsense', 'pressure.cpuShare']]);
    expect(source.read().counters).toEqual({});
  });

  it('of the host is a share of time', () => {
    using source = new PressureSource('host', HOST_PRESSURE);
    const before = { reading: source.read(), atMs: 0 };
    for (const value of Object.values(valuesOf({ reading: source.read(), atMs: 1000 }, before)))
      expect(value).toBeLessThanOrEqual(1);
  });
});

describe('memory', () => {
  it('is what the file of it takes up, holes not counted', () => {
    const folder = mkdtempSync(join(tmpdir(), 'us-memory-'));
    const fd = openSync(join(folder, 'ram'), 'w+');
    onTestFinished(() => {
      closeSync(fd);
      rmSync(folder, { recursive: true });
    });
    using source = new MemorySource({ pid: process.pid, memoryFd: fd });
    writeSync(fd, Buffer.alloc(1), 0, 1, 64 * 1024 * 1024 - 1);
    const sparse = source.read().gauges['memory.residentBytes'] ?? Number.NaN;
    expect(sparse).toBeLessThan(1024 * 1024);
    writeFileSync(fd, Buffer.alloc(4 * 1024 * 1024, 1));
    expect(source.read().gauges['memory.residentBytes']).toBeGreaterThan(sparse + 3 * 1024 * 1024);
    expect(source.read().counters['memory.majorFaultsPerSecond']).toBeGreaterThanOrEqual(0);
  });
});

describe('a source that follows the QEMU that acts', () => {
  it('opens each one once, closes it when there is another one, and says nothing while there is none', () => {
    let target: string | undefined = 'one';
    const story: string[] = [];
    const source = new FollowingSource('a', {
      target: () => target,
      open: (name) => {
        story.push(`open ${name}`);
        return {
          name,
          read: () => ({ of: name, counters: {}, gauges: {} }),
          [Symbol.dispose]: () => void story.push(`close ${name}`),
        };
      },
    });
    expect(source.read()).toMatchObject({ of: 'one' });
    expect(source.read()).toMatchObject({ of: 'one' });
    target = 'two';
    expect(source.read()).toMatchObject({ of: 'two' });
    target = undefined;
    expect(source.read()).toMatchObject({ of: undefined, counters: {} });
    expect(story).toEqual(['open one', 'close one', 'open two', 'close two']);
  });
});
