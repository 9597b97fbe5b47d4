import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { DelayedTask } from '../base/delayed-task.ts';
import { messageOf } from '../base/errors.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import { type EpochId, FIRST_EPOCH, NO_EPOCH, nextEpoch } from '../epoch/epoch-id.ts';
import type { EpochPipeline } from '../replication/epoch-pipeline.ts';
import { EpochStats } from '../replication/epoch-stats.ts';
import type { Instance } from './instance.ts';
import { type Loan, Loans } from './loans.ts';
import { RemoteShadow } from './remote-shadow.ts';
import type { BeginOptions, Shadow } from './shadow.ts';
import { ShadowSession } from './shadow-session.ts';

export interface ShadowLifeOptions {
  readonly spec: VmSpec;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  /** What has to be put away before there is room for another QEMU. */
  readonly beforeStart: () => Promise<void>;
  /** Begins a new one; `onLost` tells when it cannot be relied on any more. */
  readonly open: (signal: AbortSignal, onLost: (error: string) => void) => Promise<Shadow>;
  /** The QEMU that a new shadow is to stand behind. */
  readonly primary: () => Instance | undefined;
  /** Output is held from this call on. */
  readonly beginWith: () => EpochsOf;
  readonly onStarting: () => void;
  /** It holds a state of the VM, and all output waits for it. */
  readonly onInSync: () => void;
  readonly onStartFailed: (cause: unknown) => void;
  readonly onLost: (error: string) => void;
  /** There is another shadow, or none any more. */
  readonly onChange: () => void;
}

/** What epochs need of the VM and of the one who watches it. */
export type EpochsOf = Pick<
  BeginOptions,
  | 'links'
  | 'participants'
  | 'disks'
  | 'beforeRelease'
  | 'mayContinue'
  | 'hasPanicked'
  | 'onPause'
  | 'onPrimaryLost'
>;

/** A shadow in sync that somebody may look at. A takeover waits until it is not in use. */
export type ShadowLoan = Loan<ShadowSession>;

/**
 * The shadow of one VM, from its start to its loss or promotion, and the next one after it. Epochs are counted over
 * all of them. What follows from what happens to it is decided elsewhere.
 */
export class ShadowLife {
  readonly stats = new EpochStats();
  readonly #options: ShadowLifeOptions;
  readonly #start: DelayedTask;
  #current: Shadow | undefined;
  readonly #loans = new Loans();
  #nextEpoch: EpochId = FIRST_EPOCH;
  #committed: EpochId = NO_EPOCH;
  #mayGoOnAt: string | undefined;
  #leftTo: string | undefined;

  constructor(options: ShadowLifeOptions) {
    this.#options = options;
    this.#start = new DelayedTask(options.clock);
  }

  /** The shadow in the making or in sync. */
  get current(): Shadow | undefined {
    return this.#current;
  }

  /** It, if it is on this host. */
  get session(): ShadowSession | undefined {
    return this.#current instanceof ShadowSession ? this.#current : undefined;
  }

  get pipeline(): EpochPipeline | undefined {
    return this.#current?.pipeline;
  }

  /** Newest epoch that any shadow of this VM has held whole. */
  get committed(): EpochId {
    return this.#committed;
  }

  get nextEpoch(): EpochId {
    return this.#nextEpoch;
  }

  /** The host of one that was ended, and could neither be told so nor kept from taking over. */
  get mayGoOnAt(): string | undefined {
    return this.#mayGoOnAt;
  }

  /** The host of one that the VM was handed over to, whether it has said so or not. */
  get leftTo(): string | undefined {
    const shadow = this.#current;
    const isLeft = shadow instanceof RemoteShadow && shadow.isHandedOver;
    return isLeft ? shadow.describe().host : this.#leftTo;
  }

  /** The VM goes on from this epoch, which another keeper has committed. */
  inherit(epoch: EpochId): void {
    this.#committed = epoch;
    this.#nextEpoch = nextEpoch(epoch);
  }

