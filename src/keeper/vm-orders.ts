import type { ConditionWaiters } from '../base/condition-waiters.ts';
import { type Trace, traceFacts } from '../base/trace.ts';
import { disksOf, servedNames } from '../config/spec-disks.ts';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { FailoverReport } from '../control/failover-report.ts';
import type { StopOrder } from '../control/keeper-control.ts';
import type { SnapshotOrder, SnapshotReport } from '../control/snapshot-report.ts';
import type { StreamClient } from '../net/stream-end.ts';
import { checkMachine, checkSpec } from '../qemu/protectability.ts';
import {
  goesOnElsewhere,
  isActing,
  isEnding,
  type LossReason,
  type ProtectionEvent,
  type ProtectionState,
} from '../shadow/protection.ts';
import { admit } from './admission.ts';
import { testFailover, testRemotely } from './failover-test.ts';
import type { Instance } from './instance.ts';
import type { KeeperOptions } from './keeper-options.ts';
import type { MemoryArrival } from './memory-arrival.ts';
import { askToPowerOff } from './power-button.ts';
import type { RecordPatience } from './record-patience.ts';
import {
  cannotSave,
  disksWouldBeWritten,
  endUnrecorded,
  isStopping,
  leftToShadow,
  noPlaceToSave,
  notProtected,
  ofOneHost,
  promoteFailed,
  saveFailed,
  shadowIsLent,
  superseded,
} from './refusals.ts';
import type { ServedDisks } from './served-disks.ts';
import type { ShadowLife } from './shadow-life.ts';
import { withShadow } from './shadow-wish.ts';
import { takeRemoteSnapshot, takeSnapshot, takeStandingSnapshot } from './snapshot-taking.ts';
import type { SavedKind, StateKeeping } from './state-keeping.ts';
import type { VmDisks } from './vm-disks.ts';
import type { VmEnd } from './vm-ending.ts';

type Facts = Readonly<Record<string, unknown>>;

/** What orders need of the keeper that carries them out. */
export interface OrderedVm {
  readonly options: KeeperOptions;
  readonly disks: VmDisks;
  readonly waiters: ConditionWaiters;
  readonly shadow: ShadowLife;
  readonly memory: MemoryArrival;
  readonly states: StateKeeping;
  readonly finished: Promise<VmEnd>;
  readonly patience: RecordPatience;
  readonly state: () => ProtectionState;
  readonly primary: () => Instance | undefined;
  readonly agent: () => StreamClient | undefined;
  /** The guest has answered on its agent channel. */
  readonly hasAgent: () => boolean;
  /** Starts a QEMU like any standby, for a test. */
  readonly startTest: (signal: AbortSignal, disks: ServedDisks) => Promise<Instance>;
  readonly dispatch: (event: ProtectionEvent) => void;
  /** The request that what follows is done for, as long as it is. */
  readonly onBehalf: (trace: Trace | undefined) => void;
  readonly losePrimary: (reason: LossReason, facts: Facts) => void;
  readonly publish: (kind: string, facts?: Facts) => void;
  /** Writes down what is wished for now, for the next keeper. */
  readonly record: () => void;
}

/** What people and programs can ask of a VM: each order is checked first, and changes nothing when it is refused. */
export class VmOrders {
  readonly #vm: OrderedVm;
  /** One that looks at the shadow at a time. */
  #lentFor: 'test' | 'snapshot' | undefined;
  #writing: { readonly path: string; readonly abort: AbortController } | undefined;

  constructor(vm: OrderedVm) {
    this.#vm = vm;
  }

