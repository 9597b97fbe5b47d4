import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { systemClock } from '../src/base/clock.ts';
import { MIB } from '../src/base/units.ts';
import { CgroupTree } from '../src/linux/cgroup.ts';
import { CpuSource } from '../src/telemetry/cpu-source.ts';
import { MemorySource } from '../src/telemetry/memory-source.ts';
import { metricOf } from '../src/telemetry/metric.ts';
import type { MetricSource, Reading } from '../src/telemetry/metric-source.ts';
import { ProfileWindow } from '../src/telemetry/performance-profile.ts';
import { HOST_PRESSURE, PressureSource } from '../src/telemetry/pressure-source.ts';
import type { Sample } from '../src/telemetry/sample.ts';
import { SampleFeed } from '../src/telemetry/sample-feed.ts';
import { Sampling } from '../src/telemetry/sampling.ts';
import { ThrottlingSource } from '../src/telemetry/throttling-source.ts';
import type { Benchmark, BenchRun } from './harness.ts';

const VMS = 1000;
const INTERVAL_MS = 1000;
/** Real processes with real memory files and cgroups; each stands for so many VMs. */
const PROCESSES = 20;
const MEASURE_MS = 60_000;
const QUICK_MEASURE_MS = 10_000;
/** The compiler has seen everything by then, and each sampler has begun. */
const WARM_UP_MS = 5000;
const END_DEADLINE_MS = 10_000;

/** What is done with each sample of a VM, beside taking it. */
type Consumer = (sample: Sample) => void;

/**
 * What a host does with samples, for one VM each. Forecasts and decisions about resources belong here as well, as soon as there
 * are any: what is added is part of `coreShare` and `tickP99Ms`.
 */
const CONSUMERS: readonly { readonly name: string; readonly open: () => Consumer }[] = [
  {
    name: 'profile',
    open: () => {
      const window = new ProfileWindow({ samplesMax: 60 });
      return (sample) => window.add(sample);
    },
  },
  {
    name: 'subscriber',
    open: () => {
      const feed = new SampleFeed();
      const subscription = feed.subscribe({ samplesMax: 64, onSample: () => void subscription.take() });
      return (sample) => feed.publish(sample);
    },
  },
];

export const sampling: Benchmark = {
  name: 'sampling',
  summary: 'What it costs one core to sample 1,000 VMs once a second.',
  figures: {
    vms: {
      meaning: 'VMs that are sampled in one process, each by a sampler of its own',
      target: { atLeast: VMS },
    },
    coreShare: {
      meaning: 'share of one core that this process takes, at one sample a second of each VM',
      target: { atMost: 0.25 },
    },
    tickP99Ms: {
      meaning: 'from when a sample was due until all is done with it, behind those of other VMs: 99 of 100',
    },
    tickP50Ms: { meaning: 'the same, half of all' },
    sampleP50Us: { meaning: 'what taking a sample costs, as each says of itself; median' },
    missedSamples: { meaning: 'samples that were due and not taken', target: { atMost: 0 } },
    rssMiB: { meaning: 'memory of this process with all samplers' },
  },
  run: async (run) => {
    await using host = await StandIns.start(run);
    using samplers = new DisposableStack();
    const counts = { samples: 0, isMeasured: false };
    for (let index = 0; index < VMS; index += 1) samplers.use(samplerOf(run, { host, index, counts }));
    run.progress(`sampling ${VMS} VMs`);
    const { clock, signal, quick } = run.options;
    await clock.sleep(WARM_UP_MS, signal);
    const measureMs = quick ? QUICK_MEASURE_MS : MEASURE_MS;
    counts.isMeasured = true;
    const before = process.cpuUsage();
    const startMs = clock.nowMs();
    await clock.sleep(measureMs, signal);
    const { user, system } = process.cpuUsage(before);
    const tookMs = clock.nowMs() - startMs;
    counts.isMeasured = false;
    run.figure('vms', VMS);
    run.figure('coreShare', (user + system) / 1000 / tookMs);
    run.figure('tickP99Ms', run.quantile('tickMs', 0.99));
    run.figure('tickP50Ms', run.p50('tickMs'));
    run.figure('sampleP50Us', run.p50('sampleUs'));
    // At both ends of the time, a sample of each VM may fall on either side.
    run.figure('missedSamples', Math.max(0, Math.floor((tookMs / INTERVAL_MS - 1) * VMS) - counts.samples));
    run.figure('rssMiB', process.memoryUsage.rss() / MIB);
    run.note(
      `each VM has a sampler of its own with its own files; ${PROCESSES} real processes with ${host.threads} threads each stand for ${VMS} QEMUs, with memory files${host.hasGroups ? ' and cgroups' : ''} of their own`,
    );
    run.note(
      'with each sample: ' +
        CONSUMERS.map(({ name }) => name).join(', ') +
        '; no forecast and no decision yet',
    );
    run.note(
      'without disks, which QEMU is asked for: no QEMU runs here. In reality keepers share this work, a VM each',
    );
  },
};

interface SamplerPlace {
  readonly host: StandIns;
  readonly index: number;
  readonly counts: { samples: number; isMeasured: boolean };
}

