import type { Clock } from '../base/clock.ts';
import { messageOf } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import { loadSiteConfig, type SiteConfig, siteConfigPath } from '../config/site-config.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type { GivenSpec, RunDirectory } from '../control/run-directory.ts';
import { EtcdLeaseStore } from '../lease/etcd-lease-store.ts';
import { leasePolicy } from '../lease/lease-state.ts';
import { bootTimeMs } from '../linux/boot-clock.ts';
import type { PeerLink } from '../replication/peer-link.ts';
import { decodeWords, encodeWords, MESSAGE } from '../replication/peer-messages.ts';
import type { StopReason } from '../shadow/protection.ts';
import type { ActingRight } from './acting-right.ts';
import { digestFiles } from './file-digests.ts';
import type { RemoteSite } from './keeper-options.ts';
import { dialPeer } from './peer-door.ts';
import { RecordedRight, type RightOptions } from './recorded-right.ts';
import { isSuperseded, peerLost } from './refusals.ts';
import { readCredentials } from './site-credentials.ts';

/** For a call to the store of leases, over all of its members. */
const CALL_DEADLINE_MS = 3000;
const RELEASE_DEADLINE_MS = 10_000;
/** The other host starts a process meanwhile. */
const PLACE_DEADLINE_MS = 20_000;

export interface SiteOptions {
  readonly spec: VmSpec;
  readonly clock: Clock;
  readonly log: Logger;
  readonly failpoints: Failpoints;
}

/** The site that this host belongs to, for a VM with hosts; undefined for a VM of this host alone. */
export function siteOf(spec: VmSpec): SiteConfig | undefined {
  const { hosts } = spec.shadow;
  if (hosts === undefined) return undefined;
  const site = loadSiteConfig(siteConfigPath());
  const unknown = hosts.find((name) => name !== site.host && !(name in site.hosts));
  if (unknown !== undefined || !hosts.includes(site.host)) {
    const wrong = unknown ?? site.host;
    throw new KeeperError(
      'KEEPER_SITE_REFUSED',
      `${spec.name} has the hosts ${hosts.join(', ')}, and ${wrong} is ${unknown === undefined ? 'none of them' : 'not in site.yaml'}`,
      {
        hint: 'Name this host and the others in shadow.hosts as site.yaml does.',
        facts: { hosts, host: site.host },
      },
    );
  }
  return site;
}

interface JoiningVm extends SiteOptions {
  readonly given: GivenSpec;
  readonly directory: RunDirectory;
  /** Whatever a shadow on another host may have: somebody says so who knows that it is lost. */
  readonly anew: boolean;
  /** Another host acts alone, and may be gone. */
  readonly onWait: (holder: string) => void;
  readonly signal: AbortSignal;
}

/**
 * Before a VM of several hosts runs: no other of them may act as it. Undefined for a VM of this host alone.
 * @throws KeeperError KEEPER_SUPERSEDED, KEEPER_SITE_REFUSED; ConfigError
 */
export async function joinSite(vm: JoiningVm): Promise<RemoteSite | undefined> {
  const site = siteOf(vm.spec);
  if (site === undefined) return undefined;
  const files = await digestFiles(vm.spec);
  const fromScratch = vm.directory.heritage.kind === 'none';
  try {
    const right = await RecordedRight.begin(rightOptions(site, vm), { ...vm, fromScratch });
    // What a killed keeper left here is older than what another host has made of the VM since.
    if (right.follows !== undefined) await giveHeritageUp(vm);
    return remoteSite(site, { ...vm, right, files });
  } catch (cause) {
    if (isSuperseded(cause)) await giveHeritageUp(vm);
    throw cause;
  }
}

/** Its shadow has taken over since: what a killed keeper left here is the past. */
async function giveHeritageUp({ directory, clock }: JoiningVm): Promise<void> {
  const { heritage } = directory;
  if (heritage.kind === 'orphan') await directory.endOrphan(heritage, clock);
  directory.forgetHeritage();
}