  async promote({ trace }: { trace?: Trace | undefined } = {}): Promise<void> {
    const { waiters, shadow, state } = this.#vm;
    if (state().phase !== 'protected' || shadow.pipeline === undefined)
      throw notProtected(this.#name, state().phase);
    // The old QEMU ends before the shadow acts: not while nobody could say that it may.
    await this.#vm.options.remote?.right.confirm();
    const { promotions, restarts } = state();
    const isPromoted = () => state().promotions > promotions;
    this.#vm.onBehalf(trace);
    this.#vm.losePrimary('planned', traceFacts(trace));
    await waiters.until(() => isPromoted() || state().restarts > restarts || isEnding(state()));
    if (!isEnding(state())) this.#vm.onBehalf(undefined);
    if (state().stopReason === 'superseded') throw superseded(this.#name, 'another host');
    if (!isPromoted()) throw promoteFailed(this.#name);
  }

  async place({ host }: { readonly host: string | null }): Promise<void> {
    const { options, shadow, state } = this.#vm;
    const { remote } = options;
    if (remote === undefined) throw ofOneHost(this.#name);
    remote.places.prefer(host ?? undefined);
    const current = shadow.current?.describe().host;
    if (host === null || current === host || !state().wanted) return;
    if (current !== undefined) this.#vm.publish('shadow-lost', { error: `it is wanted on ${host}` });
    // As if nobody had wanted one for a moment: whatever is there or being made goes, and the next try waits no longer.
    this.#vm.dispatch({ kind: 'unprotect-requested' });
    this.#vm.dispatch({ kind: 'protect-requested' });
  }

  async protect(): Promise<void> {
    if (this.#vm.state().wanted) return;
    const spec = withShadow(this.#vm.options.spec, true);
    await this.#assertWholeInEpochs((await this.#acting()).machine, spec);
    admit(spec, { runs: true });
    this.#wish('protect-requested');
  }

  async unprotect(): Promise<void> {
    const { waiters, state } = this.#vm;
    if (state().wanted) this.#wish('unprotect-requested');
    // Not in the middle of a takeover, which is not waited for.
    await waiters.until(() => state().dropping === 0 || isEnding(state()));
    if (state().dropping > 0) await this.#endedHere();
  }

  async testFailover(): Promise<FailoverReport> {
    const { options, shadow, state, startTest, disks } = this.#vm;
    const { spec, clock, failpoints } = options;
    if (this.#lentFor !== undefined) throw shadowIsLent(this.#name, this.#lentFor);
    if (state().phase !== 'protected') throw notProtected(this.#name, state().phase);
    if (disksOf(spec).some(({ id, disk }) => !disk.readOnly && !disks.names.includes(id)))
      throw disksWouldBeWritten(this.#name);
    const isHere = shadow.session !== undefined;
    // Where it is elsewhere, its keeper looks whether there is room for another QEMU.
    if (isHere) admit(withShadow(spec, true), { runs: true, besidesBytes: spec.memoryBytes });
    this.#lentFor = 'test';
    try {
      const expectsAgent = this.#vm.hasAgent();
      const report = await (isHere
        ? shadow.lend((loan) =>
            testFailover({
              ...{ loan, clock, failpoints, expectsAgent, disks: disks.tried(), startStandby: startTest },
            }),
          )
        : shadow.lendRemote((loan) => testRemotely({ loan, expectsAgent })));
      this.#vm.publish('failover-test', { ...report });
      return report;
    } finally {
      this.#lentFor = undefined;
    }
  }

  async snapshot(order: SnapshotOrder): Promise<SnapshotReport> {
    const { options, shadow, state, states, publish } = this.#vm;
    if (this.#lentFor !== undefined) throw shadowIsLent(this.#name, this.#lentFor);
    if (hasWritableDisk(options.spec)) throw cannotSave(this.#name, 'its disks are no part of a snapshot');
    const isProtected = state().phase === 'protected';
    if (!isProtected && !order.pause) throw notProtected(this.#name, state().phase);
    this.#lentFor = 'snapshot';
    const abort = new AbortController();
    this.#writing = { path: order.path, abort };
    const taking = { options, token: options.runDirectory.token, publish, calledOff: abort.signal };
    try {
      if (isProtected && shadow.session !== undefined)
        return await shadow.lend((loan) => takeSnapshot(order, { loan, ...taking }));
      if (isProtected)
        return await shadow.lendRemote((loan) => takeRemoteSnapshot(order, { loan, ...taking }));
      await this.#assertSavable();
      return await takeStandingSnapshot(order, { epoch: shadow.committed, states, ...taking });
    } finally {
      this.#lentFor = undefined;
      this.#writing = undefined;
    }
  }

  callOffSnapshot({ path }: { readonly path: string }): void {
    if (this.#writing?.path === path)
      this.#writing.abort.abort(saveFailed(this.#name, 'the snapshot was called off'));
  }

  async stop({ graceful, termination, trace }: StopOrder): Promise<void> {
    const { options } = this.#vm;
    this.#vm.onBehalf(trace);
    // Who does not want to wait for the guest does not want to wait for its memory either, unless it is said.
    const order = termination ?? (graceful ? options.spec.termination : 'remove');
    if (order !== 'remove') await this.#save(order === 'suspend' ? 'suspended' : 'snapshot');
    if (order !== 'suspend') {
      if (graceful) await this.#powerOff(trace);
      this.#vm.patience.begin({ isForced: !graceful });
      this.#vm.dispatch({ kind: 'stop-requested' });
    }
    const { reason, isOnRecord } = await this.#endedHere();
    if (goesOnElsewhere(reason)) throw superseded(this.#name, 'another host');
    if (isOnRecord === false) throw endUnrecorded(this.#name, this.#vm.shadow.mayGoOnAt);
  }

  async #save(kind: SavedKind): Promise<void> {
    const { options, states } = this.#vm;
    if (options.savedIn === undefined) throw noPlaceToSave(this.#name, kind);
    // It stands still until it is on record where its state is: not while nobody could write that down.
    await options.remote?.right.confirm();
    await this.#assertSavable();
    // A disk that went on meanwhile would not fit the memory of a snapshot.
    if (kind === 'snapshot' && hasWritableDisk(options.spec))
      throw cannotSave(this.#name, 'its disks are no part of a snapshot');
    try {
      await states.save(kind);
    } catch (cause) {
      if (isEnding(this.#vm.state())) await this.#endedHere();
      throw cause;
    }
  }

  /** @throws KeeperError KEEPER_DISK_FAILED: it has ended here because it could not do what it was asked to */
  async #endedHere(): Promise<VmEnd> {
    const end = await this.#vm.finished;
    const { leftTo, isOnRecord } = end;
    if (leftTo !== undefined) throw leftToShadow(this.#name, { host: leftTo, acts: isOnRecord !== false });
    return end;
  }

  /** All of its memory is there, and nothing that a state cannot hold. */
  async #assertSavable(): Promise<void> {
    const { machine } = await this.#acting();
    await this.#vm.memory.whole();
    try {
      await this.#assertWholeInEpochs(machine, withShadow(this.#vm.options.spec, true));
    } catch (cause) {
      throw cannotSave(this.#name, cause);
    }
  }

  /** Its disks are served as it was started. @throws QemuError QEMU_UNPROTECTABLE */
  async #assertWholeInEpochs(machine: Instance['machine'], spec: VmSpec): Promise<void> {
    const served = servedNames(this.#vm.options.spec);
    checkSpec(spec, served);
    await checkMachine(machine, spec, served);
  }

  async #powerOff(trace: Trace | undefined): Promise<void> {
    const { options, waiters, state, primary, agent } = this.#vm;
    await askToPowerOff({
      clock: options.clock,
      deadlineMs: options.spec.shutdownTimeoutMs,
      // In the middle of a takeover there is nobody to ask: it takes milliseconds.
      acts: waiters.until(() => isActing(state()) || isEnding(state())),
      ask: () => primary()?.machine.powerdown({ trace }),
      agent: agent(),
      off: waiters.until(() => isEnding(state())),
    });
  }

  /** The QEMU that acts, once a takeover under way has come to its end. */
  async #acting(): Promise<Instance> {
    const { waiters, state, primary } = this.#vm;
    await waiters.until(() => isActing(state()) || isEnding(state()));
    const instance = primary();
    if (instance === undefined || isEnding(state())) throw isStopping(this.#name);
    return instance;
  }

  #wish(kind: 'protect-requested' | 'unprotect-requested'): void {
    this.#vm.dispatch({ kind });
    this.#vm.record();
    this.#vm.publish(kind);
  }

  get #name(): string {
    return this.#vm.options.spec.name;
  }
}

function hasWritableDisk(spec: VmSpec): boolean {
  return disksOf(spec).some(({ disk }) => !disk.readOnly);
}
