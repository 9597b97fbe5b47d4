import { unreachable } from '../base/assert.ts';
import { ConditionWaiters } from '../base/condition-waiters.ts';
import { errorFacts, messageOf } from '../base/errors.ts';
import { type Trace, traceFacts } from '../base/trace.ts';
import type { FailoverReport } from '../control/failover-report.ts';
import type { ConsoleSession, ConsoleWatcher, KeeperControl, StopOrder } from '../control/keeper-control.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { VmMetrics } from '../control/vm-metrics.ts';
import type { VmStatus } from '../control/vm-status.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { StreamClient } from '../net/stream-end.ts';
import type { QmpEvent } from '../qemu/qmp-events.ts';
import type { FailedDisk } from '../replication/peer-messages.ts';
import {
  DEFAULT_PROTECTION_POLICY,
  goesOnElsewhere,
  INITIAL_PROTECTION,
  isActing,
  type LossReason,
  type ProtectionEffect,
  type ProtectionEvent,
  type ProtectionState,
  stepProtection,
} from '../shadow/protection.ts';
import { openDisks, watchDisks } from './disk-opening.ts';
import { EffectQueue } from './effect-queue.ts';
import { GuestClock } from './guest-clock.ts';
import { GuestLinks } from './guest-links.ts';
import type { Instance, InstanceSetting } from './instance.ts';
import { InstanceSeries } from './instance-series.ts';
import { settingOf } from './instance-setting.ts';
import type { KeeperOptions } from './keeper-options.ts';
import { MemoryArrival } from './memory-arrival.ts';
import { OwnSnapshots } from './own-snapshots.ts';
import type { PrimaryWatch } from './primary-watch.ts';
import { type WatchedVm, watchPrimary } from './primary-watching.ts';
import { RecordPatience } from './record-patience.ts';
import { isSuperseded, noConsole } from './refusals.ts';
import { recordEnd } from './remote-site.ts';
import { RightKeeping } from './right-keeping.ts';
import type { ShadowLife } from './shadow-life.ts';
import { isShadowWanted, withShadow } from './shadow-wish.ts';
import { type ShadowedVm, shadowLifeOf } from './shadowed-vm.ts';
import { StateKeeping, type StateKeepingOptions } from './state-keeping.ts';
import { TakeoverRemains } from './takeover-remains.ts';
import { TakeoverStats } from './takeover-stats.ts';
import { type BeginningVm, beginVm, boot, prepareBeginning } from './vm-beginning.ts';
import { describeVm, type KnownVm } from './vm-description.ts';
import type { VmDisks } from './vm-disks.ts';
import { endVm, type VmEnd } from './vm-ending.ts';
import { VmEvents } from './vm-events.ts';
import { VmLimits } from './vm-limits.ts';
import { measureVm } from './vm-measures.ts';
import { type OrderedVm, VmOrders } from './vm-orders.ts';
import { recordVm } from './vm-record.ts';
import { leaveToShadow, type TakenOverVm, takeOver } from './vm-takeover.ts';
import { VmTelemetry } from './vm-telemetry.ts';

const NO_LOSS = { atMs: 0, noticedAtMs: 0, disk: undefined };

type Facts = Readonly<Record<string, unknown>>;
type Parts = BeginningVm & StateKeepingOptions & Omit<OrderedVm, 'states'> & TakenOverVm & WatchedVm;

