import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { parseHostConfig } from '../../src/config/host-config.ts';
import { HOUR_MS, MINUTE_MS, SECOND_MS } from '../../src/telemetry/buckets.ts';
import { openSeriesStore } from '../../src/telemetry/open-series-store.ts';
import type { Sample } from '../../src/telemetry/sample.ts';
import { RESOLUTIONS, type SeriesStore } from '../../src/telemetry/series-store.ts';
import { differences, pastHourMs, ReferenceSeries } from './reference-series.ts';
import { sample } from './series-sample.ts';

export interface StoreSetting {
  readonly store: () => SeriesStore;
  /** Ends the store in good order and opens it again. */
  readonly reopen: () => Promise<void>;
  /** A host's configuration that asks for such a store. */
  readonly config: () => string;
}

const CHANGES_MAX = 12;
const ROUNDS = 3;
const KILLED_AFTER = 150;
let vms = 0;

/** A name that no other test uses. */
function vm(): string {
  vms += 1;
  return `vm-${vms}`;
}

/** What every store does. Samples lie in the last hours, as those of samplers do. */
export function itIsASeriesStore(setting: StoreSetting): void {
  itMakesBuckets(setting);
  itCountsEachSampleOnce(setting);
  itTakesAnyName(setting);
  itForgets(setting);
  itAnswersAsAMapWould(setting);
  itSurvivesItsProcess(setting);
}

const moment = fc.oneof(
  fc.nat({ max: 3 * 60 }).map((seconds) => seconds * 1000),
  fc.nat({ max: 2 * HOUR_MS - 1 }),
  fc.constantFrom(0, HOUR_MS - 1, HOUR_MS, MINUTE_MS - 1, MINUTE_MS),
);
const change = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant('append' as const),
      points: fc.array(
        fc.record({
          of: fc.nat({ max: 2 }),
          metric: fc.constantFrom('a', 'b'),
          offsetMs: moment,
        }),
        { maxLength: 40 },
      ),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('forget' as const), of: fc.nat({ max: 2 }) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('reopen' as const) }) },
);

const nowMs = Date.now();
const hourMs = pastHourMs(nowMs);
const all = { fromMs: hourMs - HOUR_MS, toMs: nowMs + HOUR_MS };

function itMakesBuckets({ store, reopen }: StoreSetting): void {
  it('has nothing of a VM or a series that nobody has told it of', async () => {
    expect(await store().metrics('nobody')).toEqual([]);
    for (const resolution of RESOLUTIONS)
      expect(await store().range({ vm: 'nobody', metric: 'cpu.usedCores', ...all, resolution })).toEqual([]);
    const name = vm();
    await store().append([]);
    await store().append([sample(name, hourMs, {})]);
    await store().append([sample(name, hourMs, { 'cpu.usedCores': 1 })]);
    expect(await store().range({ vm: name, metric: 'cpu.waitedCores', ...all, resolution: '1s' })).toEqual(
      [],
    );
  });

  it('makes buckets of a second, a minute and an hour of samples', async () => {
    const [name, metric] = [vm(), 'cpu.usedCores'];
    const reference = new ReferenceSeries();
    const samples = Array.from({ length: 90 }, (_, index) =>
      sample(name, hourMs + 59 * MINUTE_MS + index * SECOND_MS, { [metric]: Math.sin(index) }),
    );
    reference.append(samples);
    for (let at = 0; at < samples.length; at += 10) await store().append(samples.slice(at, at + 10));
    for (const [resolution, count] of [
      ['1s', 90],
      ['1m', 2],
      ['1h', 2],
    ] as const) {
      const query = { vm: name, metric, ...all, resolution };
      const found = await store().range(query);
      expect(found).toHaveLength(count);
      expect(differences(found, reference.range(query))).toEqual([]);
    }
    await reopen();
    const query = { vm: name, metric, ...all, resolution: '1m' } as const;
    expect(differences(await store().range(query), reference.range(query))).toEqual([]);
  });

  it('has what was just measured, at once and in every resolution', async () => {
    const [name, metric] = [vm(), 'net.eth0.sentFramesPerSecond'];
    const wallMs = Date.now();
    await store().append([sample(name, wallMs, { [metric]: 7 })]);
    for (const resolution of RESOLUTIONS)
      expect(await store().range({ vm: name, metric, ...all, resolution })).toMatchObject([
        { count: 1, min: 7, mean: 7, max: 7, p50: 7, p90: 7, p99: 7 },
      ]);
  });

  it('answers with buckets that begin at or after a moment and before another', async () => {
    const [name, metric] = [vm(), 'm'];
    await store().append(
      [0, 1, 2, 3].map((step) => sample(name, hourMs + step * MINUTE_MS + 500, { [metric]: step })),
    );
    const starts = async (fromMs: number, toMs: number) =>
      (await store().range({ vm: name, metric, fromMs, toMs, resolution: '1m' })).map(
        ({ startMs }) => (startMs - hourMs) / MINUTE_MS,
      );
    expect(await starts(hourMs, hourMs + 3 * MINUTE_MS)).toEqual([0, 1, 2]);
    expect(await starts(hourMs + 1, hourMs + 3 * MINUTE_MS + 1)).toEqual([1, 2, 3]);
    expect(await starts(hourMs + MINUTE_MS, hourMs + MINUTE_MS)).toEqual([]);
    expect(await starts(hourMs + MINUTE_MS, hourMs)).toEqual([]);
  });
}