/**
 * The VM has ended, or was not started: whoever wants to start it next may, unless it goes on elsewhere. Where nobody takes
 * that down it stays on record as of this host, which may start it again.
 */
export async function leaveSite(
  remote: RemoteSite | undefined,
  { reason, log }: { reason: StopReason; log: Logger },
): Promise<void> {
  if (remote === undefined) return;
  await using right = remote.right;
  if (reason === 'moved' || reason === 'superseded') return;
  try {
    await right.release(AbortSignal.timeout(RELEASE_DEADLINE_MS));
  } catch (cause) {
    log.warn('it is not on record that the VM has ended', { error: messageOf(cause) });
  }
}

/** Where it is on record who acts as this VM. */
export function rightOptions(site: SiteConfig, { spec, clock, log, failpoints }: SiteOptions): RightOptions {
  const { etcd, holdSeconds } = site.lease;
  const { endpoints } = etcd;
  const holdTtlMs = holdSeconds * 1000;
  return {
    ...{ vm: spec.name, host: site.host, clock, bootTimeMs, log, failpoints },
    policy: leasePolicy({ holdTtlMs }),
    store: new EtcdLeaseStore({
      ...{ endpoints, tls: readCredentials(etcd), callDeadlineMs: Math.min(CALL_DEADLINE_MS, holdTtlMs / 2) },
      ...{ holdTtlMs, clock },
    }),
  };
}

interface SitedVm {
  readonly spec: VmSpec;
  readonly right: ActingRight;
  readonly given: GivenSpec;
  /** Digests of what its QEMUs are started from. */
  readonly files: Readonly<Record<string, string>>;
}

/** What a keeper needs to have its shadow on another host. */
export function remoteSite(site: SiteConfig, { spec, right, given, files }: SitedVm): RemoteSite {
  const others = (spec.shadow.hosts ?? []).filter((name) => name !== site.host);
  return {
    right,
    given,
    files,
    connect: (signal) => connectToFirst(site, { vm: spec.name, others, signal }),
  };
}

interface Wanted {
  readonly vm: string;
  readonly others: readonly string[];
  readonly signal: AbortSignal;
}

/** In the order of the specification: the first that takes the shadow. */
async function connectToFirst(
  site: SiteConfig,
  { vm, others, signal }: Wanted,
): Promise<{ link: PeerLink; host: string }> {
  let refusal: unknown;
  for (const host of others) {
    try {
      const port = await askForPlace(site, { vm, host, signal });
      return { link: await dialPeer(site, host, { port, signal }), host };
    } catch (cause) {
      signal.throwIfAborted();
      refusal = cause;
    }
  }
  throw refusal ?? peerLost('another', 'shadow.hosts names this host only');
}

/** The host starts a keeper for the shadow, which listens at a port of its own. */
async function askForPlace(
  site: SiteConfig,
  { vm, host, signal }: { vm: string; host: string; signal: AbortSignal },
): Promise<number> {
  const link = await dialPeer(site, host, { signal });
  const late = AbortSignal.any([signal, AbortSignal.timeout(PLACE_DEADLINE_MS)]);
  const close = () => link.close();
  late.addEventListener('abort', close, { once: true });
  try {
    await link.send(MESSAGE.words, [encodeWords({ kind: 'place', vm })]);
    for await (const { type, body } of link.messages()) {
      const words = type === MESSAGE.words ? decodeWords(body) : undefined;
      if (words?.kind === 'placed') return words.port;
      if (words?.kind === 'refused')
        throw new KeeperError('KEEPER_PEER_REFUSED', `${host} takes no shadow of ${vm}: ${words.message}`, {
          hint: words.hint ?? `See the log on ${host}.`,
          facts: { host, reason: words.code },
        });
    }
    throw peerLost(host, 'it said nothing about a place for the shadow');
  } finally {
    late.removeEventListener('abort', close);
    link.close();
  }
}
