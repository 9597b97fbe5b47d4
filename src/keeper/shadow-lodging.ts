import { join } from 'node:path';
import { cacheDirectory } from '../base/cache-directory.ts';
import type { Clock } from '../base/clock.ts';
import { errorFacts, messageOf } from '../base/errors.ts';
import { Failpoints } from '../base/failpoint.ts';
import { type Logger, silentLogger } from '../base/logger.ts';
import type { SiteConfig } from '../config/site-config.ts';
import { ControlServer } from '../control/control-server.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { keepRelic, takeRelic } from '../control/relic.ts';
import { RunDirectory } from '../control/run-directory.ts';
import { NO_EPOCH } from '../epoch/epoch-id.ts';
import { instancePaths } from '../qemu/instance-paths.ts';
import { encodeWords, MESSAGE, type PeerWords } from '../replication/peer-messages.ts';
import { ShadowDisks } from '../replication/shadow-disks.ts';
import { admit } from './admission.ts';
import type { ClaimedByLink } from './guest-links.ts';
import { epochsName } from './inheritance.ts';
import { Instance } from './instance.ts';
import { settingOf } from './instance-setting.ts';
import { Keeper } from './keeper.ts';
import { EXIT_FAILED, liveOut, type StopSignals } from './keeper-life.ts';
import type { KeeperOptions, PromisedShadow, RemoteSite } from './keeper-options.ts';
import { hostsOf } from './peer-door.ts';
import { PeerPulse } from './peer-pulse.ts';
import { RecordPatience } from './record-patience.ts';
import { RecordedRight, type RightOptions, type TakenOver } from './recorded-right.ts';
import { keepsRelics, leaveSite, recordEnd, remoteSite, rightOptions, silenceOf } from './remote-site.ts';
import type { ServedDisks } from './served-disks.ts';
import { ShadowControl } from './shadow-control.ts';
import { type CopyOfDisk, openCopies } from './shadow-disk-opening.ts';
import { ShadowErrands } from './shadow-errands.ts';
import { type AskedShadow, checkTwin } from './shadow-hello.ts';
import { type ShadowEnd, ShadowKeeper } from './shadow-keeper.ts';
import { ShadowSession } from './shadow-session.ts';
import { VmDisks } from './vm-disks.ts';
import { VmEvents } from './vm-events.ts';
import { prepareHost, type VmHost } from './vm-host.ts';

/** As in lease-record.ts. */
const NO_COPY = 0;

interface Lodger {
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

/** Room on this host for the shadow of a VM that acts on another one: its name, a standby, and what that holds. */
export class ShadowLodging implements AsyncDisposable {
  readonly directory: RunDirectory;
  readonly #site: SiteConfig;
  readonly #asked: AskedShadow;
  readonly #host: VmHost;
  readonly #clock: Clock;
  readonly #right: RightOptions;
  #session: ShadowSession | undefined;
  #hasRelic = false;
  #instances = 1;
  readonly #disks: VmDisks;
  readonly #copies: readonly CopyOfDisk[];

  /** @throws what keeps the shadow from being taken in; nothing is left then */
  static async open(site: SiteConfig, asked: AskedShadow, { clock, signal }: Lodger): Promise<ShadowLodging> {
    const { spec, hello } = asked;
    const log = silentLogger;
    const right = rightOptions(site, { spec, clock, log, failpoints: new Failpoints() });
    // Before anything here is touched: what a keeper left of that name may be all that there is of a VM.
    await checkHolder(right, asked);
    const directory = await RunDirectory.open(spec.name, {
      ...{ clock, othersMayPass: spec.qemu.user !== undefined, tokenAbove: hello.token, keepsRelic: true },
    });
    try {
      // On record first, so that of two that come at once each sees the other.
      directory.record({ spec });
      admit(spec);
      directory.keepSpec(hello.spec);
      if (hello.generationId !== undefined) directory.adoptGeneration(hello.generationId);
      const host = await prepareHost(spec, {
        ...{ cacheDir: cacheDirectory(), directory: directory.path, clock, log, signal },
      });
      await checkTwin(asked, host);
      const copies = await openCopies(spec, hello, {
        ...{ clock, runDirectory: directory.path, user: spec.qemu.user },
      });
      const lodging = new ShadowLodging({ site, asked, directory, host, clock, right, copies });
      try {
        await lodging.#startStandby(log, signal);
      } catch (cause) {
        for (const { image } of copies) await image.close();
        throw cause;
      }
      return lodging;
    } catch (cause) {
      directory.remove();
      throw cause;
    }
  }

