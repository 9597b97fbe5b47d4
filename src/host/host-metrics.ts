import { Counter, Gauge, Registry } from 'prom-client';
import { observedStateSchema } from '../api/resources.ts';
import type { KeeperFigures } from '../control/keeper-scrape.ts';
import { expositionOf, type MetricFamily } from './metric-family.ts';
import { processFamilies } from './process-families.ts';
import type { HostAction } from './reconcile.ts';
import { vmFamilies } from './vm-families.ts';
import type { CountedVm } from './vm-stats.ts';

export interface CountedHost {
  readonly vms: readonly CountedVm[];
  readonly figures: KeeperFigures;
  readonly isDegraded: boolean;
}

/** What the daemon counts of itself, and what it says about its VMs when it is asked. */
export class HostMetrics {
  readonly #registry = new Registry();
  readonly #actions: Counter;
  readonly #events: Counter;

  /** `version` is that of the program. */
  constructor({ version }: { readonly version: string }) {
    const registers = [this.#registry];
    new Gauge({
      name: 'understudy_build_info',
      help: '1; the labels say what runs.',
      labelNames: ['version', 'node'],
      registers,
    }).set({ version, node: process.versions.node }, 1);
    this.#actions = new Counter({
      name: 'understudy_host_actions_total',
      help: 'What was done so that VMs become what they are desired to be, by kind and outcome.',
      labelNames: ['kind', 'outcome'],
      registers,
    });
    this.#events = new Counter({
      name: 'understudy_host_events_total',
      help: "Events that were written to the host's log.",
      registers,
    });
  }

  noteAction(kind: HostAction['kind'], outcome: 'done' | 'failed'): void {
    this.#actions.inc({ kind, outcome });
  }

  noteEvent(): void {
    this.#events.inc();
  }

  async exposition({ vms, figures, isDegraded }: CountedHost): Promise<string> {
    const families = [...hostFamilies(vms, isDegraded), ...processFamilies(), ...vmFamilies(vms, figures)];
    return (await expositionOf(families)) + (await this.#registry.metrics());
  }
}

/** The families that are counted when somebody asks. */
function hostFamilies(vms: readonly CountedVm[], isDegraded: boolean): MetricFamily[] {
  const count = (holds: (vm: CountedVm) => boolean) => vms.filter(holds).length;
  return [
    {
      name: 'understudy_host_vms',
      help: 'Declared VMs by what they do.',
      type: 'gauge',
      series: observedStateSchema.options.map((state) => ({
        labels: { state },
        value: count((vm) => vm.state === state),
      })),
    },
    {
      name: 'understudy_host_vms_desired',
      help: 'Declared VMs by what they shall do.',
      type: 'gauge',
      series: (['running', 'stopped'] as const).map((desired) => ({
        labels: { desired },
        value: count((vm) => vm.desired === desired),
      })),
    },
    {
      name: 'understudy_host_degraded',
      help: '1 if some VM is not as it is desired to be, else 0.',
      type: 'gauge',
      series: [{ labels: {}, value: isDegraded ? 1 : 0 }],
    },
  ];
}