function itCountsEachSampleOnce({ store, reopen }: StoreSetting): void {
  it('counts the same sample once, in the same batch, in another one and after it was opened again', async () => {
    const [name, metric] = [vm(), 'm'];
    const same = sample(name, hourMs + 1234, { [metric]: 5 });
    await store().append([same, same]);
    await store().append([same, sample(name, hourMs + 1235, { [metric]: 6 })]);
    await reopen();
    await store().append([same]);
    for (const resolution of RESOLUTIONS)
      expect(await store().range({ vm: name, metric, ...all, resolution })).toMatchObject([
        { count: 2, mean: 5.5 },
      ]);
  });

  it('counts a late sample where it belongs, in every resolution, also after buckets were made', async () => {
    const [name, metric] = [vm(), 'm'];
    const reference = new ReferenceSeries();
    for (const offsetMs of [10_000, 3_599_000, 5_000, 70_000, 0, 3_600_000, -1]) {
      const samples = [sample(name, hourMs + offsetMs, { [metric]: offsetMs })];
      reference.append(samples);
      await store().append(samples);
      for (const resolution of RESOLUTIONS) {
        const query = { vm: name, metric, ...all, resolution };
        expect(differences(await store().range(query), reference.range(query))).toEqual([]);
      }
    }
  });

  it('drops what is later than its retention or far ahead, and counts it', async () => {
    const [name, metric] = [vm(), 'm'];
    const { dropped } = await store().usage();
    await store().append([
      sample(name, nowMs - 30 * 24 * HOUR_MS, { [metric]: 1, other: 1 }),
      sample(name, nowMs + 3 * HOUR_MS, { [metric]: 2 }),
      sample(name, hourMs, { [metric]: 3 }),
    ]);
    const whole = { vm: name, metric, fromMs: 0, toMs: nowMs + 10 * HOUR_MS, resolution: '1h' } as const;
    expect(await store().range(whole)).toMatchObject([{ startMs: hourMs, count: 1, mean: 3 }]);
    expect((await store().usage()).dropped).toBe(dropped + 3);
    expect(await store().metrics(name)).toEqual([metric]);
  });
}

function itTakesAnyName({ store }: StoreSetting): void {
  it.each([
    ['quotes and braces', 'a"b\\"c{}\'`'],
    ['what a query might execute', '"} or vector(1) or x{y="'],
    ['what SQL might execute', "'); DROP TABLE points; --"],
    ['line ends and controls', 'a\nb\r\t\u0001\u001f\u007f'],
    ['other scripts', 'Größe 東京 🐧 \u2028'],
    ['a regular expression', '.*|[a-z]+$'],
    ['a name of JavaScript', '__proto__'],
    ['a name of VictoriaMetrics', '__name__'],
  ])('takes %s in names of VMs and metrics for what they are', async (_, text) => {
    const name = `${vm()}${text}`;
    const values = Object.fromEntries([
      [`disk.${text}.readOpsPerSecond`, 1],
      [text, 2],
    ]);
    await store().append([sample(name, hourMs, values), sample(`${name}x`, hourMs, { [`${text}y`]: 3 })]);
    expect(await store().metrics(name)).toEqual([text, `disk.${text}.readOpsPerSecond`].sort());
    for (const [metric, value] of Object.entries(values))
      expect(await store().range({ vm: name, metric, ...all, resolution: '1m' })).toMatchObject([
        { count: 1, mean: value },
      ]);
    await store().forget(name);
    expect(await store().metrics(name)).toEqual([]);
    expect(await store().metrics(`${name}x`)).toEqual([`${text}y`]);
  });

  it.each<[string, Partial<Sample>]>([
    ['no name', { vm: '' }],
    ['a name without end', { vm: 'x'.repeat(256) }],
    ['half a character in a name', { vm: 'x\ud800' }],
    ['a NUL in a name', { values: { 'a\0b': 1 } }],
    ['a metric without a name', { values: { '': 1 } }],
    ['a value that is none', { values: { m: Number.NaN } }],
    ['an infinite value', { values: { m: Number.POSITIVE_INFINITY } }],
    ['no moment', { wallMs: Number.NaN }],
    ['a moment before time began', { wallMs: -1 }],
  ])('refuses a sample with %s, and keeps nothing of its batch', async (_, wrong) => {
    const name = vm();
    const good = sample(name, hourMs, { m: 1 });
    await expect(store().append([good, { ...good, ...wrong }])).rejects.toMatchObject({
      code: 'TELEMETRY_SAMPLE_INVALID',
    });
    expect(await store().metrics(name)).toEqual([]);
  });
}

