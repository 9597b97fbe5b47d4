import type { Clock } from '../base/clock.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { disksOf } from '../config/spec-disks.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { ConsoleSession, KeeperControl, StopOrder } from '../control/keeper-control.ts';
import { KeeperError } from '../control/keeper-error.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { VmMetrics } from '../control/vm-metrics.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { EpochStats } from '../replication/epoch-stats.ts';
import { INITIAL_PROTECTION } from '../shadow/protection.ts';
import type { PeerPulse } from './peer-pulse.ts';
import { noConsole } from './refusals.ts';
import type { ShadowEnd, ShadowKeeper } from './shadow-keeper.ts';
import type { ShadowSession } from './shadow-session.ts';
import { TakeoverStats } from './takeover-stats.ts';
import { describeVm, type KnownVm } from './vm-description.ts';
import type { VmHost } from './vm-host.ts';
import { measureVm } from './vm-measures.ts';

/** For the VM to do without its shadow: it may have to ask who acts. */
const LEAVE_DEADLINE_MS = 15_000;

export interface ShadowControlOptions {
  readonly spec: VmSpec;
  readonly host: VmHost;
  readonly clock: Clock;
  /** Of the VM that acts, when this shadow was begun. */
  readonly token: number;
  /** The host that the VM acts on. */
  readonly peer: string;
  readonly session: ShadowSession;
  readonly shadow: ShadowKeeper;
  readonly pulse: PeerPulse;
  /** Resolves when the shadow is kept no longer. */
  readonly ended: Promise<ShadowEnd>;
}

/** What can be asked of the keeper of a shadow. All that concerns the VM is for the host that it acts on. */
export class ShadowControl implements KeeperControl {
  readonly #options: ShadowControlOptions;
  readonly #startedMs: number;
  readonly #epochs = new EpochStats();
  readonly #takeovers = new TakeoverStats();

  constructor(options: ShadowControlOptions) {
    this.#options = options;
    this.#startedMs = options.clock.nowMs();
  }

  status(): VmStatus {
    const { spec, session, shadow, peer } = this.#options;
    const holdsAll = session.image.committed > 0;
    const copiedShare = holdsAll ? 1 : Math.min(1, (shadow.copiedPages * PAGE_BYTES) / spec.memoryBytes);
    const status = describeVm(this.#known());
    const { number: instance, pid } = session.standby;
    const disks = status.disks.map((disk, index) => ({ ...disk, ...this.#warmed(index) }));
    return {
      ...status,
      disks,
      actsOn: peer,
      mayTakeOver: shadow.isInSync,
      shadow: { instance, pid, copiedShare },
    };
  }

  #warmed(index: number): { readonly warmedBytes?: number } {
    const { spec, session } = this.#options;
    const warmedBytes = session.image.disks?.warmedBytes(disksOf(spec)[index]?.id ?? '');
    return warmedBytes === undefined ? {} : { warmedBytes };
  }

  metrics(): VmMetrics {
    return measureVm(this.#known());
  }

  eventsSince(): readonly VmEvent[] {
    return [];
  }

  onEvent(): () => void {
    return () => {};
  }

  telemetry(): Promise<never> {
    return this.#refuse();
  }

  limits(): Promise<never> {
    return this.#refuse();
  }

  samples(): never {
    throw this.#refusal();
  }

  promote(): Promise<void> {
    return this.#refuse();
  }

  protect(): Promise<void> {
    return this.#refuse();
  }

  unprotect(): Promise<void> {
    return this.#refuse();
  }

  snapshot(): Promise<never> {
    return this.#refuse();
  }

  callOffSnapshot(): void {}

  testFailover(): Promise<never> {
    return this.#refuse();
  }

  /**
   * Ends the shadow, which promises not to act. The VM looks for another one, also on this host. `graceful`: only if the
   * VM says that it can do without, as it may be dead without anybody having noticed.
   * @throws KeeperError KEEPER_SHADOW_NEEDED
   */
  async stop({ graceful }: StopOrder): Promise<void> {
    const { shadow, ended, clock } = this.#options;
    if (!graceful) {
      shadow.leave({ kind: 'dismissed' });
      await ended;
      return;
    }
    const late = Promise.withResolvers<undefined>();
    const cancel = clock.after(LEAVE_DEADLINE_MS, () => late.resolve(undefined));
    await shadow.askToLeave().catch(() => {});
    const end = await Promise.race([ended, late.promise]).finally(cancel);
    if (end?.kind !== 'dismissed' && end?.kind !== 'useless') throw this.#isNeeded(end !== undefined);
  }

  place(): Promise<void> {
    return this.#refuse();
  }

  openConsole(): ConsoleSession {
    throw noConsole(this.#options.spec.name);
  }

  #known(): KnownVm {
    const { spec, host, clock, token, session } = this.#options;
    return {
      ...{ ...host, spec, token, primary: undefined, shadow: session, committed: session.image.committed },
      state: { ...INITIAL_PROTECTION, phase: 'shadowing' },
      upMs: clock.nowMs() - this.#startedMs,
      epochs: this.#epochs,
      guestClock: { errorMs: null, answeredAgoMs: null, corrections: 0 },
      links: [],
      takeovers: this.#takeovers,
      paths: this.#options.pulse.status(),
    };
  }

  #isNeeded(isTakenOver: boolean): KeeperError {
    const { spec, peer } = this.#options;
    const why = isTakenOver ? 'the VM goes on from it' : `${peer} does not say that it can do without`;
    return new KeeperError('KEEPER_SHADOW_NEEDED', `the shadow of ${spec.name} stays: ${why}`, {
      hint: `Look after the VM on ${peer}. With --force the shadow is ended all the same, and with it the VM if that is lost.`,
      facts: { vm: spec.name, host: peer },
    });
  }

  #refuse(): Promise<never> {
    return Promise.reject(this.#refusal());
  }

  #refusal(): KeeperError {
    const { spec, peer } = this.#options;
    const message = `${spec.name} acts on ${peer}, and this host keeps its shadow`;
    return new KeeperError('KEEPER_IS_SHADOW', message, {
      hint: `Give the command on ${peer}.`,
      facts: { vm: spec.name, host: peer },
    });
  }
}
