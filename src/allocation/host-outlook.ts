import type { MethodScratch } from '../forecast/method-scratch.ts';
import type { SampleTime } from '../forecast/sample-clock.ts';
import { RESOURCES, type Resource } from './resource.ts';
import { type Peak, quantileAt, ResourceTracker } from './resource-tracker.ts';
import type { Demands } from './vm-demand.ts';

const NAMES = Object.keys(RESOURCES) as Resource[];

export interface OutlookOptions {
  readonly horizonMs: number;
  readonly scratch: MethodScratch;
}

/** One resource of a host against what its VMs will need of it together. */
export interface ResourceOutlook {
  /** Of the highest sum within the horizon; undefined where too little is known. */
  readonly peakOfSum: Peak | undefined;
  /** What all VMs use now, together. */
  readonly used: number;
  readonly vms: number;
}

/**
 * What the VMs of a host will need together. Their peaks do not come at the same time, or all come at once: the sum of their
 * peaks says neither. So the sum of what they use is a series of its own, and its peak is forecast.
 */
export class HostOutlook {
  readonly #trackers: ReadonlyMap<Resource, ResourceTracker>;
  readonly #demands = new Map<string, { readonly demands: Demands; readonly untilMs: number }>();

  constructor({ horizonMs, scratch }: OutlookOptions) {
    const options = { horizonMs, scratch, phase: 0, scaled: undefined, saved: undefined };
    this.#trackers = new Map(NAMES.map((name) => [name, new ResourceTracker(options)]));
  }

  /** What a VM wanted last. It counts until it says something else or `untilMs` (CLOCK_MONOTONIC) has passed. */
  note(vm: string, { demands, untilMs }: { readonly demands: Demands; readonly untilMs: number }): void {
    this.#demands.set(vm, { demands, untilMs });
  }

  forget(vm: string): void {
    this.#demands.delete(vm);
  }

  /** A sample of all of them together. */
  take(time: SampleTime): void {
    for (const [vm, { untilMs }] of this.#demands) if (untilMs < time.monotonicMs) this.#demands.delete(vm);
    for (const [resource, tracker] of this.#trackers) {
      const { used, vms } = this.#sumOf(resource);
      if (vms > 0) tracker.forecaster.add(used, time);
    }
  }

  view(resource: Resource): ResourceOutlook {
    return { ...this.#sumOf(resource), peakOfSum: this.#trackers.get(resource)?.peak };
  }

  #sumOf(resource: Resource): { readonly used: number; readonly vms: number } {
    let used = 0;
    let vms = 0;
    for (const { demands } of this.#demands.values()) {
      const demand = demands[resource];
      if (demand === undefined) continue;
      used += demand.used;
      vms += 1;
    }
    return { used, vms };
  }
}

/**
 * What has to be there so that it is too little with no more than `risk`, and what may be promised to VMs like these on a host
 * that has `capacity`: as much more as they leave unused of what they were `promised`.
 */
export function overcommit(
  peakOfSum: Peak,
  {
    capacity,
    promised,
    risk,
  }: { readonly capacity: number; readonly promised: number; readonly risk: number },
): { readonly needed: number; readonly promisable: number } {
  const needed = Math.max(0, quantileAt(peakOfSum, 1 - risk));
  return { needed, promisable: needed > 0 ? (capacity / needed) * promised : capacity };
}
