/** What is measured of a VM, by name. A name ends in its unit; rates are per second. */
export interface MetricInfo {
  readonly meaning: string;
  /** One for each disk, or each network card: the name of that stands in the middle, `disk.root.readBytesPerSecond`. */
  readonly per?: 'disk' | 'nic';
}

/**
 * All metrics. Cores are CPU seconds per second; shares are 0 … 1.
 * Sources: sched_schedstat(5 numbers of /proc/PID/task/TID/schedstat, kernel Documentation/scheduler/sched-stats.rst),
 * cgroup (Documentation/admin-guide/cgroup-v2.rst), PSI (Documentation/accounting/psi.rst), QEMU's QMP reference.
 */
export const METRICS = {
  'cpu.usedCores': { meaning: 'time on a CPU of all vCPU threads' },
  'cpu.waitedCores': { meaning: 'time that vCPU threads were ready to run and did not: unmet demand' },
  'cpu.throttledShare': { meaning: 'share of time in which the quota of its cgroup held it back' },
  'cpu.overheadCores': { meaning: 'time on a CPU of the other threads of QEMU, and of the keeper' },
  'memory.residentBytes': { meaning: 'guest memory that takes up memory of the host' },
  'memory.workingSetBytes': { meaning: 'guest memory written within the last minute, from the dirty log' },
  'memory.guestTotalBytes': { meaning: 'what the guest has, as its balloon driver says' },
  'memory.guestAvailableBytes': {
    meaning: 'what the guest could use without swapping, as its balloon driver says',
  },
  'memory.guestFreeBytes': { meaning: 'what is unused in the guest, as its balloon driver says' },
  'memory.majorFaultsPerSecond': { meaning: 'faults of QEMU that waited for storage' },
  'disk.readOpsPerSecond': { meaning: 'reads', per: 'disk' },
  'disk.writeOpsPerSecond': { meaning: 'writes', per: 'disk' },
  'disk.readBytesPerSecond': { meaning: 'bytes read', per: 'disk' },
  'disk.writeBytesPerSecond': { meaning: 'bytes written', per: 'disk' },
  'disk.latencyP50Ms': { meaning: 'latency of requests, median', per: 'disk' },
  'disk.latencyP99Ms': { meaning: 'latency of requests, 99th percentile', per: 'disk' },
  'disk.queueDepth': { meaning: 'requests under way, mean', per: 'disk' },
  'net.receivedBytesPerSecond': { meaning: 'bytes to the guest', per: 'nic' },
  'net.sentBytesPerSecond': { meaning: 'bytes from the guest', per: 'nic' },
  'net.receivedFramesPerSecond': { meaning: 'frames to the guest', per: 'nic' },
  'net.sentFramesPerSecond': { meaning: 'frames from the guest', per: 'nic' },
  'pressure.cpuShare': { meaning: 'share of time in which some task of its cgroup waited for a CPU' },
  'pressure.memoryShare': { meaning: 'the same, for memory' },
  'pressure.ioShare': { meaning: 'the same, for input and output' },
  'host.cpuPressureShare': { meaning: 'share of time in which some task of the host waited for a CPU' },
  'host.memoryPressureShare': { meaning: 'the same, for memory' },
  'host.ioPressureShare': { meaning: 'the same, for input and output' },
  'epoch.perSecond': { meaning: 'epochs committed' },
  'epoch.pausedShare': { meaning: 'share of time in which the VM stood still for its epochs' },
  'epoch.dirtyBytesPerSecond': { meaning: 'guest memory taken into epochs' },
  'telemetry.sampleMicroseconds': { meaning: 'what taking this sample cost the keeper, of its one thread' },
} as const satisfies Readonly<Record<string, MetricInfo>>;

export type Metric = keyof typeof METRICS;

/** A metric of one VM as samples and series name it: with its disk or network card in it where it is one of many. */
export type MetricName = string;

/** `disk.readOpsPerSecond` of `root` is `disk.root.readOpsPerSecond`. */
export function metricOf(metric: Metric, part: string): MetricName {
  const [group, ...rest] = metric.split('.');
  return [group, part, ...rest].join('.');
}

/** What is known of a metric by its name, with or without a disk or network card in it. */
export function metricInfo(name: MetricName): MetricInfo | undefined {
  const known: Readonly<Record<string, MetricInfo>> = METRICS;
  if (Object.hasOwn(known, name)) return known[name]?.per === undefined ? known[name] : undefined;
  const [group, , ...rest] = name.split('.');
  const whole = [group, ...rest].join('.');
  return Object.hasOwn(known, whole) && known[whole]?.per !== undefined ? known[whole] : undefined;
}