  /** No epoch up to this one is counted any more: disks have a higher one from another time. */
  countAbove(epoch: EpochId): void {
    if (epoch >= this.#nextEpoch) this.#nextEpoch = nextEpoch(epoch);
  }

  startLater(afterMs: number): void {
    this.#start.schedule(afterMs, async (signal) => {
      try {
        await this.#begin(signal);
      } catch (cause) {
        if (!signal.aborted) this.#options.onStartFailed(cause);
      }
    });
  }

  /**
   * Lends the shadow in sync to `task`, which must not change it. The loan is called back, by its signal, as soon as
   * somebody needs the shadow; a takeover waits until it is not in use, everything else for the end of the task.
   */
  async lend<Result>(task: (loan: ShadowLoan) => Promise<Result>): Promise<Result> {
    const { session } = this;
    assert(session !== undefined, 'there is a shadow to lend');
    return await this.#loans.lend(session, task);
  }

  /** The same of one on another host: `task` may ask its keeper for something, which a takeover there calls off by itself. */
  async lendRemote<Result>(task: (loan: Loan<RemoteShadow>) => Promise<Result>): Promise<Result> {
    const shadow = this.#current;
    assert(shadow instanceof RemoteShadow, 'there is a shadow on another host');
    return await this.#loans.lend(shadow, task);
  }

  /** The VM is about to be fenced: from this moment nothing is sealed or committed. `halt` has to be waited for. */
  freeze(): void {
    this.pipeline?.freeze();
    this.#loans.callBack();
  }

  /** Makes no further epoch, and resolves when nobody looks at the shadow any more. */
  async halt(): Promise<void> {
    this.#loans.callBack();
    await this.#loans.unused();
    await this.#current?.halt();
  }

  /** Ends the shadow, or its start, wherever it has come to. */
  async drop(): Promise<void> {
    this.#loans.callBack();
    await this.#loans.ended();
    await this.#start.cancel();
    await this.#options.beforeStart();
    const shadow = this.#current;
    this.#leftTo = this.leftTo;
    this.#current = undefined;
    if (shadow === undefined) return;
    await shadow.halt();
    this.#countOn(shadow);
    await shadow[Symbol.asyncDispose]();
    if (shadow instanceof RemoteShadow && shadow.mayTakeOver) this.#mayGoOnAt = shadow.describe().host;
    this.#options.onChange();
  }

  /** The shadow acts from now on: it is no shadow any more. */
  handOver(): ShadowSession {
    const { session } = this;
    assert(session !== undefined, 'there is a shadow that was promoted');
    this.#current = undefined;
    this.#countOn(session);
    return session;
  }

  async #begin(signal: AbortSignal): Promise<void> {
    const { spec, clock, failpoints, ...options } = this.#options;
    const primary = options.primary();
    assert(primary !== undefined, 'a shadow stands behind a primary');
    await options.beforeStart();
    let shadow: Shadow | undefined;
    shadow = await options.open(signal, (error) => this.#lose(shadow, error));
    this.#current = shadow;
    options.onChange();
    options.onStarting();
    await shadow.fill({ primary, signal });
    signal.throwIfAborted();
    let isArming = false;
    shadow.begin({
      ...options.beginWith(),
      clock,
      failpoints,
      stats: this.stats,
      policy: spec.shadow,
      primary,
      firstEpoch: this.#nextEpoch,
      onCommit: (epoch) => {
        this.#committed = epoch;
        if (isArming) return;
        isArming = true;
        this.#arm(shadow);
      },
      onShadowLost: (cause) => this.#lose(shadow, messageOf(cause)),
    });
  }

  /** In the same turn of the event loop where nobody has to be asked: until then nothing would be taken over. */
  #arm(shadow: Shadow): void {
    const onInSync = () => {
      if (this.#current === shadow) this.#options.onInSync();
    };
    if (shadow instanceof ShadowSession) onInSync();
    else shadow.arm().then(onInSync, (cause) => this.#lose(shadow, messageOf(cause)));
  }

  #lose(shadow: Shadow | undefined, error: string): void {
    if (shadow !== undefined && this.#current === shadow) this.#options.onLost(error);
  }

  /** No number is used twice, also not that of an epoch which was never committed. */
  #countOn({ pipeline }: Shadow): void {
    this.#nextEpoch = nextEpoch(pipeline?.openEpoch ?? this.#nextEpoch);
  }
}
