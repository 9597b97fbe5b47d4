import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/logger.ts';
import type { SiteConfig } from '../config/site-config.ts';
import { EtcdLeaseStore } from '../lease/etcd-lease-store.ts';
import { RenewedCredentials } from './site-credentials.ts';

/** For a call to the store of leases, over all of its members. */
const CALL_DEADLINE_MS = 3000;

/** How long a right lasts that is not renewed. */
export function holdTtlMs({ lease }: SiteConfig): number {
  return lease.holdSeconds * 1000;
}

/**
 * Where a site has it on record who acts as its VMs. A certificate that is renewed is shown from the next call on: the right
 * of a VM that is alone must not end with the certificate that its keeper began with.
 * @throws KeeperError KEEPER_SITE_REFUSED
 */
export function siteLeaseStore(
  site: SiteConfig,
  { clock, log }: { readonly clock: Clock; readonly log?: Logger },
): EtcdLeaseStore {
  const { etcd } = site.lease;
  const credentials = new RenewedCredentials(etcd, (reason) =>
    log?.warn('renewed credentials for etcd cannot be used', { reason }),
  );
  const ttlMs = holdTtlMs(site);
  return new EtcdLeaseStore({
    ...{ endpoints: etcd.endpoints, holdTtlMs: ttlMs, clock },
    ...{ tls: credentials.initial, renewed: () => credentials.renewed() },
    callDeadlineMs: Math.min(CALL_DEADLINE_MS, ttlMs / 2),
  });
}
