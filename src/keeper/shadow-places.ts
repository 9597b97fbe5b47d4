import {
  type Candidate,
  explainRank,
  type HostResources,
  mayBeAsked,
  type RankedHost,
  rankHosts,
  type WantedPlace,
} from '../allocation/shadow-choice.ts';
import type { Clock } from '../base/clock.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type { PlacementStatus } from '../control/vm-status.ts';
import type { FailedDisk } from '../replication/peer-messages.ts';

/** So long a host that turned a shadow away, or was lost, comes after the others. */
const AVOIDED_MS = 60_000;
/** One whose disk fails is not asked at all: as long as this the first time, twice as long each further time. */
const FAILING_MS = 1000;
const FAILING_MS_MAX = 60_000;
/** Without a failure for so long, the next one is the first again. */
const FAILING_FORGET_MS = 600_000;
const RESOURCES_DEADLINE_MS = 2000;

export interface ShadowPlacesOptions {
  /** This host. */
  readonly host: string;
  /** All others of the site. */
  readonly known: readonly string[];
  /** Those that the specification allows. */
  readonly others: readonly string[];
  readonly wanted: WantedPlace;
  readonly clock: Clock;
  /** Undefined where it gives no answer. */
  readonly askResources: (host: string, signal: AbortSignal) => Promise<HostResources | undefined>;
}

export interface FindOptions<Place> {
  /** @throws what keeps the shadow from being taken in there */
  readonly askPlace: (host: string) => Promise<Place>;
  readonly signal: AbortSignal;
}

/** Where the shadow of one VM may be, and which of these hosts is asked first. */
export class ShadowPlaces {
  readonly #options: ShadowPlacesOptions;
  readonly #avoidedUntilMs = new Map<string, number>();
  readonly #failing = new Map<string, Failing>();
  #preferred: string | undefined;
  #status: PlacementStatus | undefined;

  constructor(options: ShadowPlacesOptions) {
    this.#options = options;
  }

  /** How the present place was chosen; undefined before the first one. */
  get status(): PlacementStatus | undefined {
    return this.#status;
  }

  /**
   * On this host and no other from now on; undefined: on any again.
   * @throws KeeperError KEEPER_HOST_UNKNOWN, KEEPER_HOST_REFUSED
   */
  prefer(host: string | undefined): void {
    const { host: self, known, others, wanted } = this.#options;
    if (host !== undefined && host !== self && !known.includes(host)) {
      throw new KeeperError('KEEPER_HOST_UNKNOWN', `there is no host ${host} in site.yaml`, {
        hint: `Known are ${[self, ...known].join(', ')}.`,
        facts: { host },
      });
    }
    if (host !== undefined && !others.includes(host)) {
      const why = host === self ? 'acts on it' : 'does not have it in shadow.hosts';
      throw new KeeperError('KEEPER_HOST_REFUSED', `${host} is no host for a shadow: ${wanted.vm} ${why}`, {
        hint: others.length === 0 ? 'shadow.hosts names no other host.' : `Possible: ${others.join(', ')}.`,
        facts: { host, vm: wanted.vm },
      });
    }
    this.#preferred = host;
    if (host === undefined) return;
    this.#avoidedUntilMs.delete(host);
    this.#failing.delete(host);
  }

  /** It has turned the shadow away, or does not want it any more: others come first for a while. */
  avoid(host: string): void {
    this.#avoidedUntilMs.set(host, this.#options.clock.nowMs() + AVOIDED_MS);
  }

  /** A disk of the VM fails there: as long as that may last, nothing is copied to it. */
  noteFailing(host: string, { code, error }: Pick<FailedDisk, 'code' | 'error'>): void {
    const nowMs = this.#options.clock.nowMs();
    const last = this.#failing.get(host);
    const times = last === undefined || nowMs - last.atMs > FAILING_FORGET_MS ? 0 : last.times;
    const forMs = Math.min(FAILING_MS_MAX, FAILING_MS * 2 ** times);
    this.#failing.set(host, { times: times + 1, atMs: nowMs, untilMs: nowMs + forMs, code, error });
  }