/** Keeps one VM: the QEMU that acts, the shadow behind it, and what happens when either dies. */
export class Keeper implements KeeperControl {
  readonly #options: KeeperOptions;
  readonly #setting: InstanceSetting;
  readonly #disks: VmDisks;
  readonly #events: VmEvents;
  readonly #guestClock: GuestClock;
  readonly #startedMs: number;
  readonly #finished = Promise.withResolvers<VmEnd>();
  readonly #patience: RecordPatience;
  readonly #takeovers = new TakeoverStats();
  #links: GuestLinks | undefined;
  #agent: StreamClient | undefined;
  #state: ProtectionState;
  #primary: Instance | undefined;
  #watch: PrimaryWatch | undefined;
  readonly #remains = new TakeoverRemains();
  readonly #memory: MemoryArrival;
  readonly #shadow: ShadowLife;
  readonly #parts: Parts;
  readonly #states: StateKeeping;
  readonly #orders: VmOrders;
  /** Undefined where no other host may act. */
  readonly #right: RightKeeping | undefined;
  readonly #ownSnapshots: OwnSnapshots;
  readonly #instances: InstanceSeries;
  readonly #telemetry: VmTelemetry;
  readonly #limits: VmLimits;
  #loss: Pick<ReturnType<TakenOverVm['loss']>, 'atMs' | 'noticedAtMs' | 'disk'> = NO_LOSS;
  /** Of this host: not all that was written is on it. */
  #failedDisk: FailedDisk | undefined;
  /** The request that the present takeover or end was asked for by. */
  #onBehalf: Trace | undefined;
  readonly #effects: EffectQueue;
  readonly #waiters = new ConditionWaiters();

