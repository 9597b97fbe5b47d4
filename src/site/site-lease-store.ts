import type { Clock } from '../base/clock.ts';
import type { SiteConfig } from '../config/site-config.ts';
import { EtcdLeaseStore } from '../lease/etcd-lease-store.ts';
import { readCredentials } from './site-credentials.ts';

/** For a call to the store of leases, over all of its members. */
const CALL_DEADLINE_MS = 3000;

/** Where a site has it on record who acts as its VMs. @throws KeeperError KEEPER_SITE_REFUSED */
export function siteLeaseStore(
  { lease: { etcd } }: SiteConfig,
  { holdTtlMs, clock }: { readonly holdTtlMs: number; readonly clock: Clock },
): EtcdLeaseStore {
  return new EtcdLeaseStore({
    ...{ endpoints: etcd.endpoints, tls: readCredentials(etcd), holdTtlMs, clock },
    callDeadlineMs: Math.min(CALL_DEADLINE_MS, holdTtlMs / 2),
  });
}
