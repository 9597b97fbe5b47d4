import type { Clock } from '../base/clock.ts';
import { ConditionWaiters } from '../base/condition-waiters.ts';
import { errorFacts } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { Logger } from '../base/logger.ts';
import type { KeeperError } from '../control/keeper-error.ts';
import { LeaseDriver, type VmEffect } from '../lease/lease-driver.ts';
import { LeaseError } from '../lease/lease-error.ts';
import { isSuspendedElsewhere, type StoredLease } from '../lease/lease-record.ts';
import {
  heardForMs,
  heirLease,
  initialLease,
  type LeaseFact,
  type LeasePhase,
  type LeasePolicy,
  type LeaseState,
  mayGetShadow,
} from '../lease/lease-state.ts';
import type { LeaseStore } from '../lease/lease-store.ts';
import type { ActingRight, HeardWord, RightStatus, RightWatcher, ShadowClaimant } from './acting-right.ts';
import { OutputDoubt } from './output-doubt.ts';
import { superseded, suspendedElsewhere } from './refusals.ts';
import { actedLastElsewhere, actsElsewhere } from './right-refusals.ts';

const RETRY_MS = 100;
const RETRY_MS_MAX = 2000;
const TICK_MS = 50;
/** Nothing else asks the store while a VM is in sync. */
const PROBE_MS = 2000;
/** For so long after the question something leaves by what is on record: a call to the store takes no longer. */
const CONFIRMED_MS = 3000;
/** An epoch's number means nothing to the record: it is told when all that ever left is acknowledged. */
const SETTLED_EPOCH = 0;

export interface RightOptions {
  readonly store: LeaseStore;
  readonly vm: string;
  readonly host: string;
  readonly policy: LeasePolicy;
  readonly clock: Clock;
  /** CLOCK_BOOTTIME. */
  readonly bootTimeMs: () => number;
  readonly log: Logger;
  readonly failpoints: Failpoints;
}