  private constructor(parts: {
    site: SiteConfig;
    asked: AskedShadow;
    directory: RunDirectory;
    host: VmHost;
    clock: Clock;
    right: RightOptions;
    copies: readonly CopyOfDisk[];
  }) {
    this.#site = parts.site;
    this.#asked = parts.asked;
    this.directory = parts.directory;
    this.#host = parts.host;
    this.#clock = parts.clock;
    this.#right = parts.right;
    this.#copies = parts.copies;
    this.#disks = VmDisks.ofCopies(parts.copies, {
      durableCommits: parts.asked.spec.shadow.commit === 'durable',
      token: () => this.directory.token,
    });
  }

  /** Until the shadow is not wanted any more, or the VM that it has become has ended. Returns the exit code. */
  async keep({ log, signals }: { log: Logger; signals: StopSignals }): Promise<number> {
    const session = this.#session;
    if (session === undefined) throw new Error('a lodging that was opened has a session');
    const { link, messages, peer, spec, hello } = this.#asked;
    log.info('keeps a shadow', { vm: spec.name, of: peer });
    const common = { link, session, log, clock: this.#clock, failpoints: this.#right.failpoints };
    const startTest = (signal: AbortSignal, tried: ServedDisks) => this.#startTest(log, { signal, tried });
    const errands = new ShadowErrands({ ...common, spec, startTest });
    let shadow: ShadowKeeper | undefined;
    const silenceMs = silenceOf(this.#site);
    const pulse = await PeerPulse.listen(hostsOf(this.#site.listen), {
      ...{ key: Buffer.from(hello.pulseKey, 'hex'), side: 'shadow', clock: this.#clock },
      silenceMs,
      onEffect: (effect) => {
        if (effect.kind === 'peer-lost') shadow?.fallSilent(effect.silentMs);
        else log.info(effect.kind, { ...effect });
      },
    });
    shadow = new ShadowKeeper({
      ...{ ...common, messages, errands, host: this.#site.host, hasRelic: this.#hasRelic },
      heldDisks: this.#copies.filter(({ isHeld }) => isHeld).map(({ name }) => name),
      durable: spec.shadow.commit === 'durable',
      ...{ pulsePorts: pulse.ports, silenceMinMs: silenceMs.min },
      onOver: () => pulse.stopVouching(),
    });
    const keeping = shadow;
    const leave = () => keeping.leave({ kind: 'dismissed' });
    signals.start.addEventListener('abort', leave, { once: true });
    if (signals.start.aborted) leave();
    const { end, taken } = await this.#serveUntilEnd(session, { shadow, pulse }, { log, signals }).finally(
      () => pulse[Symbol.dispose](),
    );
    if (taken === undefined) await errands.ended();
    if (end.kind === 'dismissed') return 0;
    if (taken === undefined) {
      await this.#leaveRelic(session);
      return EXIT_FAILED;
    }
    return await this.#takeOver(session, { end, taken, claimed: shadow.claimed, log, signals });
  }

  /** What is here is the past, and good for the next shadow to begin with. */
  async #leaveRelic({ standby }: ShadowSession): Promise<void> {
    await standby.kill();
    if (await keepsRelics(this.#site)) keepRelic(this.#asked.spec.name, standby.memory.path);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#session?.[Symbol.asyncDispose]();
    this.directory.remove();
  }

  async #startStandby(log: Logger, signal: AbortSignal): Promise<void> {
    const { spec } = this.#asked;
    const setting = settingOf(this.#options(log), this.#disks);
    const number = 1;
    const paths = instancePaths({ ...setting, vm: spec.name, instance: number, nicCount: spec.nics.length });
    this.#hasRelic = takeRelic(spec.name, { to: paths.memory, memoryBytes: spec.memoryBytes });
    const keptMemory = this.#hasRelic;
    const standby = await Instance.start(setting, { number, role: 'standby', signal, keptMemory });
    // Its own start may have left something there, and a copy brings only what the VM has.
    if (!this.#hasRelic) standby.memory.discardAll();
    const { failpoints } = this.#right;
    const disks =
      this.#copies.length === 0 ? undefined : new ShadowDisks({ disks: this.#copies, failpoints });
    this.#session = await ShadowSession.open(standby, {
      epochsInFlightMax: spec.shadow.epochsInFlightMax,
      epochsDirectory: join(setting.memoryDirectory, epochsName(standby.number)),
      failpoints: this.#right.failpoints,
      disks,
    });
    standby.limitCpu(spec.shadow.standbyCpuShare);
    this.directory.record({
      processes: [standby.pid],
      cgroups: standby.cgroup ? [standby.cgroup.directory] : [],
    });
  }

  async #startTest(
    log: Logger,
    { signal, tried }: { readonly signal: AbortSignal; readonly tried: ServedDisks },
  ): Promise<Instance> {
    this.#instances += 1;
    const setting = settingOf(this.#options(log), tried);
    const number = this.#instances;
    const instance = await Instance.start(setting, { number, role: 'standby', signal });
    log.info('a copy of the shadow is tried out', { instance: number, pid: instance.pid });
    return instance;
  }

  /** Until the VM may act here its keeper answers for the shadow; then the socket is the VM's. */
  async #serveUntilEnd(
    session: ShadowSession,
    { shadow, pulse }: { shadow: ShadowKeeper; pulse: PeerPulse },
    { log, signals }: { log: Logger; signals: StopSignals },
  ): Promise<{ end: ShadowEnd; taken: TakenOver | undefined }> {
    const { spec, peer, hello } = this.#asked;
    const ended = shadow.keep();
    const control = new ShadowControl({
      ...{ spec, peer, session, shadow, ended, host: this.#host, clock: this.#clock, token: hello.token },
      pulse,
    });
    const socket = this.directory.controlSocket;
    await using _server = await ControlServer.listen(socket, { control, clock: this.#clock, log });
    const end = await withDisks(withLastSign(await ended, pulse), session);
    log.info('the shadow is kept no longer', { ...end });
    // One that holds nothing may wait for the right of who acted alone to end, where that is wanted.
    const mayStartCold = spec.shadow.restartElsewhere;
    if (end.kind === 'dismissed' || (end.kind === 'useless' && !mayStartCold))
      return { end, taken: undefined };
    // What cannot be relied on is no copy that anybody may go on from.
    const claimant = end.kind === 'useless' ? { copy: NO_COPY } : hello;
    const taken = await RecordedRight.takeOver({ ...this.#right, log }, claimant, {
      ...{ mayStartCold, signal: signals.start },
    });
    if (taken === undefined) log.info('the shadow may not act', { vm: spec.name });
    return { end, taken };
  }

  async #takeOver(
    session: ShadowSession,
    { end, taken, claimed, log, signals }: TakingOver,
  ): Promise<number> {
    const { spec, hello, peer, link } = this.#asked;
    const { right, how } = taken;
    // The files are those of the other host: that was seen when the shadow was taken in.
    const fencedAtMs = this.#clock.nowMs();
    const noticedAtMs = 'atMs' in end ? end.atMs : fencedAtMs;
    const lastSignMs = end.kind === 'alone' ? end.lastSignMs : noticedAtMs;
    const remote = remoteSite(this.#site, {
      ...{ spec, right, given: hello.spec, files: hello.files, directory: this.directory },
      ...{ clock: this.#clock, failpoints: this.#right.failpoints },
    });
    const promised: PromisedShadow = {
      ...{ session, from: peer, claimed, lastSignMs, noticedAtMs, fencedAtMs, instances: this.#instances },
      disks: this.#disks,
      reason: end.kind === 'called' ? end.reason : 'peer-lost',
      disk: end.kind === 'called' ? end.disk : undefined,
      trace: end.kind === 'called' ? end.trace : undefined,
    };
    const options: KeeperOptions = { ...this.#options(log), remote };
    if (how === 'anew') this.#session = undefined;
    const keeper = await actOrGiveBack(session, {
      how,
      act: () => {
        // It is the VM's now, and goes with that.
        this.#session = undefined;
        return this.#act(how === 'anew' ? options : { ...options, promised }, signals);
      },
      giveBack: (cause) => this.#giveBack(remote, { cause, log }),
    });
    const words: PeerWords = {
      ...{ kind: 'acts', token: right.token, tookMs: this.#clock.nowMs() - noticedAtMs },
    };
    // Not waited for: who lost patience has taken leave, and takes nothing more.
    void link.send(MESSAGE.words, [encodeWords(words)]).catch(() => {});
    link.close();
    const ended = await liveOut(keeper, { directory: this.directory, log, onReady: () => {} });
    await leaveSite(remote, { ...ended, log, clock: this.#clock });
    if (ended.reason !== 'failed') return 0;
    // Who asks why the VM is gone finds its logs.
    this.directory.leaveLogs();
    return EXIT_FAILED;
  }

  /** The VM cannot act here. Whoever is told to may start it, at once and on any host; it is for a person to look why. */
  async #giveBack(remote: RemoteSite, { cause, log }: { cause: unknown; log: Logger }): Promise<void> {
    const { spec, peer } = this.#asked;
    const clock = this.#clock;
    const patience = new RecordPatience(clock);
    patience.begin();
    const isOnRecord = await recordEnd(remote.right, { reason: 'failed', log, patience });
    await leaveSite(remote, { reason: 'failed', isOnRecord, log, clock });
    const watched = { vm: spec.name, runDirectory: this.directory, clock, log, onGuestEvent: () => {} };
    using events = new VmEvents(watched);
    events.publish('takeover-failed', NO_EPOCH, { from: peer, isOnRecord, ...errorFacts(cause) });
    // Who asks why the VM is gone finds its logs.
    this.directory.leaveLogs();
  }

  /** A shadow that cannot take over is no reason to let the VM lie: it begins anew, as it would on its own host. */
  async #act(options: KeeperOptions, signals: StopSignals): Promise<Keeper> {
    const { promised, ...anew } = options;
    let keeper: Keeper;
    try {
      keeper = await Keeper.start(options);
    } catch (cause) {
      options.log.error('the shadow cannot take over', errorFacts(cause));
      await promised?.session[Symbol.asyncDispose]();
      await promised?.disks[Symbol.asyncDispose]();
      keeper = await Keeper.start(anew);
    }
    signals.direct(keeper, { acted: true });
    return keeper;
  }

  #options(log: Logger): KeeperOptions {
    const { spec } = this.#asked;
    return {
      ...{ ...this.#host, spec, log, clock: this.#clock, failpoints: this.#right.failpoints },
      runDirectory: this.directory,
    };
  }
}

interface Acting<Acts> {
  readonly how: TakenOver['how'];
  readonly act: () => Promise<Acts>;
  readonly giveBack: (cause: unknown) => Promise<void>;
}

/** The right is there. Whatever keeps the VM from acting here, nobody else may act while it is not given back. */
export async function actOrGiveBack<Acts>(
  session: AsyncDisposable & { readonly image: Pick<ShadowSession['image'], 'disks'> },
  { how, act, giveBack }: Acting<Acts>,
): Promise<Acts> {
  try {
    // They have all that was committed, else the right would not have been asked for. From now on they are the VM's.
    if (how === 'promote') await session.image.disks?.release();
    // What it holds is older than what has left since.
    else await session[Symbol.asyncDispose]();
    return await act();
  } catch (cause) {
    await giveBack(cause);
    throw cause;
  }
}

/** What its disks lack nobody may go on without, and this host must not have the right to act then. */
async function withDisks(end: ShadowEnd, { image }: ShadowSession): Promise<ShadowEnd> {
  if (end.kind !== 'called' && end.kind !== 'alone') return end;
  try {
    await image.disks?.written(image.committed);
    return end;
  } catch (cause) {
    return { kind: 'useless', error: messageOf(cause) };
  }
}

/** Heartbeats come more often than anything else. */
function withLastSign(end: ShadowEnd, pulse: PeerPulse): ShadowEnd {
  if (end.kind !== 'alone') return end;
  return { ...end, lastSignMs: Math.max(end.lastSignMs, pulse.lastHeardMs ?? end.lastSignMs) };
}

interface TakingOver {
  readonly end: Exclude<ShadowEnd, { kind: 'dismissed' }>;
  readonly taken: TakenOver;
  readonly claimed: ClaimedByLink;
  readonly log: Logger;
  readonly signals: StopSignals;
}

/**
 * Whether the store of leases can be used is found out before it is needed, and that who asks is who acts.
 * @throws LeaseError; KeeperError KEEPER_PEER_REFUSED
 */
async function checkHolder({ store, vm }: RightOptions, { peer }: AskedShadow): Promise<void> {
  const { record } = await store.read(vm);
  if (record?.holder === peer) return;
  throw new KeeperError('KEEPER_PEER_REFUSED', `it is not on record that ${peer} acts as ${vm}`, {
    hint: 'Both hosts have to use the same store of leases: compare lease.etcd in site.yaml.',
    facts: { holder: record?.holder },
  });
}
