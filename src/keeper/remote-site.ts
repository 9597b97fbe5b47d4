import type { HostResources } from '../allocation/shadow-choice.ts';
import type { Clock } from '../base/clock.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import { loadSiteConfig, type SiteConfig, siteConfigPath } from '../config/site-config.ts';
import { disksOf, needsEpochs } from '../config/spec-disks.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { dropRelic } from '../control/relic.ts';
import type { GivenSpec, RunDirectory } from '../control/run-directory.ts';
import { leasePolicy } from '../lease/lease-state.ts';
import { bootTimeMs } from '../linux/boot-clock.ts';
import { decodeWords, encodeWords, MESSAGE, type PeerWords } from '../replication/peer-messages.ts';
import { SavedState } from '../replication/saved-state.ts';
import { goesOnElsewhere, type StopReason } from '../shadow/protection.ts';
import { holdTtlMs, siteLeaseStore } from '../site/site-lease-store.ts';
import type { ActingRight } from './acting-right.ts';
import { roomNeededBytes } from './admission.ts';
import { digestFiles } from './file-digests.ts';
import type { ConnectedPeer, ConnectOptions, RemoteSite } from './keeper-options.ts';
import { dialLasting } from './lasting-peer.ts';
import { dialPeer, hostsOf, portOf, SecurePeerLink } from './peer-door.ts';
import type { SilenceBounds } from './peer-pulse.ts';
import { openPresence, Presence } from './presence.ts';
import { RecordPatience } from './record-patience.ts';
import { RecordedRight, type RightOptions } from './recorded-right.ts';
import { hasGoneOn, peerLost } from './refusals.ts';
import { ShadowPlaces } from './shadow-places.ts';
import type { VmEnd } from './vm-ending.ts';

const LOOK_DEADLINE_MS = 1000;
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
  if (hosts === 'auto') return site;
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
  /** It cannot be found out who acts, for this reason. */
  readonly onStoreAway: (why: string) => void;
  readonly signal: AbortSignal;
}

/**
 * Before a VM of several hosts runs: no other of them may act as it. Undefined for a VM of this host alone.
 * @throws KeeperError KEEPER_SUPERSEDED, KEEPER_SUSPENDED_ELSEWHERE, KEEPER_DISKS_ELSEWHERE, KEEPER_SITE_REFUSED;
 * ConfigError
 */
export async function joinSite(vm: JoiningVm): Promise<RemoteSite | undefined> {
  const site = siteOf(vm.spec);
  if (site === undefined) return undefined;
  const files = await digestFiles(vm.spec);
  const fromScratch = vm.directory.heritage.kind === 'none';
  const writesDisks = disksOf(vm.spec).some(({ disk }) => needsEpochs(disk));
  try {
    const right = await RecordedRight.begin(rightOptions(site, vm), { ...vm, fromScratch, writesDisks });
    // What a killed keeper left here is older than what another host has made of the VM since.
    if (right.follows !== undefined) await giveHeritageUp(vm);
    if (vm.anew) right.forgetState();
    // Whoever acted before, on any host, wrote to its disks with tokens that followed an older right.
    vm.directory.countTokensFrom(right.token);
    dropRelic(vm.spec.name);
    return remoteSite(site, { ...vm, right, files });
  } catch (cause) {
    if (hasGoneOn(cause)) await giveHeritageUp(vm);
    throw cause;
  }
}

/** Its shadow has taken over since: what a killed keeper left here is the past. */
async function giveHeritageUp({ directory, clock }: JoiningVm): Promise<void> {
  const { heritage } = directory;
  if (heritage.kind === 'orphan') await directory.endOrphan(heritage, clock);
  directory.forgetHeritage({ keepsRelic: true });
}

/**
 * The VM has ended, or was not started: whoever wants to start it next may, unless it goes on elsewhere. Where nobody takes
 * that down it stays on record as of this host, which may start it again.
 */
export async function leaveSite(
  remote: RemoteSite | undefined,
  { isOnRecord, clock, ...vm }: LeavingVm & Pick<VmEnd, 'isOnRecord'> & Pick<SiteOptions, 'clock'>,
): Promise<void> {
  if (remote === undefined) return;
  await using right = remote.right;
  // Its keeper has tried already where it came that far.
  if (isOnRecord !== undefined) return;
  const patience = new RecordPatience(clock);
  patience.begin();
  await recordEnd(right, { ...vm, patience });
}

/** False: the store of leases did not answer. Undefined: there is nothing to be written down. */
export async function recordEnd(
  right: ActingRight | undefined,
  { reason, suspendedIn, log, patience }: LeavingVm & { readonly patience: RecordPatience },
): Promise<boolean | undefined> {
  if (right === undefined || goesOnElsewhere(reason)) return undefined;
  // Also where a start failed that was to go on from it. Who keeps no states cannot tell.
  const keepsState = suspendedIn === undefined || SavedState.isThere(suspendedIn);
  const isDone = await patience.wait(async (signal) => {
    await right.release({ keepsState, signal });
    return true;
  });
  if (isDone === undefined) log.warn('it is not on record that the VM has ended');
  return isDone ?? false;
}

interface LeavingVm {
  readonly reason: StopReason;
  /** Where its state lies if it is suspended; undefined for who keeps no states. */
  readonly suspendedIn?: string | undefined;
  readonly log: Logger;
}

/** The host that the VM has moved to. */
export async function actsNow(
  remote: RemoteSite | undefined,
  reason: StopReason,
): Promise<string | undefined> {
  return goesOnElsewhere(reason) ? await remote?.right.holder() : undefined;
}

