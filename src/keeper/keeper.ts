import { join } from 'node:path';
import { assert, unreachable } from '../base/assert.ts';
import { ConditionWaiters } from '../base/condition-waiters.ts';
import { DelayedTask } from '../base/delayed-task.ts';
import { errorFacts, messageOf } from '../base/errors.ts';
import { type Trace, traceFacts } from '../base/trace.ts';
import type { ConsoleSession, ConsoleWatcher, KeeperControl } from '../control/keeper-control.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { VmMetrics } from '../control/vm-metrics.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { type EpochId, FIRST_EPOCH, NO_EPOCH, nextEpoch } from '../epoch/epoch-id.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { StreamClient } from '../net/stream-end.ts';
import { checkSpec } from '../qemu/protectability.ts';
import type { QmpEvent } from '../qemu/qmp-events.ts';
import { EpochStats } from '../replication/epoch-stats.ts';
import {
  DEFAULT_PROTECTION_POLICY,
  INITIAL_PROTECTION,
  isActing,
  isEnding,
  type LossReason,
  type ProtectionEffect,
  type ProtectionEvent,
  type ProtectionState,
  type StopReason,
  stepProtection,
} from '../shadow/protection.ts';
import { admit } from './admission.ts';
import { EffectQueue } from './effect-queue.ts';
import { GuestClock } from './guest-clock.ts';
import { GuestLinks } from './guest-links.ts';
import { epochsName, inheritShadow } from './inheritance.ts';
import { Instance, type InstanceSetting } from './instance.ts';
import { settingOf } from './instance-setting.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { askToPowerOff } from './power-button.ts';
import { lossReasonOf, PrimaryWatch } from './primary-watch.ts';
import { attachLinks, promoteShadow } from './promotion.ts';
import { noConsole, notProtected, promoteFailed } from './refusals.ts';
import { ShadowSession } from './shadow-session.ts';
import { TakeoverStats } from './takeover-stats.ts';
import { describeVm, type KnownVm } from './vm-description.ts';
import { endVm, giveBack, type RetiredVm } from './vm-ending.ts';
import { VmEvents } from './vm-events.ts';
import { measureVm } from './vm-measures.ts';
import { recordVm } from './vm-record.ts';

/** Keeps one VM: the QEMU that acts, the shadow behind it, and what happens when either dies. */
export class Keeper implements KeeperControl {
  readonly #options: KeeperOptions;
  readonly #setting: InstanceSetting;
  readonly #events: VmEvents;
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
  #retired: RetiredVm | undefined;
  #shadow: ShadowSession | undefined;
  readonly #shadowStart: DelayedTask;
  #instances = 0;
  #nextEpoch: EpochId = FIRST_EPOCH;
  #committed: EpochId = NO_EPOCH;
  #lostAtMs = 0;
  /** The request that the present takeover or end was asked for by. */
  #onBehalf: Trace | undefined;
  readonly #effects: EffectQueue;
  readonly #waiters = new ConditionWaiters();