  private constructor(options: KeeperOptions, disks: VmDisks) {
    this.#options = options;
    this.#disks = disks;
    const { spec, clock } = options;
    this.#state = { ...INITIAL_PROTECTION, wanted: isShadowWanted(options) };
    this.#startedMs = clock.nowMs();
    this.#patience = new RecordPatience(clock);
    this.#setting = settingOf({ ...options, spec: withShadow(spec, this.#state.wanted) }, disks);
    const onGuestEvent = (event: QmpEvent) => this.#onGuestEvent(event);
    this.#events = new VmEvents({ ...options, vm: spec.name, onGuestEvent });
    this.#memory = new MemoryArrival({
      publish: (kind, facts) => this.#publish(kind, facts),
      onWhole: () => this.#record(),
      dispatch: (event) => this.#dispatch(event),
    });
    this.#instances = new InstanceSeries(this.#setting, (kind, facts) => this.#publish(kind, facts));
    const parts = this.#partsForOthers();
    this.#shadow = shadowLifeOf(parts);
    this.#parts = { ...parts, shadow: this.#shadow };
    this.#right = options.remote && new RightKeeping(options.remote.right, { ...parts, ...options });
    const noteFailed = (disk: FailedDisk) => {
      this.#failedDisk = disk;
    };
    watchDisks({ ...this.#parts, right: options.remote?.right, noteFailed });
    this.#states = new StateKeeping(this.#parts);
    this.#orders = new VmOrders({ ...this.#parts, states: this.#states });
    this.#telemetry = new VmTelemetry(this.#parts);
    this.#limits = new VmLimits(this.#parts);
    this.#ownSnapshots = new OwnSnapshots({
      ...{ options, phase: () => this.#state.phase, snapshot: this.snapshot },
      publish: (kind, facts) => this.#publish(kind, facts),
    });
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
    const origin = await prepareBeginning(options);
    const keeper = new Keeper(options, options.promised?.disks ?? (await openDisks(options, origin)));
    try {
      keeper.#links = await GuestLinks.open({
        spec: options.spec,
        clock: options.clock,
        onHeld: () => keeper.#shadow.pipeline?.noteHeldOutput(),
        onUplinkLost: (link, error) => keeper.#publish('uplink-lost', { link, error: error.message }),
        onGarbled: (link, error) => keeper.#losePrimary('garbled', { link, error: error.message }),
        claimed: options.promised?.claimed,
        onClaim: () => keeper.#shadow.current?.noteClaimed?.(keeper.#links?.claimed ?? {}),
        mayRelease: options.remote && ((what) => options.remote?.right.mayRelease(what) === true),
        unsafe: options.unsafe?.link,
      });
      keeper.#agent = keeper.#links.agent?.connect({
        onOutput: (bytes) => keeper.#guestClock.receive(bytes),
      });
      const begun = await beginVm(keeper.#parts, origin);
      keeper.#right?.watch();
      keeper.#shadow.countAbove(keeper.#disks.lastEpoch);
      if (begun === 'runs') keeper.#noteStarted();
      else keeper.#dispatch({ kind: 'powered-off' });
      keeper.#ownSnapshots.start();
      return keeper;
    } catch (cause) {
      keeper.#publish('start-failed', errorFacts(cause));
      await keeper.#dispose();
      throw cause;
    }
  }

  /** Resolves when nothing of the VM is left. */
  get finished(): Promise<VmEnd> {
    return this.#finished.promise;
  }

  eventsSince(seq: number): readonly VmEvent[] {
    return this.#events.journal.since(seq);
  }

  onEvent(listener: (event: VmEvent) => void): () => void {
    return this.#events.journal.onEvent(listener);
  }

  // What can be ordered is carried out, and explained, elsewhere.
  readonly promote: KeeperControl['promote'] = (order) => this.#orders.promote(order);
  readonly place: KeeperControl['place'] = (order) => this.#orders.place(order);
  readonly protect = (): Promise<void> => this.#orders.protect();
  readonly unprotect = (): Promise<void> => this.#orders.unprotect();
  readonly testFailover = (): Promise<FailoverReport> => this.#orders.testFailover();
  readonly snapshot: KeeperControl['snapshot'] = (order) => this.#orders.snapshot(order);
  readonly telemetry: KeeperControl['telemetry'] = (order) => this.#telemetry.telemetry(order);
  readonly limits: KeeperControl['limits'] = (order) => this.#limits.limits(order);
  readonly samples: KeeperControl['samples'] = (options) => this.#telemetry.samples(options);
  readonly callOffSnapshot: KeeperControl['callOffSnapshot'] = (order) => this.#orders.callOffSnapshot(order);
  readonly stop = async (order: StopOrder): Promise<void> => {
    const { graceful, termination = this.#options.spec.termination } = order;
    if (graceful && termination === 'remove') await this.#ownSnapshots.beforeShutdown();
    await this.#orders.stop(order);
  };

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
      shadow: this.#shadow.current,
      committed: this.#shadow.committed,
      disks: this.#disks,
      epochs: this.#shadow.stats,
      guestClock: this.#guestClock.status(),
      links: this.#allLinks,
      takeovers: this.#takeovers,
      right: this.#options.remote?.right,
      snapshots: this.#ownSnapshots.measure(),
      telemetry: this.#telemetry.status(),
    };
  }

  #dispatch(event: ProtectionEvent): void {
    const before = this.#state;
    const { next, effects } = stepProtection(before, event, DEFAULT_PROTECTION_POLICY);
    this.#state = next;
    if (next.phase !== before.phase) {
      const why = next.lost === undefined ? {} : { reason: next.lost };
      this.#publish(next.phase, { ...why, ...traceFacts(this.#onBehalf) });
    }
    if (next.phase === 'stopping') this.#patience.begin();
    for (const effect of effects) this.#effects.push(effect);
    if (isActing(next) && !isActing(before)) {
      this.#watch?.begin();
      this.#right?.settle();
    }
    this.#waiters.check();
  }

  #carryOut(effect: ProtectionEffect): Promise<void> | void {
    switch (effect.kind) {
      case 'pass-output':
        return this.#passOutput();
      case 'start-shadow':
        return this.#shadow.startLater(effect.afterMs);
      case 'drop-shadow':
        return this.#dropShadow();
      case 'save':
        return this.#states.begin();
      case 'fence':
        return this.#fence();
      case 'promote':
        return takeOver(this.#parts);
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
    this.#publish('failed', { during: kind, ...errorFacts(cause) });
    if (kind === 'stop') this.#finished.resolve({ reason: isSuperseded(cause) ? 'superseded' : 'failed' });
    else this.#dispatch({ kind: isSuperseded(cause) ? 'superseded' : 'start-failed' });
  }

  get #allLinks(): readonly GuestLink[] {
    return this.#links?.all ?? [];
  }

  #publish(kind: string, facts: Facts = {}): void {
    this.#events.publish(kind, this.#shadow.committed, facts);
  }

  #noteStarted(): void {
    if (!this.#options.unsafe?.leaveClock) this.#guestClock.start();
    this.#telemetry.start();
    this.#dispatch({ kind: 'started' });
  }

  /** Another QEMU is about to: its token is on record before it does anything. */
  #beginToAct(instance: Instance): void {
    this.#events.nextToken();
    this.#record(instance);
  }

  #makePrimary(instance: Instance): void {
    this.#primary = instance;
    this.#limits.enforce(instance);
    this.#record();
    this.#watch?.[Symbol.dispose]();
    this.#watch = watchPrimary(this.#parts, instance);
  }

  #losePrimary(reason: LossReason, facts: Facts & { readonly disk?: FailedDisk }): void {
    if (!isActing(this.#state) || this.#effects.isFrozen) return;
    const nowMs = this.#options.clock.nowMs();
    // One that hangs was lost when it last answered, and not when that was noticed.
    const heardMs = this.#primary?.machine.qmp.lastHeardMs ?? nowMs;
    this.#loss = { atMs: reason === 'hung' ? heardMs : nowMs, noticedAtMs: nowMs, disk: facts.disk };
    this.#publish('primary-lost', { reason, ...facts });
    this.#dispatch({ kind: 'primary-lost', reason, nowMs });
  }

  /** Something the guest did that is committed, or that nobody protects it from. */
  #onGuestEvent(event: QmpEvent): void {
    if (event.name === 'RESET') this.#publish('guest-reset');
    if (event.name !== 'SHUTDOWN') return;
    this.#publish('guest-powered-off');
    this.#dispatch({ kind: 'powered-off' });
  }

  /** What the guest was told is written is so without a shadow as well, before anybody hears of it. */
  async #leaveDisks(): Promise<void> {
    await this.#shadow.halt();
    await this.#disks.leave(() => this.#record());
  }

  async #passOutput(): Promise<void> {
    if (this.#disks.isHeld) await this.#leaveDisks();
    for (const link of this.#allLinks) link.passOutput();
    this.#events.held.pass();
  }

  /** What those who carry something out for this keeper need of it. */
  #partsForOthers(): Omit<Parts, 'shadow'> & ShadowedVm {
    return {
      options: this.#options,
      setting: this.#setting,
      ...{ disks: this.#disks, memory: this.#memory },
      ...{ remains: this.#remains, takeovers: this.#takeovers },
      announce: () => this.#links?.announce(),
      waiters: this.#waiters,
      ...{ finished: this.#finished.promise, patience: this.#patience },
      state: () => this.#state,
      ...{ primary: () => this.#primary, links: () => this.#allLinks },
      loss: () => ({ ...this.#loss, reason: this.#state.lost, trace: this.#onBehalf }),
      ...{ known: () => this.#known(), claimed: () => this.#links?.claimed ?? {} },
      held: this.#events.held,
      forgetHeldEvents: () => this.#events.held.forget(),
      removeOldPrimary: () => this.#removeOldPrimary(),
      agent: () => this.#agent,
      hasAgent: () => this.#guestClock.status().answeredAgoMs !== null,
      notePause: (pausedMs) => this.#guestClock.notePause(pausedMs),
      startPrimary: (role, signal) => this.#instances.start({ role, purpose: 'primary', signal }),
      startStandby: (signal) => this.#instances.start({ role: 'standby', signal }),
      startTest: (signal, disks) =>
        this.#instances.start({ role: 'standby', purpose: 'test', signal, disks }),
      countFrom: (instance) => this.#instances.countFrom(instance),
      beginToAct: (instance) => this.#beginToAct(instance),
      makePrimary: (instance) => this.#makePrimary(instance),
      mayContinue: () => this.#watch?.guestEnded !== true && this.#right?.mayRun !== false,
      hasPanicked: () => this.#watch?.guestPanicked === true,
      isFrozen: () => this.#effects.isFrozen,
      onGoesOn: () => this.#guestClock.notePromotion(),
      onBehalf: (trace) => {
        this.#onBehalf = trace;
      },
      losePrimary: (reason, facts) => this.#losePrimary(reason, facts),
      notePrimaryFailure: (cause) => this.#watch?.noteFailure(cause),
      isSilent: () => this.#watch?.isSilent === true,
      dispatch: (event) => this.#dispatch(event),
      publish: (kind, facts) => this.#publish(kind, facts),
      record: () => this.#record(),
    };
  }

  async #dropShadow(): Promise<void> {
    // Before what it holds is gone.
    await this.#leaveDisks();
    await this.#shadow.drop();
    this.#dispatch({ kind: 'shadow-dropped' });
  }

  /** After this the old primary can neither send a frame nor run an instruction, whatever state it was in. */
  async #fence(): Promise<void> {
    const old = this.#primary;
    // First: an epoch that is cut without its links would lack the output in it.
    this.#shadow.freeze();
    this.#states.giveUp();
    this.#watch?.[Symbol.dispose]();
    for (const link of this.#allLinks) link.detach();
    await this.#options.failpoints.hit('fence.before-kill');
    await old?.kill();
    await this.#states.end();
    await this.#shadow.halt();
    this.#dispatch({ kind: 'fenced' });
  }

  async #removeOldPrimary(): Promise<void> {
    const old = this.#primary;
    this.#primary = undefined;
    await old?.[Symbol.asyncDispose]();
  }

  async #restart(): Promise<void> {
    await this.#removeOldPrimary();
    await this.#memory.giveUp();
    for (const link of this.#allLinks) {
      link.forget();
      link.resumeInput();
    }
    this.#events.held.forget();
    await boot(this.#parts);
    this.#noteStarted();
    this.#publish('restarted-cold', { outageMs: this.#options.clock.nowMs() - this.#loss.atMs });
  }

  async #stopAll(): Promise<void> {
    await this.#dispose();
    const { stopReason: reason = 'requested' } = this.#state;
    const { remote, savedIn, log } = this.#options;
    const { mayGoOnAt, leftTo } = this.#shadow;
    // Who has all that was written stays on record.
    const isLeft = leftTo !== undefined && !goesOnElsewhere(reason);
    const ending = { reason, suspendedIn: savedIn?.suspended, log, patience: this.#patience };
    const isOnRecord = isLeft ? false : await recordEnd(remote?.right, ending);
    if (isOnRecord === false) this.#publish('end-unrecorded', mayGoOnAt === undefined ? {} : { mayGoOnAt });
    this.#dispatch({ kind: 'stopped' });
    this.#events[Symbol.dispose]();
    const hasFailed = (this.#failedDisk ?? this.#loss.disk) !== undefined;
    this.#finished.resolve({ reason, isOnRecord, ...(hasFailed && { leftTo }) });
  }

  async #dispose(): Promise<void> {
    this.#watch?.[Symbol.dispose]();
    this.#guestClock.stop();
    this.#telemetry[Symbol.dispose]();
    const ownSnapshots = this.#ownSnapshots[Symbol.asyncDispose]();
    const primary = this.#primary;
    this.#primary = undefined;
    const { spec, remote, log } = this.#options;
    const isElsewhere = () => goesOnElsewhere(this.#state.stopReason) || this.#shadow.leftTo !== undefined;
    const leaveDisks = async () => {
      await this.#leaveDisks().catch((cause) =>
        leaveToShadow(this.#parts, { disk: this.#failedDisk, cause }),
      );
    };
    await endVm({
      ...{ vm: spec.name, isElsewhere, leaveDisks, log },
      keepsRelic: async () => isElsewhere() && ((await remote?.keepsRelics()) ?? false),
      links: this.#links,
      primary,
      disks: this.#disks,
      endSaving: () => this.#states.end(),
      dropShadow: () => this.#shadow.drop(),
    });
    await this.#memory[Symbol.asyncDispose]();
    await ownSnapshots;
  }

  /** Written down for whoever has to clean up after a keeper that was killed, or can go on from what it left. */
  #record(acting = this.#primary): void {
    recordVm(this.#options.runDirectory, {
      ...this.#options,
      primary: this.#primary,
      acting,
      shadow: this.#shadow.session,
      disks: this.#disks,
      state: this.#state,
      isWhole: this.#memory.isWhole,
      token: this.#events.token,
      committed: this.#shadow.committed,
    });
  }
}