/** Where it is on record who acts as this VM. */
export function rightOptions(site: SiteConfig, { spec, clock, log, failpoints }: SiteOptions): RightOptions {
  return {
    ...{ vm: spec.name, host: site.host, clock, bootTimeMs, log, failpoints },
    policy: leasePolicy({ holdTtlMs: holdTtlMs(site) }),
    store: siteLeaseStore(site, { clock, log }),
  };
}

/** For how long the other host may not be heard. */
export function silenceOf({ peerTimeoutMinMs: min, peerTimeoutMs: max }: SiteConfig): SilenceBounds {
  return { min, max };
}

interface SitedVm extends Pick<SiteOptions, 'spec' | 'clock' | 'failpoints'> {
  readonly right: ActingRight;
  readonly given: GivenSpec;
  readonly directory: Pick<RunDirectory, 'generationId'>;
  /** Digests of what its QEMUs are started from. */
  readonly files: Readonly<Record<string, string>>;
}

/** What a keeper needs to have its shadow on another host. */
export function remoteSite(site: SiteConfig, vm: SitedVm): RemoteSite {
  const { right, given, files, directory } = vm;
  const places = placesOf(site, vm);
  return {
    ...{ right, given, files, places, silenceMs: silenceOf(site) },
    generationId: () => directory.generationId,
    keepsRelics: () => keepsRelics(site),
    connect: async (options) => {
      const { signal } = options;
      const askPlace = async (host: string) => {
        const port = await askForPlace(site, { vm: vm.spec.name, host, signal });
        return await connectTo(site, host, { ...vm, ...options, port });
      };
      return (await places.find({ askPlace, signal })).place;
    },
  };
}

/** Where nobody would sweep it away no memory is left behind. */
export async function keepsRelics(site: SiteConfig): Promise<boolean> {
  const at = { hosts: hostsOf(site.listen), port: portOf(site) };
  return !(await new Presence(at).isGone(AbortSignal.timeout(LOOK_DEADLINE_MS)));
}

function placesOf(site: SiteConfig, { spec, clock }: SitedVm): ShadowPlaces {
  const { name: vm } = spec;
  const { hosts = [], antiAffinity = [] } = spec.shadow;
  const known = Object.keys(site.hosts);
  return new ShadowPlaces({
    ...{ host: site.host, known, clock },
    others: hosts === 'auto' ? known : hosts.filter((name) => name !== site.host),
    wanted: {
      ...{ vm, antiAffinity, labels: site.labels ?? {} },
      // As much as it is admitted with there, for the time that it acts itself and has a shadow.
      neededBytes: roomNeededBytes({ ...spec, shadow: { ...spec.shadow, enabled: true } }),
    },
    askResources: (host, signal) => askForResources(site, { vm, host, signal }),
  });
}

interface Wanted {
  readonly vm: string;
  readonly host: string;
  readonly signal: AbortSignal;
}

async function askForResources(site: SiteConfig, wanted: Wanted): Promise<HostResources | undefined> {
  const answer = await ask(site, wanted, { kind: 'ask-resources', vm: wanted.vm });
  return answer?.kind === 'resources' ? answer.resources : undefined;
}

async function connectTo(
  site: SiteConfig,
  host: string,
  { right, copy, ...options }: SitedVm & ConnectOptions & { port: number },
): Promise<ConnectedPeer> {
  const presence = await openPresence(hostsOf(site.listen));
  try {
    const claim = () => ({ stream: BigInt(copy), token: BigInt(right.token) });
    const { link, path } = await dialLasting(site, host, { ...options, claim });
    void link.closed.then(() => presence[Symbol.dispose]());
    return { link, host, path, addresses: hostsOf(site.hosts[host] ?? []), presencePort: presence.port };
  } catch (cause) {
    presence[Symbol.dispose]();
    throw cause;
  }
}

/** The host starts a keeper for the shadow, which listens at a port of its own. */
async function askForPlace(site: SiteConfig, { vm, host, signal }: Wanted): Promise<number> {
  const late = AbortSignal.any([signal, AbortSignal.timeout(PLACE_DEADLINE_MS)]);
  const words = await ask(site, { vm, host, signal: late }, { kind: 'place', vm });
  if (words?.kind === 'placed') return words.port;
  if (words?.kind !== 'refused') throw peerLost(host, 'it said nothing about a place for the shadow');
  if (words.code === 'KEEPER_HOST_MAINTENANCE')
    throw new KeeperError(words.code, `${host} takes no shadow of ${vm}: it is in maintenance`, {
      ...{ hint: `\`understudy maintenance off\` on ${host}.`, facts: { host } },
    });
  throw new KeeperError('KEEPER_PEER_REFUSED', `${host} takes no shadow of ${vm}: ${words.message}`, {
    hint: words.hint ?? `See the log on ${host}.`,
    facts: { host, reason: words.code },
  });
}

/** One question to the process that answers for a host. Undefined where it says nothing before the signal. */
async function ask(
  site: SiteConfig,
  { host, signal }: Wanted,
  question: PeerWords,
): Promise<PeerWords | undefined> {
  const link = new SecurePeerLink((await dialPeer(site, host, { signal })).link);
  const close = () => link.close();
  signal.addEventListener('abort', close, { once: true });
  try {
    await link.send(MESSAGE.words, [encodeWords(question)]);
    for await (const { type, body } of link.messages()) {
      if (type === MESSAGE.words) return decodeWords(body);
    }
    return undefined;
  } finally {
    signal.removeEventListener('abort', close);
    link.close();
  }
}
