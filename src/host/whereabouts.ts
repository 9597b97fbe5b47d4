import type { Clock } from '../base/clock.ts';
import type { KeeperEnd } from '../control/keeper-end.ts';
import { goesOnElsewhere } from '../shadow/protection.ts';
import { SiteRecords } from '../site/site-records.ts';
import type { VmOutline } from './vm-inventory.ts';

/** Where a VM of several hosts may act, as it is on record. */
export type Place =
  /** Nobody has asked yet. */
  | { readonly kind: 'unknown' }
  /** On this host, or nowhere. */
  | { readonly kind: 'here' }
  | { readonly kind: 'elsewhere'; readonly host: string }
  /** It has ended, wherever that was, and nobody is to start it who was not told so since. */
  | { readonly kind: 'ended' };

export interface KnownPlace {
  readonly place: Place;
  /** Long enough ago that it may be another one by now. */
  readonly isStale: boolean;
}

interface Found {
  readonly place: Place;
  readonly askedAtMs: number;
}

export interface WhereaboutsOptions {
  readonly clock: Clock;
  /** Whether it may act on other hosts as well. */
  readonly isSpread: (name: string) => boolean;
}

const UNKNOWN: KnownPlace = { place: { kind: 'unknown' }, isStale: true };

/** Which host acts as the VMs that may act on several. The record decides; how a keeper ended here is a first hint. */
export class Whereabouts {
  readonly #options: WhereaboutsOptions;
  readonly #found = new Map<string, Found>();
  /** By name: the version that was looked at, and what that says. */
  readonly #spread = new Map<string, { readonly version: number; readonly isSpread: boolean }>();

  constructor(options: WhereaboutsOptions) {
    this.#options = options;
  }

  /** Undefined for a VM of this host alone. `staleMs`: how old an answer may be. */
  of(
    vm: VmOutline,
    { end, staleMs }: { end: KeeperEnd | undefined; staleMs: number },
  ): KnownPlace | undefined {
    if (!this.#isSpread(vm)) return undefined;
    const found = this.#found.get(vm.name);
    if (found !== undefined)
      return {
        place: found.place,
        isStale: this.#options.clock.nowMs() - found.askedAtMs >= staleMs,
      };
    return goesOnElsewhere(end?.reason) && end?.host !== undefined
      ? { place: { kind: 'elsewhere', host: end.host }, isStale: true }
      : UNKNOWN;
  }

  /** The host that acts as it, as far as that was found out and is another one. */
  hostOf(name: string): string | undefined {
    const place = this.#found.get(name)?.place;
    return place?.kind === 'elsewhere' ? place.host : undefined;
  }

  /**
   * Asks. Returns the host that acts now, where that is another one than was known.
   * @throws LeaseError, ConfigError, KeeperError
   */
  async locate(name: string): Promise<string | undefined> {
    const before = this.hostOf(name);
    const { clock } = this.#options;
    // Read each time: it may have been corrected.
    const records = SiteRecords.open({ clock });
    const record = await records.read(name);
    const place: Place =
      record === undefined || (record.mode !== 'ended' && record.holder === records.host)
        ? { kind: 'here' }
        : record.mode === 'ended'
          ? { kind: 'ended' }
          : { kind: 'elsewhere', host: record.holder };
    this.#found.set(name, { place, askedAtMs: clock.nowMs() });
    return place.kind === 'elsewhere' && place.host !== before ? place.host : undefined;
  }

  /** Nobody needs to know it for now, so that it need not be asked for in vain. */
  assumeHere(name: string): void {
    this.#found.set(name, { place: { kind: 'here' }, askedAtMs: this.#options.clock.nowMs() });
  }

  /** What was known is no longer true, or may not be. */
  forget(name: string): void {
    this.#found.delete(name);
  }

  #isSpread({ name, version }: VmOutline): boolean {
    const known = this.#spread.get(name);
    if (known?.version === version) return known.isSpread;
    const isSpread = this.#options.isSpread(name);
    this.#spread.set(name, { version, isSpread });
    return isSpread;
  }
}
