import type { Clock } from '../base/clock.ts';
import { loadSiteConfig, type SiteConfig, siteConfigPath } from '../config/site-config.ts';
import type { LeaseRecord } from '../lease/lease-record.ts';
import { siteLeaseStore } from './site-lease-store.ts';

/** What is on record of VMs of several hosts, for those who look and do not write. */
export class SiteRecords {
  readonly host: string;
  readonly #site: SiteConfig;
  readonly #clock: Clock;

  /** @throws ConfigError CONFIG_NOT_FOUND, CONFIG_INVALID */
  static open({ clock }: { clock: Clock }): SiteRecords {
    return new SiteRecords(loadSiteConfig(siteConfigPath()), clock);
  }

  private constructor(site: SiteConfig, clock: Clock) {
    this.host = site.host;
    this.#site = site;
    this.#clock = clock;
  }

  /**
   * Undefined: no host has ever acted as this VM.
   * @throws LeaseError; KeeperError KEEPER_SITE_REFUSED
   */
  async read(vm: string): Promise<LeaseRecord | undefined> {
    await using store = siteLeaseStore(this.#site, { clock: this.#clock });
    return (await store.read(vm)).record;
  }
}
