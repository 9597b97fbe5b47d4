import { errorFacts } from '../base/errors.ts';
import type { Logger } from '../base/logger.ts';
import type { Machine } from '../qemu/machine.ts';
import {
  type DiskStatistics,
  diskReading,
  LATENCY_BOUNDARIES_NS,
  type LatencyHistogram,
} from '../telemetry/disk-statistics.ts';
import { parseGuestStatistics } from '../telemetry/guest-statistics.ts';
import { type MetricSource, NOTHING_READ, type Reading } from '../telemetry/metric-source.ts';

/** Asked for again and again: not for the log. */
const ROUTINE = { routine: true } as const;
const BALLOON_POLL_S = 1;

/** Thread ids of the vCPUs of a QEMU. */
export async function vcpuThreads({ qmp }: Pick<Machine, 'qmp'>): Promise<number[]> {
  const vcpus = await qmp.execute<readonly { 'thread-id': number }[]>('query-cpus-fast', undefined, ROUTINE);
  return vcpus.map((vcpu) => vcpu['thread-id']);
}

/** What `query-blockstats` says of one device, as far as it matters here. */
interface BlockStats {
  /** QOM path of the device behind its bus, by which alone it is found again: `/machine/peripheral/disk0/virtio-backend`. */
  readonly qdev?: string;
  readonly stats: {
    readonly rd_operations: number;
    readonly wr_operations: number;
    readonly rd_bytes: number;
    readonly wr_bytes: number;
    readonly rd_total_time_ns: number;
    readonly wr_total_time_ns: number;
    readonly flush_total_time_ns: number;
    readonly rd_latency_histogram?: LatencyHistogram;
    readonly wr_latency_histogram?: LatencyHistogram;
  };
}

/** What a QEMU counts of its disks: as its guest sees them, whoever has the image. */
export class DiskSource implements MetricSource {
  readonly name = 'disks';
  readonly #machine: Pick<Machine, 'qmp'>;
  readonly #disks: readonly string[];
  readonly #log: Logger;
  #hasHistograms = false;
  #before: readonly DiskStatistics[] = [];

  constructor(machine: Pick<Machine, 'qmp'>, { disks, log }: { disks: readonly string[]; log: Logger }) {
    this.#machine = machine;
    this.#disks = disks;
    this.#log = log;
  }

  async read(): Promise<Reading> {
    const { qmp } = this.#machine;
    const all = await qmp.execute<readonly BlockStats[]>('query-blockstats', undefined, ROUTINE);
    if (!this.#hasHistograms) await this.#begin(all);
    const now = all.flatMap((device) => statisticsOf(device, this.#disks));
    const reading = diskReading(this, now, this.#before);
    this.#before = now;
    return reading;
  }

  /** Without latencies the rest is as good. */
  async #begin(all: readonly BlockStats[]): Promise<void> {
    this.#hasHistograms = true;
    const boundaries = LATENCY_BOUNDARIES_NS;
    for (const { qdev: id } of all) {
      if (id === undefined || diskOf(id, this.#disks) === undefined) continue;
      try {
        await this.#machine.qmp.execute('block-latency-histogram-set', { id, boundaries }, ROUTINE);
      } catch (thrown) {
        this.#log.warn('QEMU counts no latencies of a disk', { disk: id, ...errorFacts(thrown) });
      }
    }
  }

  [Symbol.dispose](): void {}
}

/** The disk of the specification that has this device. */
function diskOf(qdev: string, disks: readonly string[]): string | undefined {
  return disks.find((id) => qdev.split('/').includes(id));
}

function statisticsOf({ qdev = '', stats }: BlockStats, disks: readonly string[]): DiskStatistics[] {
  const disk = diskOf(qdev, disks);
  if (disk === undefined) return [];
  const { rd_latency_histogram: reads, wr_latency_histogram: writes } = stats;
  return [
    {
      disk,
      readOps: stats.rd_operations,
      writeOps: stats.wr_operations,
      readBytes: stats.rd_bytes,
      writeBytes: stats.wr_bytes,
      busySeconds: (stats.rd_total_time_ns + stats.wr_total_time_ns + stats.flush_total_time_ns) / 1e9,
      latencies: [reads, writes].filter((histogram) => histogram !== undefined),
    },
  ];
}

interface QomProperty {
  readonly name: string;
  readonly type: string;
}

/** What a guest with a balloon says of its memory. */
export class BalloonSource implements MetricSource {
  readonly name = 'balloon';
  readonly #qmp: Machine['qmp'];
  /** Null: it has none. */
  #path: string | null | undefined;

  constructor({ qmp }: Pick<Machine, 'qmp'>) {
    this.#qmp = qmp;
  }

  async read(): Promise<Reading> {
    this.#path ??= await this.#find();
    if (this.#path === null) return NOTHING_READ;
    const answer = await this.#qmp.execute('qom-get', { path: this.#path, property: 'guest-stats' }, ROUTINE);
    const { totalBytes, availableBytes, freeBytes } = parseGuestStatistics(answer) ?? {};
    const gauges = {
      ...(totalBytes !== undefined && { 'memory.guestTotalBytes': totalBytes }),
      ...(availableBytes !== undefined && { 'memory.guestAvailableBytes': availableBytes }),
      ...(freeBytes !== undefined && { 'memory.guestFreeBytes': freeBytes }),
    };
    return { of: this, counters: {}, gauges };
  }

  async #find(): Promise<string | null> {
    for (const folder of ['/machine/peripheral', '/machine/peripheral-anon']) {
      const properties = await this.#qmp.execute<readonly QomProperty[]>(
        'qom-list',
        { path: folder },
        ROUTINE,
      );
      const balloon = properties.find(({ type }) => type.startsWith('child<virtio-balloon'));
      if (balloon === undefined) continue;
      const path = `${folder}/${balloon.name}`;
      const polling = { path, property: 'guest-stats-polling-interval', value: BALLOON_POLL_S };
      await this.#qmp.execute('qom-set', polling, ROUTINE);
      return path;
    }
    return null;
  }

  [Symbol.dispose](): void {}
}
