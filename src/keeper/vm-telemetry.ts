import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { disksOf } from '../config/spec-disks.ts';
import { TELEMETRY_INTERVAL_MS_DEFAULT } from '../config/telemetry-schema.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { RunDirectory } from '../control/run-directory.ts';
import type { TelemetryControl, TelemetryStatus } from '../control/telemetry-status.ts';
import type { VmStatus } from '../control/vm-status.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { ProtectionState } from '../shadow/protection.ts';
import { CpuSource } from '../telemetry/cpu-source.ts';
import { MemorySource } from '../telemetry/memory-source.ts';
import { metricOf } from '../telemetry/metric.ts';
import { FollowingSource, type MetricSource, type Reading } from '../telemetry/metric-source.ts';
import { ProfileWindow } from '../telemetry/performance-profile.ts';
import { cgroupPressure, HOST_PRESSURE, PressureSource } from '../telemetry/pressure-source.ts';
import type { Sample } from '../telemetry/sample.ts';
import { SampleFeed } from '../telemetry/sample-feed.ts';
import { Sampling } from '../telemetry/sampling.ts';
import { ThrottlingSource } from '../telemetry/throttling-source.ts';
import { WrittenPages } from '../telemetry/written-pages.ts';
import type { Instance } from './instance.ts';
import { BalloonSource, DiskSource, vcpuThreads } from './qemu-statistics.ts';
import type { ShadowLife } from './shadow-life.ts';

/** Of the performance profile: a minute at the interval that is usual. */
const PROFILE_SAMPLES = 60;

/** What telemetry needs of the keeper. */
export interface MeasuredVm {
  readonly options: {
    readonly spec: VmSpec;
    readonly clock: Clock;
    readonly log: Logger;
    readonly runDirectory: Pick<RunDirectory, 'generationId'>;
  };
  readonly state: () => Pick<ProtectionState, 'restarts'>;
  readonly primary: () => Instance | undefined;
  readonly links: () => readonly GuestLink[];
  readonly shadow: Pick<ShadowLife, 'stats' | 'pipeline'>;
  readonly publish: (kind: string, facts?: Readonly<Record<string, unknown>>) => void;
}

/** Samples of one VM, whichever of its QEMUs acts. Whatever goes wrong with them is told and does nothing to the VM. */
export class VmTelemetry implements TelemetryControl, Disposable {
  readonly #vm: MeasuredVm;
  readonly #feed = new SampleFeed();
  readonly #window = new ProfileWindow({ samplesMax: PROFILE_SAMPLES });
  readonly #sampling: Sampling;