  private constructor(options: KeeperOptions) {
    this.#options = options;
    const { spec, clock } = options;
    this.#startedMs = clock.nowMs();
    this.#shadowStart = new DelayedTask(clock);
    this.#setting = settingOf(options);
    const onGuestEvent = (event: QmpEvent) => this.#onGuestEvent(event);
    this.#events = new VmEvents({ ...options, vm: spec.name, onGuestEvent });
    this.#effects = new EffectQueue({
      carryOut: (effect) => this.#carryOut(effect),
      onFailed: (effect, cause) => this.#onEffectFailed(effect, cause),
    });
    const send = (bytes: Uint8Array) => this.#agent?.write(bytes);
    const hasUnreadInput = () => this.#links?.hasUnreadInput('agent') ?? false;
    this.#guestClock = new GuestClock({ clock, ...spec.clock, send, hasUnreadInput });
  }

  /** Starts the VM. Resolves when its guest runs; protection follows. @throws what kept it from starting, or the signal's reason */
  static async start(options: KeeperOptions): Promise<Keeper> {
    checkSpec(options.spec);
    const { heritage } = options.runDirectory;
    // Where there is a heritage, what is needed was promised already.
    if (heritage === undefined) admit(options.spec);
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
    return this.#events.journal.since(seq);
  }

  onEvent(listener: (event: VmEvent) => void): () => void {
    return this.#events.journal.onEvent(listener);
  }

  async promote({ trace }: { trace?: Trace | undefined } = {}): Promise<void> {
    const pipeline = this.#shadow?.pipeline;
    if (this.#state.phase !== 'protected' || pipeline === undefined)
      throw notProtected(this.#options.spec.name, this.#state.phase);
    const { promotions, restarts } = this.#state;
    const isPromoted = () => this.#state.promotions > promotions;
    this.#onBehalf = trace;
    this.#losePrimary('planned', traceFacts(trace));
    await this.#waiters.until(() => isPromoted() || this.#state.restarts > restarts || isEnding(this.#state));
    if (this.#onBehalf === trace) this.#onBehalf = undefined;
    if (!isPromoted()) throw promoteFailed(this.#options.spec.name);
  }

  async stop({ graceful, trace }: { graceful: boolean; trace?: Trace | undefined }): Promise<void> {
    this.#onBehalf = trace;
    if (graceful) {
      await askToPowerOff({
        clock: this.#options.clock,
        // In the middle of a takeover there is nobody to ask: it takes milliseconds.
        acts: this.#waiters.until(() => isActing(this.#state) || isEnding(this.#state)),
        ask: () => this.#primary?.machine.powerdown({ trace }),
        agent: this.#agent,
        off: this.#waiters.until(() => isEnding(this.#state)),
      });
    }
    this.#dispatch({ kind: 'stop-requested' });
    await this.#finished.promise;
  }

  /** Nothing is decided or begun any more, for whoever ends the processes of this VM by force. */
  freeze(): void {
    this.#effects.freeze();
    this.#watch?.[Symbol.dispose]();
  }

  openConsole(watcher: ConsoleWatcher): ConsoleSession {
    const end = this.#links?.console;
    if (end === undefined) throw noConsole(this.#options.spec.name);
    return end.connect(watcher);
  }

  status(): VmStatus {
    return describeVm(this.#known());
  }

  metrics(): VmMetrics {
    return measureVm(this.#known());
  }

  #known(): KnownVm {
    return {
      ...this.#options,
      state: this.#state,
      upMs: this.#options.clock.nowMs() - this.#startedMs,
      token: this.#events.token,
      primary: this.#primary,
      shadow: this.#shadow,
      committed: this.#committed,
      epochs: this.#epochs,
      guestClock: this.#guestClock.status(),
      links: this.#allLinks,
      takeovers: this.#takeovers,
    };
  }

  #dispatch(event: ProtectionEvent): void {
    const policy = { ...DEFAULT_PROTECTION_POLICY, enabled: this.#options.spec.shadow.enabled };
    const before = this.#state;
    const { next, effects } = stepProtection(before, event, policy);
    this.#state = next;
    if (next.phase !== before.phase) {
      const why = next.lost === undefined ? {} : { reason: next.lost };
      this.#publish(next.phase, { ...why, ...traceFacts(this.#onBehalf) });
    }
    for (const effect of effects) this.#effects.push(effect);
    this.#waiters.check();
  }

  #carryOut(effect: ProtectionEffect): Promise<void> | void {
    switch (effect.kind) {
      case 'pass-output':
        return this.#passOutput();
      case 'start-shadow':
        return this.#startShadowLater(effect.afterMs);
      case 'drop-shadow':
        return this.#dropShadow();
      case 'fence':
        return this.#fence();
      case 'promote':
        return this.#promoteShadow();
      case 'restart':
        return this.#restart();
      case 'stop':
        return this.#stopAll();
      default:
        return unreachable(effect);
    }
  }

  /** Stopping is the only thing that cannot make two machines act. */
  #onEffectFailed({ kind }: ProtectionEffect, cause: unknown): void {
    this.#options.log.error('an effect failed', { effect: kind, error: messageOf(cause) });
    this.#publish('failed', { during: kind, error: messageOf(cause) });
    if (kind !== 'stop') this.#dispatch({ kind: 'start-failed' });
    else this.#finished.resolve({ reason: 'failed' });
  }

  get #allLinks(): readonly GuestLink[] {
    return this.#links?.all ?? [];
  }

  #publish(kind: string, facts: Readonly<Record<string, unknown>> = {}): void {
    this.#events.publish(kind, this.#committed, facts);
  }

  async #startPrimary(signal?: AbortSignal): Promise<void> {
    const instance = await this.#startInstance('primary', signal);
    this.#beginToAct();
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
      onCommitted: () => this.#beginToAct(),
    });
    if (outcome.kind === 'spoilt') {
      this.#publish('inherit-failed', errorFacts(outcome.cause));
      return false;
    }
    const { session, staged } = outcome;
    this.#committed = staged.epoch;
    this.#nextEpoch = nextEpoch(staged.epoch);
    this.#retired = { primary: undefined, session, trace: undefined };
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

  /** Another QEMU is about to: its token is on record before it does anything. */
  #beginToAct(): void {
    this.#events.nextToken();
    this.#record();
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
        this.#events.held.add(event);
        if (event.name === 'SHUTDOWN') this.#shadow?.pipeline?.demand();
      },
    });
  }

  #losePrimary(reason: LossReason, facts: Readonly<Record<string, unknown>>): void {
    if (!isActing(this.#state)) return;
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
    this.#events.held.pass();
  }

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
    this.#events.held.hold();
    session.begin({
      clock: this.#options.clock,
      failpoints,
      stats: this.#epochs,
      links: this.#allLinks,
      participants: [this.#events.held],
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

  /** After this the old primary can neither send a frame nor run an instruction, whatever state it was in. */
  async #fence(): Promise<void> {
    const old = this.#primary;
    // First: an epoch that is cut without its links would lack the output in it.
    this.#shadow?.pipeline?.freeze();
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
      this.#events.held.forget();
      await promoteShadow(session, {
        ...{ links: this.#allLinks, failpoints, trace: this.#onBehalf },
        onCommitted: () => this.#beginToAct(),
      });
    } catch (cause) {
      this.#publish('promote-failed', { ...errorFacts(cause), ...traceFacts(this.#onBehalf) });
      for (const link of this.#allLinks) link.detach();
      await this.#removeOldPrimary();
      this.#dispatch({ kind: 'promote-failed' });
      return;
    }
    // It acts: nothing from here on may be taken for a failed promotion.
    this.#finishPromotion(session, startMs);
  }

  #finishPromotion(session: ShadowSession, startMs: number): void {
    const times = { lostAtMs: this.#lostAtMs, startMs, nowMs: this.#options.clock.nowMs() };
    const taken = this.#takeovers.add(times);
    this.#retired = { primary: this.#primary, session, trace: this.#onBehalf };
    this.#shadow = undefined;
    this.#nextEpoch = nextEpoch(session.pipeline?.openEpoch ?? this.#nextEpoch);
    this.#makePrimary(session.standby);
    const asked = traceFacts(this.#onBehalf);
    this.#publish('promoted', { instance: session.standby.number, ...taken, ...asked });
    this.#dispatch({ kind: 'promoted' });
  }

  /** What a promotion leaves for later, once those who waited for an answer have had it. */
  async #finishTakeover(): Promise<void> {
    const retired = this.#retired;
    if (retired === undefined) return;
    this.#retired = undefined;
    this.#guestClock.notePromotion();
    await giveBack(retired, { acting: this.#primary, log: this.#options.log });
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
    this.#events.held.forget();
    await this.#startPrimary();
    this.#publish('restarted-cold', { outageMs: this.#options.clock.nowMs() - this.#lostAtMs });
  }

  async #stopAll(): Promise<void> {
    await this.#dispose();
    this.#dispatch({ kind: 'stopped' });
    this.#events[Symbol.dispose]();
    this.#finished.resolve({ reason: this.#state.stopReason ?? 'requested' });
  }

  async #dispose(): Promise<void> {
    this.#watch?.[Symbol.dispose]();
    this.#guestClock.stop();
    const primary = this.#primary;
    this.#primary = undefined;
    await endVm({ links: this.#links, primary, dropShadow: () => this.#dropShadow() });
  }

  /** Written down for whoever has to clean up after a keeper that was killed, or can go on from what it left. */
  #record(): void {
    const { log, runDirectory, spec } = this.#options;
    const isProtected = this.#state.phase === 'protected';
    const { token } = this.#events;
    recordVm(runDirectory, { log, spec, token, primary: this.#primary, shadow: this.#shadow, isProtected });
  }
}
