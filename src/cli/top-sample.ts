import { ApiError } from '../api/api-error.ts';
import type { Host } from '../api/resources.ts';
import type { Figures, VmStats } from '../api/stats.ts';
import type { Clock } from '../base/clock.ts';
import { KeeperScrape } from '../control/keeper-scrape.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { figuresOf } from '../control/vm-figures.ts';
import { hostClient } from './host-connection.ts';

export interface SampledVm {
  readonly name: string;
  readonly state: string;
  /** Null for a VM that no host owns. */
  readonly desired: VmStats['desired'] | null;
  readonly figures: Figures | null;
}

/** All VMs at one moment. */
export interface TopSample {
  readonly wallMs: number;
  /** Null where no host answers: then the keepers of this user were asked. */
  readonly host: Host | null;
  readonly vms: readonly SampledVm[];
}

export interface TopVm extends SampledVm {
  /** Null until there are two samples of the same keeper. */
  readonly epochsPerSecond: number | null;
}

/** Asks the host, in one request however many VMs it has; where there is none, the keepers of this user. */
export class TopSampler {
  readonly #clock: Clock;
  readonly #scrape: KeeperScrape;

  constructor({ clock }: { readonly clock: Clock }) {
    this.#clock = clock;
    this.#scrape = new KeeperScrape({ clock });
  }

  /** @throws ApiError when there is a host that does not answer as it should */
  async take(signal?: AbortSignal): Promise<TopSample> {
    const wallMs = this.#clock.wallMs();
    try {
      return { wallMs, ...(await hostClient().call('getStats', {}, signal)) };
    } catch (thrown) {
      if (!(thrown instanceof ApiError) || thrown.code !== 'API_UNREACHABLE') throw thrown;
    }
    return { wallMs, host: null, vms: await this.#askKeepers() };
  }

  async #askKeepers(): Promise<SampledVm[]> {
    const found = RunDirectory.list();
    const alive = found.filter(({ keeper }) => keeper === 'alive').map(({ name }) => name);
    const measured = await this.#scrape.take(alive);
    return found.map(({ name, keeper, record }) => {
      const metrics = measured.get(name);
      const lost = record?.failed ? 'failed' : 'lost';
      const state = keeper === 'lost' ? lost : (metrics?.phase ?? 'no-answer');
      return { name, state, desired: null, figures: metrics === undefined ? null : figuresOf(metrics) };
    });
  }
}

/** What went on between two samples. A keeper that was started anew counts from 0 again, and is told by that. */
export function withRates(now: TopSample, before: TopSample | undefined): TopVm[] {
  const earlier = new Map(before?.vms.map(({ name, figures }) => [name, figures]));
  return now.vms.map((vm) => ({ ...vm, epochsPerSecond: rateOf(vm.figures, earlier.get(vm.name) ?? null) }));
}

function rateOf(now: Figures | null, before: Figures | null): number | null {
  if (now === null || before === null || now.upMs <= before.upMs) return null;
  return Math.max(0, (now.commits - before.commits) / ((now.upMs - before.upMs) / 1000));
}