export interface Beginning {
  /** Nothing of the VM is left here, so that a shadow that may take over has more. */
  readonly fromScratch: boolean;
  /** What the guest writes to its disks is in images of the host that acts: what others have of them is older. */
  readonly writesDisks?: boolean;
  /** Whatever others may have, as a person knows better. */
  readonly anew: boolean;
  /** The VM is that of a host that acts alone and may be gone: told once, when its right is waited for to end. */
  readonly onWait?: ((holder: string) => void) | undefined;
  /** It cannot be found out who acts: told once, with the reason, and waited for. */
  readonly onStoreAway?: ((why: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

type Granted = 'promote' | 'anew' | 'goes-on';

const GRANTS: Partial<Record<VmEffect['kind'], Granted>> = {
  promote: 'promote',
  'start-cold': 'anew',
  'resume-vm': 'goes-on',
};

const MODES: Record<LeasePhase, RightStatus['mode']> = {
  idle: 'ended',
  shadow: 'ended',
  claiming: 'claiming',
  alone: 'alone',
  closing: 'alone',
  joining: 'alone',
  'in-sync': 'in-sync',
  stopping: 'ended',
};

/** `promote`: the shadow goes on. `anew`: whoever acted alone is gone, and what the shadow has is too old. */
export interface TakenOver {
  readonly right: RecordedRight;
  readonly how: 'promote' | 'anew';
}

/**
 * The right to act as a VM, as it is written down in a store that all hosts share. What it comes to is decided in
 * lease-decision.ts; this says what happens here, and waits for what is decided.
 */
export class RecordedRight implements ActingRight {
  readonly #options: RightOptions;
  readonly #driver: LeaseDriver;
  readonly #waiters = new ConditionWaiters();
  /** How the VM may act here, once that is decided. */
  #granted: Granted | undefined;
  #isSuperseded = false;
  /** What the store said last, and how often it has. */
  #stored: StoredLease | undefined;
  #readings = 0;
  /** Shadows that were given up: what was begun for them before must not come late. */
  #givenUp = 0;
  /** The holder before that had to be another host. */
  #follows: string | undefined;
  #watcher: RightWatcher | undefined;
  #storeAwaySinceMs: number | undefined;
  /** What a call of the store failed with last. */
  #storeTrouble: string | undefined;
  readonly #doubt = new OutputDoubt();
  #isConfirming = false;
  /** While what waits leaves by what is on record. */
  #confirmedUntilMs: number | undefined;

  private constructor(
    options: RightOptions,
    { from, mayStartCold }: { from: LeaseState; mayStartCold: boolean },
  ) {
    const { store, vm, host: self, policy, clock, bootTimeMs, log, failpoints } = options;
    this.#options = options;
    this.#driver = new LeaseDriver({
      ...{ store: guarded(store, failpoints), vm, self, policy, clock, bootTimeMs, from, mayStartCold },
      ...{ tickEveryMs: TICK_MS, probeEveryMs: PROBE_MS },
      carryOut: ({ kind }) => this.#carryOut(kind),
      onStep: (fact) => this.#note(fact),
      log: (message, facts) => {
        this.#storeTrouble = String(facts.error);
        log.warn(message, facts);
      },
    });
  }

  /**
   * A VM is started on this host.
   * @throws KeeperError KEEPER_SUPERSEDED: another host acts as it, or is about to; KEEPER_SUSPENDED_ELSEWHERE;
   * KEEPER_DISKS_ELSEWHERE; the signal's reason
   */
  static async begin(options: RightOptions, beginning: Beginning): Promise<RecordedRight> {
    const { fromScratch, anew, signal, onWait, writesDisks = false } = beginning;
    const { host } = options;
    const stored = await readUntilAnswered(options, beginning);
    const { record } = stored;
    // Once this host is on record nobody knows any more where the newest disks are.
    if (writesDisks && !anew && record !== undefined && record.holder !== host)
      throw actedLastElsewhere(options, { ...stored, record });
    const isHeir = !fromScratch && record?.holder === host && record.mode !== 'ended';
    const from = isHeir
      ? heirLease(host, { mayStartCold: false })
      : initialLease(host, { mayStartCold: true });
    const right = new RecordedRight(options, { from, mayStartCold: !isHeir });
    try {
      if (isHeir) right.#driver.report({ kind: 'tick' });
      else {
        if (anew && record !== undefined)
          right.#driver.report({ kind: 'peer-proven-dead', token: record.token });
        right.#driver.report({ kind: 'start-wanted' });
      }
      const outcome = await right.#decided({ mayWait: true, onWait, signal });
      if (outcome === 'refused') throw right.#refusal();
      right.#follows = record?.holder === host ? undefined : record?.holder;
      return right;
    } catch (cause) {
      await right[Symbol.asyncDispose]();
      throw cause;
    }
  }

  /**
   * The shadow with this copy is to act. Undefined when it may not: the one that acts has gone on without it, or somebody
   * else has taken over. `mayStartCold`: when who acted alone is gone for good, the VM may begin anew here.
   */
  static async takeOver(
    options: RightOptions,
    { copy }: Pick<ShadowClaimant, 'copy'>,
    { mayStartCold = false, signal }: { mayStartCold?: boolean; signal?: AbortSignal } = {},
  ): Promise<TakenOver | undefined> {
    const from = initialLease(options.host, { mayStartCold });
    const right = new RecordedRight(options, { from, mayStartCold });
    try {
      right.#driver.report({ kind: 'copy-begun', copy, token: 0 });
      right.#driver.report({ kind: 'peer-lost' });
      const outcome = await right.#decided({ mayWait: mayStartCold, onWait: undefined, signal });
      if (outcome === 'promote' || outcome === 'anew') return { right, how: outcome };
    } catch (cause) {
      await right[Symbol.asyncDispose]();
      throw cause;
    }
    await right[Symbol.asyncDispose]();
    return undefined;
  }

  get token(): number {
    return this.#driver.state.token;
  }

  get suspended(): number | undefined {
    const { savedState, suspended } = this.#driver.state;
    return savedState === 'gone' ? undefined : suspended;
  }

  get hasEnded(): boolean {
    return this.#driver.state.body === 'paused';
  }

  /** The other host that acted before, if one did: what lies here of the VM is older. */
  get follows(): string | undefined {
    return this.#follows;
  }

  status(): RightStatus {
    const { phase, token } = this.#driver.state;
    const awayMs = this.#storeAwaySinceMs;
    return {
      token,
      mode: MODES[phase],
      storeAwayMs: awayMs === undefined ? null : this.#options.clock.nowMs() - awayMs,
      endsInMs: this.#driver.endsInMs ?? null,
      outputWaitsMs: this.#doubt.waitsMs(this.#options.bootTimeMs()),
    };
  }

  mayRelease(what: 'acknowledged' | 'unknown'): boolean {
    const right = this.#driver.outputRight;
    if (right === 'everything' || (right === 'acknowledged' && what === 'acknowledged')) return true;
    if (what === 'unknown' || !this.#driver.isInDoubt) return false;
    const nowMs = this.#options.bootTimeMs();
    if (this.#confirmedUntilMs !== undefined && nowMs < this.#confirmedUntilMs) return true;
    this.#doubt.begin(nowMs);
    return false;
  }

  noteHeard({ copy }: Pick<ShadowClaimant, 'copy'>, { sentMs, silenceMinMs }: HeardWord): void {
    const forMs = heardForMs(silenceMinMs, this.#options.policy);
    this.#driver.report({ kind: 'shadow-heard', copy, untilMs: sentMs + forMs });
    // It hears what is sent now, but the way there and back is longer than its word is good for.
    if (this.#driver.isInDoubt && this.#doubt.mayAsk(sentMs) && !this.#isConfirming)
      void this.#confirmInstead({ copy });
  }

  watch(watcher: RightWatcher): void {
    this.#watcher = watcher;
    if (this.#isSuperseded) watcher.onSuperseded();
    else if (this.hasEnded) watcher.onEnded();
    if (this.#storeAwaySinceMs !== undefined) watcher.onStore('away', this.#storeTrouble);
  }

  async regained(signal?: AbortSignal): Promise<void> {
    await this.#waiters.until(() => !this.hasEnded, signal);
  }

  async arm({ host, copy }: ShadowClaimant, signal?: AbortSignal): Promise<void> {
    const state = () => this.#driver.state;
    const givenUp = this.#givenUp;
    await this.#waiters.until(() => mayGetShadow(state()) || this.#isSuperseded, signal);
    if (!this.#isSuperseded && this.#givenUp === givenUp) {
      // All output waits since before the first epoch of this copy, which was acknowledged.
      this.#driver.report({ kind: 'shadow-ready', host, copy, epoch: SETTLED_EPOCH });
      this.#driver.report({ kind: 'epoch-acknowledged', copy, epoch: SETTLED_EPOCH });
      await this.#waiters.until(() => state().phase !== 'joining', signal);
      const { phase, isPeerLost } = state();
      if (phase === 'in-sync' && state().copy === copy && !isPeerLost) return;
    }
    throw superseded(this.#options.vm, 'another host, or this one without the shadow,');
  }

  dismissed({ copy }: Pick<ShadowClaimant, 'copy'>): void {
    this.#driver.report({ kind: 'shadow-dismissed', copy });
  }

  async goAlone(signal?: AbortSignal): Promise<'granted' | 'superseded'> {
    this.#givenUp += 1;
    this.#driver.report({ kind: 'peer-lost' });
    await this.#waiters.until(() => this.#driver.state.phase === 'alone' || this.#isSuperseded, signal);
    return this.#isSuperseded ? 'superseded' : 'granted';
  }

  async yieldThenGoAlone(graceMs: number, signal?: AbortSignal): Promise<'granted' | 'superseded'> {
    const readings = this.#readings;
    // The driver reads now and then, and at once when the store says that something is new.
    await this.#waiters.until(() => this.#readings > readings || this.#isSuperseded, signal);
    await this.isFollowed(graceMs);
    return await this.goAlone(signal);
  }

  async isFollowed(graceMs: number, signal?: AbortSignal): Promise<boolean> {
    const grace = Promise.withResolvers<void>();
    const cancel = this.#options.clock.after(graceMs, grace.resolve);
    const superseded = this.#waiters.until(() => this.#isSuperseded, signal);
    await Promise.race([grace.promise, superseded]).finally(cancel);
    return this.#isSuperseded;
  }

  async confirm(): Promise<void> {
    const { store, vm, host } = this.#options;
    const { record } = await store.read(vm);
    // What is under way may have been carried out.
    const { token, pending } = this.#driver.state;
    const isOurs = record?.token === token || record?.token === pending?.record.token;
    if (record?.holder !== host || !isOurs) throw superseded(vm, record?.holder ?? 'nobody');
  }

  /**
   * What waits leaves once when the record names this host. The shadow had not taken over when it was read, and has all that it
   * acknowledged: at worst that leaves twice, late by no more than the answer. Nothing follows for what is acknowledged later.
   */
  async #confirmInstead({ copy }: Pick<ShadowClaimant, 'copy'>): Promise<void> {
    this.#isConfirming = true;
    const askedMs = this.#options.bootTimeMs();
    try {
      await this.confirm();
    } catch {
      // Asked again with the next word.
      return;
    } finally {
      this.#isConfirming = false;
    }
    const nowMs = this.#options.bootTimeMs();
    const isUsed = this.#driver.isInDoubt && this.#driver.state.copy === copy;
    // Who stood still meanwhile got an answer of long ago.
    if (!isUsed || nowMs >= askedMs + CONFIRMED_MS) return;
    const waitedMs = this.#doubt.end(nowMs, 'record');
    this.#confirmedUntilMs = askedMs + CONFIRMED_MS;
    this.#watcher?.onSure();
    this.#confirmedUntilMs = undefined;
    if (waitedMs !== undefined) this.#watcher?.onDoubt('waited', waitedMs);
  }

  #followDoubt(fact: LeaseFact): void {
    const nowMs = this.#options.bootTimeMs();
    if (this.#driver.isInDoubt) {
      const waitsMs = this.#doubt.goOn(nowMs);
      if (waitsMs !== undefined) this.#watcher?.onDoubt('waits', waitsMs);
      return;
    }
    const leaves = this.#driver.outputRight !== 'nothing' && this.#doubt.waitsMs(nowMs) !== null;
    const waitedMs = this.#doubt.end(nowMs, fact.kind === 'shadow-heard' ? 'word' : 'right');
    if (leaves) this.#watcher?.onSure();
    if (leaves && waitedMs !== undefined) this.#watcher?.onDoubt('waited', waitedMs);
  }

  async holder(): Promise<string | undefined> {
    const { store, vm } = this.#options;
    try {
      return (await store.read(vm)).record?.holder;
    } catch (cause) {
      if (cause instanceof LeaseError) return undefined;
      throw cause;
    }
  }

  async suspend(signal?: AbortSignal): Promise<'granted' | 'superseded'> {
    this.#givenUp += 1;
    this.#driver.report({ kind: 'suspending' });
    try {
      const isSaid = () => this.#driver.state.savedState !== 'kept';
      await this.#waiters.until(() => isSaid() || this.#isSuperseded, signal);
    } catch (cause) {
      this.forgetState();
      throw cause;
    }
    return this.#isSuperseded || this.suspended === undefined ? 'superseded' : 'granted';
  }

  forgetState(): void {
    this.#driver.report({ kind: 'state-gone' });
  }

  async release({ keepsState = false, signal }: Parameters<ActingRight['release']>[0] = {}): Promise<void> {
    this.#driver.report({ kind: 'vm-ended', keepsState });
    await this.#waiters.until(() => !this.#driver.state.isEnding, signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#driver[Symbol.asyncDispose]();
    await this.#options.store[Symbol.asyncDispose]();
  }

  /** Why another host than this one may act. */
  #refusal(): KeeperError {
    const { vm, host } = this.#options;
    const { record, isHeld = false } = this.#stored ?? {};
    if (record !== undefined && !isHeld && isSuspendedElsewhere(record, host))
      return suspendedElsewhere(vm, record.holder);
    return actsElsewhere(this.#options, record);
  }

  /** Waits until it is decided whether, and how, the VM may act here. */
  async #decided({ mayWait, onWait, signal }: Deciding): Promise<Granted | 'refused'> {
    let firstHold: number | undefined;
    for (let readings = this.#readings; ; readings = this.#readings) {
      const isReadAgain = () => this.#readings > readings && this.#isUndecided;
      await this.#waiters.until(
        () => this.#granted !== undefined || this.#isSuperseded || isReadAgain(),
        signal,
      );
      if (this.#granted !== undefined) return this.#granted;
      if (this.#isSuperseded || !mayWait || this.#stored === undefined) return 'refused';
      const { record, isHeld, holdRevision } = this.#stored;
      const mayEnd = record?.mode === 'alone' && record.holder !== this.#options.host && isHeld;
      // One that is renewed belongs to somebody who lives.
      if (!mayEnd || holdRevision !== (firstHold ?? holdRevision)) return 'refused';
      if (firstHold === undefined) onWait?.(record.holder);
      firstHold ??= holdRevision;
    }
  }

  /** Nothing is under way, and what was read gave no right. */
  get #isUndecided(): boolean {
    const { phase, pending } = this.#driver.state;
    return pending === undefined && (phase === 'idle' || phase === 'shadow');
  }

  #carryOut(kind: VmEffect['kind']): void {
    const isFirst = this.#granted === undefined;
    this.#granted ??= GRANTS[kind];
    switch (kind) {
      case 'suspend-vm':
        this.#watcher?.onEnded();
        break;
      case 'resume-vm':
        if (!isFirst) this.#watcher?.onRegained();
        break;
      case 'stop-vm':
        this.#isSuperseded = true;
        this.#watcher?.onSuperseded();
        break;
    }
  }

  #note(fact: LeaseFact): void {
    if (fact.kind === 'read') {
      this.#stored = fact.stored;
      this.#readings += 1;
    }
    const { isStoreAway } = this.#driver.state;
    if (isStoreAway !== (this.#storeAwaySinceMs !== undefined)) {
      this.#storeAwaySinceMs = isStoreAway ? this.#options.clock.nowMs() : undefined;
      if (!isStoreAway) this.#storeTrouble = undefined;
      this.#watcher?.onStore(isStoreAway ? 'away' : 'back', this.#storeTrouble);
    }
    this.#followDoubt(fact);
    this.#waiters.check();
  }
}

interface Deciding {
  readonly mayWait: boolean;
  readonly onWait: Beginning['onWait'];
  readonly signal: AbortSignal | undefined;
}

/** The same store, with the steps at which a test may have its way. */
function guarded(store: LeaseStore, failpoints: Failpoints): LeaseStore {
  return {
    read: (vm) => store.read(vm),
    swap: async (vm, write) => {
      await failpoints.hit('right.before-swap');
      const outcome = await store.swap(vm, write);
      await failpoints.hit('right.after-swap');
      return outcome;
    },
    renew: async (vm, renewal) => {
      await failpoints.hit('right.before-renewal');
      return await store.renew(vm, renewal);
    },
    watch: (vm, changed) => store.watch(vm, changed),
    [Symbol.asyncDispose]: () => store[Symbol.asyncDispose](),
  };
}

/** What there is to begin with. @throws the signal's reason */
async function readUntilAnswered(
  { store, vm, clock, log }: RightOptions,
  { signal, onStoreAway = () => {} }: Pick<Beginning, 'signal' | 'onStoreAway'>,
): Promise<StoredLease> {
  for (let retryMs = RETRY_MS; ; retryMs = Math.min(retryMs * 2, RETRY_MS_MAX)) {
    signal?.throwIfAborted();
    try {
      return await store.read(vm);
    } catch (cause) {
      if (!(cause instanceof LeaseError)) throw cause;
      log.warn('it is not known who acts; asking again', { vm, ...errorFacts(cause), retryMs });
      if (retryMs === RETRY_MS) onStoreAway(cause.message);
    }
    await clock.sleep(retryMs, signal);
  }
}