function itForgets({ store, reopen }: StoreSetting): void {
  it('forgets a VM for good, and takes what comes after that', async () => {
    const [name, other, metric] = [vm(), vm(), 'm'];
    await store().append([name, other].map((each) => sample(each, hourMs, { [metric]: 1, old: 1 })));
    await store().forget(name);
    const query = { vm: name, metric, ...all, resolution: '1h' } as const;
    expect(await store().range(query)).toEqual([]);
    expect(await store().metrics(name)).toEqual([]);
    expect(await store().range({ ...query, vm: other })).toHaveLength(1);
    await store().append([sample(name, hourMs + 5, { [metric]: 2 })]);
    await reopen();
    expect(await store().range(query)).toMatchObject([{ count: 1, mean: 2 }]);
    expect(await store().metrics(name)).toEqual([metric]);
    await store().forget('never seen');
  });

  it('keeps numbers whatever their size', async () => {
    const [name, metric] = [vm(), 'm'];
    const values = [0, -0, 1e-9, -1e15, 2 ** 53, 0.1, 1e15 + 0.5];
    const reference = new ReferenceSeries();
    const samples = values.map((value, index) => sample(name, hourMs + index * 100, { [metric]: value }));
    reference.append(samples);
    await store().append(samples);
    for (const resolution of RESOLUTIONS) {
      const query = { vm: name, metric, ...all, resolution };
      expect(differences(await store().range(query), reference.range(query))).toEqual([]);
    }
  });

  it('says how much it holds', async () => {
    const before = await store().usage();
    await store().append([sample(vm(), hourMs, { a: 1, b: 2, c: 3 })]);
    const after = await store().usage();
    expect(after.series).toBe((before.series ?? 0) + 3);
    expect(after.bytes).toBeGreaterThan(0);
    expect(after.trouble).toBeUndefined();
  });
}

function itAnswersAsAMapWould({ store, reopen }: StoreSetting): void {
  it('answers as a map of all samples would, whatever comes in whatever order', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(change, { maxLength: CHANGES_MAX }), async (changes) => {
        const names = [vm(), vm(), vm()];
        const nameOf = (of: number) => names[of] ?? '';
        const reference = new ReferenceSeries();
        for (const step of changes) {
          if (step.kind === 'append') {
            // A value is a function of its moment, as the same moment is the same sample.
            const samples = step.points.map(({ of, metric, offsetMs }) =>
              sample(nameOf(of), hourMs + offsetMs, { [metric]: Math.cos(offsetMs) * 1e6 }),
            );
            reference.append(samples);
            await store().append(samples);
          } else if (step.kind === 'forget') {
            reference.forget(nameOf(step.of));
            await store().forget(nameOf(step.of));
          } else await reopen();
        }
        for (const name of names) {
          expect(await store().metrics(name)).toEqual(reference.metrics(name));
          for (const metric of ['a', 'b'])
            for (const resolution of RESOLUTIONS) {
              const query = { vm: name, metric, ...all, resolution };
              expect(differences(await store().range(query), reference.range(query))).toEqual([]);
            }
        }
      }),
      { numRuns: 15 },
    );
  });
}

function itSurvivesItsProcess({ config }: StoreSetting): void {
  it('has lost nothing that was safe when its process is killed in the middle', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'us-crash-'));
    try {
      const safe = new Set<number>();
      for (let round = 0; round < ROUNDS; round += 1) {
        const beginMs = hourMs - round * HOUR_MS;
        const script = new URL('crashing-series-writer.ts', import.meta.url).pathname;
        const child = spawn(process.execPath, [script, config(), directory, String(beginMs)], {
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        const exited = once(child, 'exit');
        try {
          for await (const line of createInterface({ input: child.stdout })) {
            safe.add(beginMs + Number(line) * SECOND_MS);
            if (Number(line) === KILLED_AFTER) child.kill('SIGKILL');
          }
        } finally {
          child.kill('SIGKILL');
          await exited;
        }
      }
      const { telemetry } = parseHostConfig(config(), { source: 'test' });
      await using store = await openSeriesStore(telemetry, { directory });
      for (const metric of ['m0', 'm39']) {
        const query = {
          vm: 'crash',
          metric,
          fromMs: hourMs - 3 * HOUR_MS,
          toMs: nowMs,
          resolution: '1s',
        } as const;
        const found = new Set((await store.range(query)).map(({ startMs }) => startMs));
        expect([...safe].filter((startMs) => !found.has(startMs))).toEqual([]);
      }
      expect(safe.size).toBeGreaterThan(ROUNDS * KILLED_AFTER - ROUNDS * 8);
      await store.forget('crash');
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
}
