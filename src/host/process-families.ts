import { readdirSync } from 'node:fs';
import type { MetricFamily } from './metric-family.ts';

const STARTED_SECONDS = Date.now() / 1000 - process.uptime();

/**
 * What the daemon itself takes, under the names that Prometheus knows. Not `collectDefaultMetrics` of prom-client: that
 * wakes the process a hundred times a second to measure how late it is, which an idle daemon would do for nothing.
 */
export function processFamilies(): MetricFamily[] {
  const { user, system } = process.cpuUsage();
  const { rss, heapUsed, external } = process.memoryUsage();
  return [
    family('process_cpu_seconds_total', 'Processor time of the daemon.', (user + system) / 1e6),
    family('process_resident_memory_bytes', 'Resident memory of the daemon.', rss),
    family('process_start_time_seconds', 'When the daemon started, since 1970.', STARTED_SECONDS),
    // One of them is the one that this looks through.
    family('process_open_fds', 'Open file descriptors.', readdirSync('/proc/self/fd').length - 1),
    family('nodejs_heap_size_used_bytes', 'JavaScript objects.', heapUsed),
    family('nodejs_external_memory_bytes', 'Buffers and other memory outside of the heap.', external),
    family(
      'nodejs_eventloop_busy_seconds_total',
      'Time that the event loop did not wait: near one second a second, answers come late.',
      performance.eventLoopUtilization().active / 1000,
    ),
  ];
}

function family(name: string, help: string, value: number): MetricFamily {
  const type = name.endsWith('_total') ? 'counter' : 'gauge';
  return { name, help, type, series: [{ labels: {}, value }] };
}