  constructor(vm: MeasuredVm) {
    this.#vm = vm;
    const { spec, clock } = vm.options;
    this.#sampling = new Sampling({
      ...{ vm: spec.name, clock, sources: sourcesOf(vm) },
      instanceId: () => this.#instanceId,
      monotonicMs: () => Number(process.hrtime.bigint()) / 1e6,
      intervalMs: spec.telemetry?.intervalMs ?? TELEMETRY_INTERVAL_MS_DEFAULT,
      calm: () => vm.shadow.pipeline?.cutting,
      onSample: (sample) => this.#note(sample),
      onTrouble: ({ kind, ...facts }) => vm.publish(`telemetry-${kind}`, facts),
    });
  }

  /** The VM runs. */
  start(): void {
    this.#sampling.start();
  }

  async telemetry({ intervalMs }: { readonly intervalMs?: number | undefined }): Promise<TelemetryStatus> {
    if (intervalMs !== undefined && intervalMs !== this.#sampling.intervalMs) {
      this.#sampling.changeInterval(intervalMs);
      this.#vm.publish('telemetry-interval', { intervalMs });
    }
    return {
      intervalMs: this.#sampling.intervalMs,
      failing: [...this.#sampling.failing],
      last: copyOf(this.#feed.last),
      profile: (this.#window.profile() ?? null) as TelemetryStatus['profile'],
    };
  }

  readonly samples: TelemetryControl['samples'] = (options) => this.#feed.subscribe(options);

  status(): NonNullable<VmStatus['telemetry']> {
    const { intervalMs, failing } = this.#sampling;
    return { intervalMs, failing, last: this.#feed.last ?? null };
  }

  [Symbol.dispose](): void {
    this.#sampling[Symbol.dispose]();
  }

  #note(sample: Sample): void {
    this.#window.add(sample);
    this.#feed.publish(sample);
  }

  /** The same after a takeover, also by another host; another one after a cold restart or a restored snapshot. */
  get #instanceId(): string {
    const { restarts } = this.#vm.state();
    const { generationId } = this.#vm.options.runDirectory;
    return restarts === 0 ? generationId : `${generationId}.${restarts}`;
  }
}

function copyOf(sample: Sample | undefined): TelemetryStatus['last'] {
  return sample === undefined ? null : { ...sample, values: { ...sample.values } };
}

function sourcesOf(vm: MeasuredVm): MetricSource[] {
  const { spec, clock, log } = vm.options;
  const ofPrimary = (name: string, open: (instance: Instance) => MetricSource) =>
    new FollowingSource(name, { target: vm.primary, open });
  const ofGroup = (name: string, open: (directory: string) => MetricSource) =>
    new FollowingSource(name, { target: () => vm.primary()?.cgroup?.directory, open });
  const disks = disksOf(spec).map(({ id }) => id);
  return [
    ofPrimary('cpu', ({ pid, machine }) => {
      return new CpuSource({ pid, vcpuThreads: () => vcpuThreads(machine), nowMs: () => clock.nowMs() });
    }),
    ofPrimary('memory', ({ pid, memory }) => new MemorySource({ pid, memoryFd: memory.fd })),
    ofGroup('throttling', (directory) => new ThrottlingSource(directory)),
    ofGroup('pressure', (directory) => new PressureSource('pressure', cgroupPressure(directory))),
    new PressureSource('host', HOST_PRESSURE),
    new EpochSource(vm),
    new LinkSource(vm),
    ...(disks.length > 0
      ? [ofPrimary('disks', ({ machine }) => new DiskSource(machine, { disks, log }))]
      : []),
    // Of a VM that is protected a balloon is refused, see protectability.ts.
    ...(spec.qemu.extraArgs.some((arg) => arg.includes('virtio-balloon'))
      ? [ofPrimary('balloon', ({ machine }) => new BalloonSource(machine))]
      : []),
  ];
}

/** What the VM's epochs cost, and which memory they took. */
class EpochSource implements MetricSource {
  readonly name = 'epochs';
  readonly #vm: MeasuredVm;
  #written: WrittenPages | undefined;

  constructor(vm: MeasuredVm) {
    this.#vm = vm;
    const { spec, clock } = vm.options;
    vm.shadow.stats.onWritten = (runs) => {
      this.#written ??= new WrittenPages(spec.memoryBytes / PAGE_BYTES);
      this.#written.note(runs, clock.nowMs());
    };
  }

  read(): Reading {
    const { stats, pipeline } = this.#vm.shadow;
    // Without epochs nobody looks at what is written.
    const writtenPages = pipeline && this.#written?.count(this.#vm.options.clock.nowMs());
    return {
      of: this,
      counters: {
        'epoch.perSecond': stats.commitMs.count,
        'epoch.pausedShare': stats.pauseMs.sum / 1000,
        'epoch.dirtyBytesPerSecond': stats.dirtyPages.sum * PAGE_BYTES,
      },
      gauges: writtenPages === undefined ? {} : { 'memory.workingSetBytes': writtenPages * PAGE_BYTES },
    };
  }

  [Symbol.dispose](): void {
    this.#vm.shadow.stats.onWritten = undefined;
  }
}

/** What goes through the VM's network cards. They belong to the keeper, and count over all QEMUs. */
class LinkSource implements MetricSource {
  readonly name = 'links';
  readonly #vm: MeasuredVm;

  constructor(vm: MeasuredVm) {
    this.#vm = vm;
  }

  read(): Reading {
    const counters: Record<string, number> = {};
    for (const { name, carriesFrames, traffic } of this.#vm.links()) {
      if (!carriesFrames) continue;
      counters[metricOf('net.receivedBytesPerSecond', name)] = traffic.receivedBytes;
      counters[metricOf('net.sentBytesPerSecond', name)] = traffic.sentBytes;
      counters[metricOf('net.receivedFramesPerSecond', name)] = traffic.receivedItems;
      counters[metricOf('net.sentFramesPerSecond', name)] = traffic.sentItems;
    }
    return { of: this, counters, gauges: {} };
  }

  [Symbol.dispose](): void {}
}
