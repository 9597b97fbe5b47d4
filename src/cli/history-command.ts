import type { Series } from '../api/foresight-resources.ts';
import type { Resolution } from '../telemetry/series-store.ts';
import { localTime } from './event-text.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { type Output, table } from './output.ts';
import { valueText } from './telemetry-command.ts';

const METRIC_DEFAULT = 'cpu.usedCores';

export interface HistoryOptions {
  readonly metric: string | undefined;
  readonly resolution: Resolution;
  readonly seconds: number;
}

/** What was measured of a VM until now. */
export async function history(
  name: string,
  { metric = METRIC_DEFAULT, resolution, seconds }: HistoryOptions,
  out: Output,
): Promise<number> {
  const found = await hostClient().call('getSeries', {
    params: { name, metric },
    query: { resolution, seconds },
  });
  out.result(found, () => historyText(found));
  return EXIT_CODES.ok.code;
}

export function historyText({ vm, metric, resolution, buckets, metrics }: Series): string {
  const others = metrics.filter((other) => other !== metric);
  const rest = others.length === 0 ? '' : `\n\nalso measured: ${others.join(', ')}`;
  if (buckets.length === 0) return `nothing was measured of ${metric} of ${vm} in that time${rest}`;
  const rows = buckets.map(({ startedAt, count, ...values }) => {
    const { min, mean, p50, p90, p99, max } = values;
    return [
      localTime(startedAt),
      ...[mean, min, p50, p90, p99, max].map((value) => valueText(metric, value)),
      String(count),
    ];
  });
  const titles = ['TIME', 'MEAN', 'MIN', 'P50', 'P90', 'P99', 'MAX', 'SAMPLES'];
  return `${vm}, ${metric}, by ${resolution}\n\n${table([titles, ...rows])}${rest}`;
}
