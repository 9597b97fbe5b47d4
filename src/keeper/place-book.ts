import type { Clock } from '../base/clock.ts';
import { MIB } from '../base/units.ts';
import { KeeperError } from '../control/keeper-error.ts';

/**
 * What the other hosts of a site may have of this one at a time, whatever they ask for. What a shadow needs for its memory and
 * its disks is looked at when its keeper knows which VM it is; these are for what it costs to ask.
 */
export const PLACE_BOUNDS = {
  /** Keepers that have been started and whose VM has not come yet. */
  underWay: 64,
  underWayPerPeer: 16,
  /** Keepers that live, whether theirs is a shadow yet or has become the VM. */
  keepersPerPeer: 256,
  keepers: 512,
  /** A keeper and its standby need so much besides the memory of the VM. */
  keeperBytes: 192 * MIB,
} as const;

/** A keeper that was started and whose VM does not come ends by itself: see shadow-main.ts. */
const UNDER_WAY_MS = 40_000;

/** Somebody was given a place. */
export interface Place extends Disposable {
  readonly peer: string;
  readonly vm: string;
}

export interface PlaceBookOptions {
  readonly clock: Clock;
  /** Names of VMs that have a keeper on this host, whoever has started it. */
  readonly kept: () => readonly string[];
  /** By default of this machine. */
  readonly freeBytes?: () => number;
}

/** The places for shadows that this host has given away. They go when their keepers have ended. */
export class PlaceBook {
  readonly #options: PlaceBookOptions;
  readonly #places = new Map<Place, number>();

  constructor(options: PlaceBookOptions) {
    this.#options = options;
  }

  /**
   * Before a process is started for it. Dispose it when that process has ended.
   * @throws KeeperError KEEPER_PLACES_FULL, KEEPER_HOST_NO_ROOM
   */
  take(vm: string, peer: string): Place {
    const { clock, kept, freeBytes = process.availableMemory } = this.#options;
    const known = kept();
    const isOfPeer = (place: Place) => place.peer === peer;
    const all = [...this.#places.keys()];
    const underWay = all.filter((place) => this.#isUnderWay(place, known));
    refuseAbove(PLACE_BOUNDS.underWay, underWay.length, 'keepers of shadows are being started');
    refuseAbove(PLACE_BOUNDS.underWayPerPeer, underWay.filter(isOfPeer).length, `of them for ${peer}`);
    refuseAbove(PLACE_BOUNDS.keepersPerPeer, all.filter(isOfPeer).length, `keepers were started for ${peer}`);
    refuseAbove(PLACE_BOUNDS.keepers, known.length + underWay.length, 'VMs and shadows are here');
    const neededBytes = (underWay.length + 1) * PLACE_BOUNDS.keeperBytes;
    if (freeBytes() < neededBytes)
      throw new KeeperError('KEEPER_HOST_NO_ROOM', 'this host has no memory left for one more keeper', {
        hint: 'Stop or move another VM there, or name another host in shadow.hosts.',
        facts: { neededBytes, freeBytes: freeBytes() },
      });
    const place: Place = { peer, vm, [Symbol.dispose]: () => void this.#places.delete(place) };
    this.#places.set(place, clock.nowMs());
    return place;
  }

  #isUnderWay(place: Place, known: readonly string[]): boolean {
    const sinceMs = this.#places.get(place) ?? 0;
    return !known.includes(place.vm) && this.#options.clock.nowMs() - sinceMs < UNDER_WAY_MS;
  }
}

function refuseAbove(bound: number, count: number, what: string): void {
  if (count < bound) return;
  throw new KeeperError('KEEPER_PLACES_FULL', `this host takes no more shadows now: ${count} ${what}`, {
    hint: 'It is tried again. If that goes on, see what the other host asks for places for.',
    facts: { bound, count },
  });
}