  /** The first that takes the shadow, in the order of what they have left. @throws why none does */
  async find<Place>({
    askPlace,
    signal,
  }: FindOptions<Place>): Promise<{ readonly host: string; readonly place: Place }> {
    const { clock } = this.#options;
    const ranked = await this.#rank(signal);
    let refusal: unknown;
    for (const { host } of ranked.filter(mayBeAsked)) {
      try {
        const place = await askPlace(host);
        this.#status = { host, atMs: clock.wallMs(), candidates: ranked.map(described) };
        return { host, place };
      } catch (cause) {
        signal.throwIfAborted();
        this.avoid(host);
        refusal = cause;
      }
    }
    this.#status = { host: null, atMs: clock.wallMs(), candidates: ranked.map(described) };
    throw refusal ?? this.#noHost(ranked);
  }

  async #rank(signal: AbortSignal): Promise<RankedHost[]> {
    const { others, wanted, clock, askResources } = this.#options;
    const candidates = this.#preferred === undefined ? others : [this.#preferred];
    const hasRefused = (host: string) => (this.#avoidedUntilMs.get(host) ?? 0) > clock.nowMs();
    // Where there is no choice nothing is to be compared; a host that somebody has named has to say why not.
    const isOpen = candidates.length > 1 || this.#preferred !== undefined;
    const late = AbortSignal.any([signal, AbortSignal.timeout(RESOURCES_DEADLINE_MS)]);
    const known = await Promise.all(
      candidates.map(async (host): Promise<Candidate> => {
        const resources = isOpen ? await askResources(host, late).catch(() => undefined) : 'unasked';
        return { host, resources, hasRefused: hasRefused(host), failure: this.#failureOf(host) };
      }),
    );
    signal.throwIfAborted();
    return rankHosts(known, wanted);
  }

  #failureOf(host: string): string | undefined {
    const failing = this.#failing.get(host);
    if (failing === undefined || failing.untilMs <= this.#options.clock.nowMs()) return undefined;
    return `${failing.error} (${failing.code})`;
  }

  #noHost(ranked: readonly RankedHost[]): KeeperError {
    const { vm } = this.#options.wanted;
    const facts = { vm, hosts: ranked.map(({ host }) => host) };
    const why = ranked.map((each) => `${each.host} ${explainRank(each)}`).join(', ');
    const verdicts = new Set(ranked.map(({ verdict }) => verdict));
    if (verdicts.size === 1 && verdicts.has('maintenance'))
      return new KeeperError('KEEPER_HOST_MAINTENANCE', `no host takes the shadow of ${vm}: ${why}`, {
        ...{ facts, hint: '`understudy maintenance off` there, or name another host in shadow.hosts.' },
      });
    if (verdicts.has('failing'))
      return new KeeperError('KEEPER_HOST_FAILING', `no host takes the shadow of ${vm}: ${why}`, {
        ...{ facts, hint: 'Free space or mend the disk there: it is tried again by itself.' },
      });
    if (verdicts.has('no-room'))
      return new KeeperError('KEEPER_HOST_NO_ROOM', `no host takes the shadow of ${vm}: ${why}`, {
        ...{ facts, hint: 'Stop or move another VM there, or name another host in shadow.hosts.' },
      });
    return new KeeperError('KEEPER_HOST_REFUSED', `there is no other host for the shadow of ${vm}`, {
      ...{ facts, hint: 'Name one in shadow.hosts and in site.yaml.' },
    });
  }
}

interface Failing extends Pick<FailedDisk, 'code' | 'error'> {
  /** Failures, each soon after the one before. */
  readonly times: number;
  readonly atMs: number;
  readonly untilMs: number;
}

function described(ranked: RankedHost): PlacementStatus['candidates'][number] {
  return { ...ranked, why: explainRank(ranked) };
}
