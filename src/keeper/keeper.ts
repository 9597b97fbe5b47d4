import { join } from 'node:path';
import { assert, unreachable } from '../base/assert.ts';
import { DelayedTask } from '../base/delayed-task.ts';
import { errorFacts, messageOf } from '../base/errors.ts';
import type { ConsoleSession, ConsoleWatcher, KeeperControl } from '../control/keeper-control.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { type EpochId, FIRST_EPOCH, NO_EPOCH, nextEpoch } from '../epoch/epoch-id.ts';
import { CgroupTree } from '../linux/cgroup.ts';
import { assertRoom } from '../memory/guest-memory.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { StreamClient } from '../net/stream-end.ts';
import { BoundedLog } from '../qemu/bounded-log.ts';
import { checkSpec } from '../qemu/protectability.ts';
import type { QmpEvent } from '../qemu/qmp-events.ts';
import { EpochStats } from '../replication/epoch-stats.ts';
import {
  DEFAULT_PROTECTION_POLICY,
  INITIAL_PROTECTION,
  type LossReason,
  type ProtectionEffect,
  type ProtectionEvent,
  type ProtectionState,
  type StopReason,
  stepProtection,
} from '../shadow/protection.ts';
import { EventJournal, HeldEvents } from './event-journal.ts';
import { GuestClock } from './guest-clock.ts';
import { GuestLinks } from './guest-links.ts';
import { epochsName, inheritShadow } from './inheritance.ts';
import { Instance, type InstanceSetting } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { pressPowerButton } from './power-button.ts';
import { lossReasonOf, PrimaryWatch } from './primary-watch.ts';
import { attachLinks, promoteShadow } from './promotion.ts';
import { noConsole, notProtected } from './refusals.ts';
import { roomNeededBytes, ShadowSession } from './shadow-session.ts';
import { TakeoverStats } from './takeover-stats.ts';
import { describeVm } from './vm-description.ts';

/** Keeps one VM: the QEMU that acts, the shadow behind it, and what happens when either dies. */
export class Keeper implements KeeperControl {
  readonly #options: KeeperOptions;
  readonly #setting: InstanceSetting;
  readonly #eventLog: BoundedLog;
  readonly #journal: EventJournal;
  readonly #heldEvents: HeldEvents<QmpEvent>;
  readonly #guestClock: GuestClock;
  readonly #startedMs: number;
  readonly #finished = Promise.withResolvers<{ reason: StopReason }>();
  readonly #epochs = new EpochStats();
  readonly #takeovers = new TakeoverStats();
  #links: GuestLinks | undefined;
  #agent: StreamClient | undefined;
  #state: ProtectionState = INITIAL_PROTECTION;
  #primary: Instance | undefined;
  #watch: PrimaryWatch | undefined;
  /** What was in use before the last promotion and waits to be given back. */
  #retired: { readonly primary: Instance | undefined; readonly session: ShadowSession } | undefined;
  #shadow: ShadowSession | undefined;
  readonly #shadowStart: DelayedTask;
  #instances = 0;
  #nextEpoch: EpochId = FIRST_EPOCH;
  #committed: EpochId = NO_EPOCH;
  #lostAtMs = 0;
  /** Effects are carried out one after the other. */
  #work: Promise<void> = Promise.resolve();
  readonly #changed = new Set<() => void>();

