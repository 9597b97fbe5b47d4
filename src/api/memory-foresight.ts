import type { Resolution } from '../telemetry/series-store.ts';
import { ApiError, type ApiErrorCode } from './api-error.ts';
import type {
  Allocation,
  Forecast,
  ForesightService,
  Outlook,
  ResourceName,
  Series,
} from './foresight-resources.ts';

const AT = '2026-01-01T00:00:00.000Z';

/** For tests of the API: an agent that has seen one sample and decided once. */
export class MemoryForesight implements ForesightService {
  readonly #ensureVm: (vm: string) => void;

  constructor(ensureVm: (vm: string) => void) {
    this.#ensureVm = ensureVm;
  }

  outlook(host: string, { risk }: { readonly risk: number }): Outlook {
    if (host !== 'here') throw new ApiError('HOST_UNKNOWN' as ApiErrorCode, host);
    const cpu = { resource: 'cpu', unit: 'millicores', capacity: 2000, vms: 0, used: 0 } as const;
    const given = { allocated: 0, reserved: 0, lent: 0 };
    const foreseen = { peakOfSum: null, sumOfPeaks: null, needed: null, promisable: null };
    return { host, risk, horizonSeconds: 3600, resources: [{ ...cpu, ...given, ...foreseen }] };
  }

  async series(
    vm: string,
    { metric, resolution }: { readonly metric: string; readonly resolution: Resolution },
  ): Promise<Series> {
    this.#ensureVm(vm);
    const values = { count: 1, min: 1, mean: 1, max: 1, p50: 1, p90: 1, p99: 1 };
    return { vm, metric, resolution, buckets: [{ startedAt: AT, ...values }], metrics: [metric] };
  }

  forecast(vm: string, resource: ResourceName): Forecast {
    this.#ensureVm(vm);
    return {
      ...{ vm, resource, unit: 'millicores', at: AT, levels: [0.5, 0.9] },
      history: { stepSeconds: 300, startedAt: AT, values: [1, null] },
      rows: [{ horizonSeconds: 5, values: [1, 2] }],
      ...{ peak: null, peakHorizonSeconds: 3600, isAnomalous: false },
      allocation: { allocated: 1000, reserved: 0, min: 100, max: 1000 },
    };
  }

  allocation(vm: string, { limit }: { readonly limit: number }): Allocation {
    const { unit, peak, allocation, isAnomalous } = this.forecast(vm, 'cpu');
    const decisions = [{ id: 1, time: AT, facts: { decision: 'reserve' } }];
    return {
      ...{ vm, mode: 'recommend', horizonSeconds: 3600 },
      resources: [{ resource: 'cpu', unit, peak, allocation, isAnomalous }],
      decisions: decisions.slice(0, limit),
    };
  }
}