/** Begins at a moment of its own within an interval, as VMs do that were not started at once. */
function samplerOf(run: BenchRun, { host, index, counts }: SamplerPlace): Disposable {
  const { clock } = run.options;
  const consumers = CONSUMERS.map(({ open }) => open());
  let dueMs = 0;
  const sampler = new Sampling({
    ...{ vm: `vm-${index}`, instanceId: () => 'bench', sources: host.sourcesOf(index), clock },
    monotonicMs: () => clock.nowMs(),
    intervalMs: INTERVAL_MS,
    onSample: (sample) => {
      for (const consume of consumers) consume(sample);
      // Timers know whole milliseconds, and may come a little early.
      const late = Math.max(0, clock.nowMs() - dueMs);
      dueMs += INTERVAL_MS * (1 + Math.floor(late / INTERVAL_MS));
      if (!counts.isMeasured) return;
      counts.samples += 1;
      run.sample('tickMs', late);
      run.sample('sampleUs', sample.values['telemetry.sampleMicroseconds'] ?? 0);
    },
    onTrouble: ({ source, error = 'it hangs' }) => run.note(`the source ${source} failed: ${error}`),
  });
  const cancel = clock.after((INTERVAL_MS * index) / VMS, () => {
    dueMs = clock.nowMs() + INTERVAL_MS;
    sampler.start();
  });
  return {
    [Symbol.dispose]: () => {
      cancel();
      sampler[Symbol.dispose]();
    },
  };
}

interface StandIn {
  readonly pid: number;
  readonly memoryFd: number;
  readonly group: string | undefined;
}

/** What stands for QEMUs: idle processes of Node, which have as many threads as a QEMU, or more. */
class StandIns implements AsyncDisposable {
  readonly #all: readonly StandIn[];
  readonly #owned: AsyncDisposableStack;
  readonly hasGroups: boolean;

  private constructor(all: readonly StandIn[], owned: AsyncDisposableStack) {
    this.#all = all;
    this.#owned = owned;
    this.hasGroups = all.every(({ group }) => group !== undefined);
  }

  static async start(run: BenchRun): Promise<StandIns> {
    run.progress(`starting ${PROCESSES} processes`);
    await using starting = new AsyncDisposableStack();
    const folder = mkdtempSync('/dev/shm/us-bench-');
    starting.defer(() => rmSync(folder, { recursive: true, force: true }));
    const detected = CgroupTree.detect();
    const all: StandIn[] = [];
    for (let index = 0; index < PROCESSES; index += 1) {
      const group =
        detected.kind === 'usable' ? detected.tree.create(`us-bench-${process.pid}-${index}`) : undefined;
      starting.defer(() => group?.remove({ clock: systemClock, deadlineMs: END_DEADLINE_MS }));
      const child = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1e9); console.log(1)'], {
        stdio: ['ignore', 'pipe', 'ignore'],
      });
      starting.defer(() => ended(child));
      await new Promise((resolve) => child.stdout.once('data', resolve).once('close', resolve));
      const pid = child.pid ?? 0;
      await group?.addProcess(pid);
      const memoryFd = openSync(join(folder, String(index)), 'w+');
      starting.defer(() => closeSync(memoryFd));
      writeSync(memoryFd, Buffer.alloc(MIB, 1));
      all.push({ pid, memoryFd, group: group?.directory });
    }
    return new StandIns(all, starting.move());
  }

  get threads(): number {
    return readdirSync(`/proc/${this.#all[0]?.pid}/task`).length;
  }

  sourcesOf(index: number): MetricSource[] {
    const { pid, memoryFd, group } = this.#all[index % this.#all.length] as StandIn;
    return [
      new CpuSource({ pid, vcpuThreads: async () => [pid], nowMs: () => systemClock.nowMs() }),
      new MemorySource({ pid, memoryFd }),
      ...(group === undefined ? [] : [new ThrottlingSource(group)]),
      new PressureSource('host', HOST_PRESSURE),
      new KeptCounters(),
    ];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#owned[Symbol.asyncDispose]();
  }
}

/** What a keeper counts itself: a network card, and its epochs. */
class KeptCounters implements MetricSource {
  readonly name = 'kept';
  #count = 0;

  read(): Reading {
    this.#count += 1;
    return {
      of: this,
      counters: {
        [metricOf('net.receivedBytesPerSecond', 'nic0')]: this.#count,
        [metricOf('net.sentBytesPerSecond', 'nic0')]: this.#count,
        [metricOf('net.receivedFramesPerSecond', 'nic0')]: this.#count,
        [metricOf('net.sentFramesPerSecond', 'nic0')]: this.#count,
        'epoch.perSecond': this.#count,
        'epoch.pausedShare': this.#count / 1000,
        'epoch.dirtyBytesPerSecond': this.#count,
      },
      gauges: { 'memory.workingSetBytes': this.#count },
    };
  }

  [Symbol.dispose](): void {}
}

function ended(child: ChildProcess): Promise<void> {
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  child.kill('SIGKILL');
  return exited;
}