  private constructor(options: KeeperOptions) {
    this.#options = options;
    const { spec, clock, runDirectory } = options;
    this.#eventLog = new BoundedLog(runDirectory.eventsPath);
    const cgroups = CgroupTree.detect();
    this.#startedMs = clock.nowMs();
    this.#shadowStart = new DelayedTask(clock);
    this.#setting = {
      ...options,
      runDirectory: runDirectory.path,
      memoryDirectory: runDirectory.memoryPath,
      cgroups: cgroups.kind === 'usable' ? cgroups.tree : undefined,
    };
    this.#journal = new EventJournal({
      vm: spec.name,
      wallMs: () => clock.wallMs(),
      write: (line) => this.#eventLog.append(line),
    });
    this.#heldEvents = new HeldEvents((event) => this.#onGuestEvent(event));
    this.#guestClock = new GuestClock({ clock, ...spec.clock, send: (bytes) => this.#agent?.write(bytes) });
    if (cgroups.kind === 'unusable')
      options.log.warn('standby runs without CPU limit', { reason: cgroups.reason });
  }

  /** Starts the VM. Resolves when its guest runs; protection follows. @throws what kept it from starting, or the signal's reason */
  static async start(options: KeeperOptions): Promise<Keeper> {
    checkSpec(options.spec);
    const { heritage, memoryPath } = options.runDirectory;
    // Where there is a heritage, most of what is needed is taken already.
    if (heritage === undefined) assertRoom(memoryPath, roomNeededBytes(options.spec));
    const keeper = new Keeper(options);
    try {
      keeper.#links = await GuestLinks.open({
        spec: options.spec,
        clock: options.clock,
        onHeld: () => keeper.#shadow?.pipeline?.noteHeldOutput(),
        onUplinkLost: (link, error) => keeper.#publish('uplink-lost', { link, error: error.message }),
        onGarbled: (link, error) => keeper.#losePrimary('garbled', { link, error: error.message }),
        unsafe: options.unsafe?.link,
      });
      keeper.#agent = keeper.#links.agent?.connect({
        onOutput: (bytes) => keeper.#guestClock.receive(bytes),
      });
      const inherited = heritage !== undefined && (await keeper.#inherit(heritage, options.signal));
      if (!inherited) await keeper.#startPrimary(options.signal);
      return keeper;
    } catch (cause) {
      keeper.#publish('start-failed', errorFacts(cause));
      await keeper.#dispose();
      throw cause;
    }
  }

  /** Resolves when nothing of the VM is left. */
  get finished(): Promise<{ reason: StopReason }> {
    return this.#finished.promise;
  }

  eventsSince(seq: number): readonly VmEvent[] {
    return this.#journal.since(seq);
  }

  onEvent(listener: (event: VmEvent) => void): () => void {
    return this.#journal.onEvent(listener);
  }

  async promote(): Promise<void> {
    const pipeline = this.#shadow?.pipeline;
    if (this.#state.phase !== 'protected' || pipeline === undefined)
      throw notProtected(this.#options.spec.name, this.#state.phase);
    const promotions = this.#state.promotions;
    this.#losePrimary('planned', {});
    await this.#until(() => this.#state.promotions > promotions || this.#state.phase === 'stopped');
  }

  async stop({ graceful }: { graceful: boolean }): Promise<void> {
    if (graceful && this.#primary !== undefined && this.#state.phase !== 'stopping') {
      const off = this.#until(() => this.#state.phase === 'stopping' || this.#state.phase === 'stopped');
      await pressPowerButton(this.#primary.machine, { ...this.#options, agent: this.#agent, off });
    }
    this.#dispatch({ kind: 'stop-requested' });
    await this.#finished.promise;
  }

  openConsole(watcher: ConsoleWatcher): ConsoleSession {
    const end = this.#links?.console;
    if (end === undefined) throw noConsole(this.#options.spec.name);
    return end.connect(watcher);
  }

  status(): VmStatus {
    const { clock } = this.#options;
    return describeVm({
      ...this.#options,
      state: this.#state,
      upMs: clock.nowMs() - this.#startedMs,
      primary: this.#primary,
      shadow: this.#shadow,
      committed: this.#committed,
      epochs: this.#epochs,
      guestClock: this.#guestClock.status(),
      links: this.#allLinks,
      takeovers: this.#takeovers,
    });
  }

  // --- decisions -------------------------------------------------------------------------------------------

  #dispatch(event: ProtectionEvent): void {
    const policy = { ...DEFAULT_PROTECTION_POLICY, enabled: this.#options.spec.shadow.enabled };
    const before = this.#state;
    const { next, effects } = stepProtection(before, event, policy);
    this.#state = next;
    if (next.phase !== before.phase) {
      this.#publish(next.phase, next.lost === undefined ? {} : { reason: next.lost });
    }
    for (const effect of effects) this.#work = this.#work.then(() => this.#carryOut(effect));
    for (const check of this.#changed) check();
  }

  async #carryOut(effect: ProtectionEffect): Promise<void> {
    try {
      switch (effect.kind) {
        case 'pass-output':
          return this.#passOutput();
        case 'start-shadow':
          return this.#startShadowLater(effect.afterMs);
        case 'drop-shadow':
          return await this.#dropShadow();
        case 'fence':
          return await this.#fence();
        case 'promote':
          return await this.#promoteShadow();
        case 'restart':
          return await this.#restart();
        case 'stop':
          return await this.#stopAll();
        default:
          return unreachable(effect);
      }
    } catch (cause) {
      // Nobody knows how far it came. Stopping is the only thing that cannot make two machines act.
      this.#options.log.error('an effect failed', { effect: effect.kind, error: messageOf(cause) });
      this.#publish('failed', { during: effect.kind, error: messageOf(cause) });
      if (effect.kind !== 'stop') this.#dispatch({ kind: 'start-failed' });
      else this.#finished.resolve({ reason: 'failed' });
    }
  }

  get #allLinks(): readonly GuestLink[] {
    return this.#links?.all ?? [];
  }

  #publish(kind: string, facts: Readonly<Record<string, unknown>> = {}): void {
    this.#options.log.info(kind, { epoch: this.#committed, ...facts });
    this.#journal.publish(kind, this.#committed, facts);
  }

  async #until(holds: () => boolean): Promise<void> {
    if (holds()) return;
    const { promise, resolve } = Promise.withResolvers<void>();
    const check = () => holds() && resolve();
    this.#changed.add(check);
    await promise.finally(() => this.#changed.delete(check));
  }

  // --- the primary -----------------------------------------------------------------------------------------

  async #startPrimary(signal?: AbortSignal): Promise<void> {
    const instance = await this.#startInstance('primary', signal);
    this.#makePrimary(instance);
    attachLinks(this.#allLinks, instance);
    await instance.machine.cont();
    if (!this.#options.unsafe?.leaveClock) this.#guestClock.start();
    this.#dispatch({ kind: 'started' });
  }

  /** Goes on where a keeper was killed. False when what it left is of no use. */
  async #inherit(number: number, signal: AbortSignal | undefined): Promise<boolean> {
    const startMs = this.#options.clock.nowMs();
    this.#instances = number;
    const outcome = await inheritShadow(this.#setting, {
      ...{ number, signal, links: this.#allLinks, failpoints: this.#options.failpoints },
      onCommitted: () => this.#record(),
    });
    if (outcome.kind === 'spoilt') {
      this.#publish('inherit-failed', errorFacts(outcome.cause));
      return false;
    }
    const { session, staged } = outcome;
    this.#committed = staged.epoch;
    this.#nextEpoch = nextEpoch(staged.epoch);
    this.#retired = { primary: undefined, session };
    this.#makePrimary(session.standby);
    if (!this.#options.unsafe?.leaveClock) this.#guestClock.start();
    this.#publish('inherited', { instance: number, tookMs: this.#options.clock.nowMs() - startMs });
    this.#dispatch({ kind: 'started' });
    return true;
  }

  async #startInstance(role: 'primary' | 'standby', signal?: AbortSignal): Promise<Instance> {
    this.#instances += 1;
    const instance = await Instance.start(this.#setting, { number: this.#instances, role, signal });
    this.#publish('qemu-started', { role, instance: instance.number, pid: instance.pid });
    return instance;
  }

  #makePrimary(instance: Instance): void {
    this.#primary = instance;
    this.#record();
    this.#watch?.[Symbol.dispose]();
    this.#watch = new PrimaryWatch(instance, {
      clock: this.#options.clock,
      hangTimeoutMs: this.#options.spec.shadow.hangTimeoutMs,
      // Epochs speak with QEMU all the time.
      isBusy: () => this.#shadow?.pipeline !== undefined,
      onLost: (reason, facts) => this.#losePrimary(reason, facts),
      onGuestEvent: (event) => {
        this.#heldEvents.add(event);
        if (event.name === 'SHUTDOWN') this.#shadow?.pipeline?.demand();
      },
    });
  }

  #losePrimary(reason: LossReason, facts: Readonly<Record<string, unknown>>): void {
    const phase = this.#state.phase;
    if (phase !== 'alone' && phase !== 'syncing' && phase !== 'protected') return;
    this.#lostAtMs = this.#options.clock.nowMs();
    this.#publish('primary-lost', { reason, ...facts });
    this.#dispatch({ kind: 'primary-lost', reason, nowMs: this.#lostAtMs });
  }

  /** Something the guest did that is committed, or that nobody protects it from. */
  #onGuestEvent(event: QmpEvent): void {
    if (event.name === 'RESET') this.#publish('guest-reset');
    if (event.name !== 'SHUTDOWN') return;
    this.#publish('guest-powered-off');
    this.#dispatch({ kind: 'powered-off' });
  }

  #passOutput(): void {
    for (const link of this.#allLinks) link.passOutput();
    this.#heldEvents.pass();
  }

  // --- the shadow ------------------------------------------------------------------------------------------

  #startShadowLater(afterMs: number): void {
    this.#shadowStart.schedule(afterMs, async (signal) => {
      try {
        await this.#startShadow(signal);
      } catch (cause) {
        if (signal.aborted) return;
        this.#publish('shadow-failed', errorFacts(cause));
        this.#dispatch({ kind: 'shadow-lost' });
      }
    });
  }

  async #startShadow(signal: AbortSignal): Promise<void> {
    const { spec, failpoints } = this.#options;
    const primary = this.#primary;
    assert(primary !== undefined, 'a shadow stands behind a primary');
    await this.#finishTakeover();
    const standby = await this.#startInstance('standby', signal);
    const fill = {
      primary,
      epochsInFlightMax: spec.shadow.epochsInFlightMax,
      epochsDirectory: join(this.#setting.memoryDirectory, epochsName(standby.number)),
      failpoints,
      signal,
    };
    const session = await ShadowSession.open(standby, fill);
    this.#shadow = session;
    this.#record();
    void standby.machine.process.exited.then(() => this.#loseShadow(session, 'its QEMU ended'));
    this.#dispatch({ kind: 'shadow-starting' });
    standby.limitCpu(spec.shadow.standbyCpuShare);
    await session.fill(fill);
    signal.throwIfAborted();
    this.#heldEvents.hold();
    session.begin({
      clock: this.#options.clock,
      failpoints,
      stats: this.#epochs,
      links: this.#allLinks,
      participants: [this.#heldEvents],
      policy: spec.shadow,
      primary,
      firstEpoch: this.#nextEpoch,
      mayContinue: () => this.#watch?.guestEnded !== true,
      hasPanicked: () => this.#watch?.guestPanicked === true,
      onCommit: (epoch) => this.#onCommit(epoch),
      onPause: (pausedMs) => this.#guestClock.notePause(pausedMs),
      onPrimaryLost: (cause) => this.#losePrimary(lossReasonOf(cause), { error: messageOf(cause) }),
      onShadowLost: (cause) => this.#loseShadow(session, messageOf(cause)),
    });
  }

  #onCommit(epoch: EpochId): void {
    this.#committed = epoch;
    if (this.#state.phase !== 'syncing') return;
    this.#dispatch({ kind: 'shadow-in-sync' });
    this.#record();
  }

  #loseShadow(session: ShadowSession, error: string): void {
    if (this.#shadow !== session) return;
    this.#publish('shadow-lost', { error });
    this.#dispatch({ kind: 'shadow-lost' });
  }

  async #dropShadow(): Promise<void> {
    await this.#shadowStart.cancel();
    await this.#finishTakeover();
    const session = this.#shadow;
    this.#shadow = undefined;
    if (session === undefined) return;
    await session.halt();
    this.#nextEpoch = nextEpoch(session.pipeline?.openEpoch ?? this.#nextEpoch);
    await session[Symbol.asyncDispose]();
    this.#record();
  }

  // --- taking over -----------------------------------------------------------------------------------------

  /** After this the old primary can neither send a frame nor run an instruction, whatever state it was in. */
  async #fence(): Promise<void> {
    const old = this.#primary;
    this.#watch?.[Symbol.dispose]();
    for (const link of this.#allLinks) link.detach();
    await this.#options.failpoints.hit('fence.before-kill');
    await old?.kill();
    await this.#shadow?.halt();
    this.#dispatch({ kind: 'fenced' });
  }

  async #promoteShadow(): Promise<void> {
    const { clock, failpoints } = this.#options;
    const session = this.#shadow;
    const startMs = clock.nowMs();
    try {
      assert(session !== undefined, 'there is a shadow to promote');
      this.#heldEvents.forget();
      await promoteShadow(session, { links: this.#allLinks, failpoints, onCommitted: () => this.#record() });
      this.#finishPromotion(session, startMs);
    } catch (cause) {
      this.#publish('promote-failed', errorFacts(cause));
      for (const link of this.#allLinks) link.detach();
      await this.#removeOldPrimary();
      this.#dispatch({ kind: 'promote-failed' });
    }
  }

  #finishPromotion(session: ShadowSession, startMs: number): void {
    const times = { lostAtMs: this.#lostAtMs, startMs, nowMs: this.#options.clock.nowMs() };
    const taken = this.#takeovers.add(times);
    this.#retired = { primary: this.#primary, session };
    this.#shadow = undefined;
    this.#nextEpoch = nextEpoch(session.pipeline?.openEpoch ?? this.#nextEpoch);
    this.#makePrimary(session.standby);
    this.#publish('promoted', { instance: session.standby.number, ...taken });
    this.#dispatch({ kind: 'promoted' });
  }

  /** What a promotion leaves for later, once those who waited for an answer have had it. */
  async #finishTakeover(): Promise<void> {
    const retired = this.#retired;
    if (retired === undefined) return;
    this.#retired = undefined;
    this.#guestClock.notePromotion();
    this.#primary?.machine.announceSelf().catch((cause) => {
      this.#options.log.warn('announce-self failed', { error: messageOf(cause) });
    });
    // The old primary is dead already; these are its files.
    await retired.session.releaseEpochs();
    await retired.primary?.[Symbol.asyncDispose]();
    this.#record();
  }

  async #removeOldPrimary(): Promise<void> {
    const old = this.#primary;
    this.#primary = undefined;
    await old?.[Symbol.asyncDispose]();
  }

  async #restart(): Promise<void> {
    await this.#removeOldPrimary();
    for (const link of this.#allLinks) {
      link.forget();
      link.resumeInput();
    }
    this.#heldEvents.forget();
    await this.#startPrimary();
    this.#publish('restarted-cold', { outageMs: this.#options.clock.nowMs() - this.#lostAtMs });
  }

  // --- the end ---------------------------------------------------------------------------------------------

  async #stopAll(): Promise<void> {
    await this.#dispose();
    this.#dispatch({ kind: 'stopped' });
    this.#eventLog[Symbol.dispose]();
    this.#finished.resolve({ reason: this.#state.stopReason ?? 'requested' });
  }

  async #dispose(): Promise<void> {
    this.#watch?.[Symbol.dispose]();
    this.#guestClock.stop();
    for (const link of this.#allLinks) link.detach();
    const primary = this.#primary;
    this.#primary = undefined;
    await primary?.kill();
    await this.#dropShadow();
    await primary?.[Symbol.asyncDispose]();
    await this.#links?.[Symbol.asyncDispose]();
    this.#links = undefined;
  }

  /** Written down for whoever has to clean up after a keeper that was killed, or can go on from what it left. */
  #record(): void {
    const living = [this.#primary, this.#shadow?.standby].filter((instance) => instance !== undefined);
    this.#options.runDirectory.record({
      spec: this.#options.spec,
      processes: living.map((instance) => instance.pid),
      cgroups: living.flatMap((instance) => instance.cgroup?.directory ?? []),
      // Only while all output waits for the shadow: else it would be behind what the world has seen.
      shadow: this.#state.phase === 'protected' ? (this.#shadow?.standby.number ?? null) : null,
    });
  }
}
