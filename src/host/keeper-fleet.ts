import { rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import type { RequestContext } from '../api/host-service.ts';
import type { LodgerPage } from '../api/resources.ts';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { Trace } from '../base/trace.ts';
import type { Termination } from '../config/vm-spec-schema.ts';
import { ControlClient } from '../control/control-client.ts';
import type { FailoverReport } from '../control/failover-report.ts';
import { KEEPER_END_DEADLINE_MS, type KeeperEnd, readEnd } from '../control/keeper-end.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { type KeeperFigures, KeeperScrape } from '../control/keeper-scrape.ts';
import type { LimitsOrder, LimitsStatus } from '../control/limits-status.ts';
import { bootId, waitForEnd } from '../control/process-identity.ts';
import { controlSocketOf, type FoundVm, type GivenSpec, RunDirectory } from '../control/run-directory.ts';
import type { SnapshotOrder, SnapshotReport } from '../control/snapshot-report.ts';
import type { VmEvent } from '../control/vm-event.ts';
import type { VmStatus } from '../control/vm-status.ts';
import type { Phase } from '../shadow/protection.ts';
import type { FedSample } from '../telemetry/sample-feed.ts';
import type { StartKeeper } from './keeper-starters.ts';
import { KeeperWatch } from './keeper-watch.ts';
import type { KeeperSight } from './reconcile.ts';
import { SampleWatch } from './sample-watch.ts';
import type { RunOrder } from './tenant-specs.ts';
import type { DeclaredVm } from './vm-inventory.ts';

export interface KeeperFleetOptions {
  /** Starts a keeper; resolves when its VM runs. @throws what kept it from starting */
  readonly startKeeper: StartKeeper;
  /** Where keepers leave how they ended. */
  readonly endDirectory: string;
  /** Where keepers save the state of their VMs. */
  readonly stateDirectory: string;
  readonly clock: Clock;
  /** Number of the last event that was taken from this keeper. */
  readonly lastTaken: (vm: string, keeper: string) => number;
  readonly onEvent: (event: VmEvent, keeper: string) => void;
  readonly onSample: (fed: FedSample) => void;
  /** Something about this VM is not as it was. */
  readonly onChange: (vm: string) => void;
}

/** What the keeper of one VM looks like from here. */
export interface FleetSight {
  readonly keeper: KeeperSight;
  /** Undefined while it does not answer, and when there is none. */
  readonly phase: Phase | undefined;
  readonly pid: number | undefined;
  /** Of the QEMU that acts or acted last, as far as its keeper wrote it down. */
  readonly token: number | undefined;
  readonly shadowWanted: boolean | undefined;
  /** The host that the VM acts on, where its keeper here keeps the shadow. */
  readonly actsOn: string | undefined;
  /** A keeper that was killed left something to go on from: a shadow in sync, or a QEMU that stands still. */
  readonly leftVm: boolean;
}

export const NOTHING: FleetSight = {
  keeper: 'none',
  phase: undefined,
  pid: undefined,
  token: undefined,
  shadowWanted: undefined,
  actsOn: undefined,
  leftVm: false,
};

/**
 * The keepers of this host's VMs. They are processes of their own and outlive this one: closing the fleet only stops
 * listening to them.
 */
export class KeeperFleet implements Disposable {
  readonly #options: KeeperFleetOptions;
  readonly #watches = new Map<string, KeeperWatch>();
  readonly #samples = new Map<string, SampleWatch>();
  readonly #scrape: KeeperScrape;
  #disposed = false;

  constructor(options: KeeperFleetOptions) {
    this.#options = options;
    this.#scrape = new KeeperScrape(options);
  }

  /** Looks at all VMs of `names`, and begins to listen to keepers that were not known. */
  look(names: readonly string[]): Map<string, FleetSight> {
    const found = new Map(RunDirectory.list().map((vm) => [vm.name, vm]));
    return new Map(names.map((name) => [name, this.#sightOf(name, found.get(name))]));
  }

  /** The same for one VM, without a look at the others. */
  lookAt(name: string): FleetSight {
    return this.#sightOf(name, RunDirectory.find(name));
  }

  /** How the last keeper of a VM ended, if it ended in this boot and could say so. */
  endOf(name: string): KeeperEnd | undefined {
    const end = readEnd(this.#endPath(name));
    return end?.bootId === bootId() ? end : undefined;
  }

  forgetEnd(name: string): void {
    rmSync(this.#endPath(name), { force: true });
  }

  /**
   * The specification that a killed keeper was given, where the next one goes on with what it left: what is declared
   * since then waits for a start that somebody asks for.
   */
  leftSpec(name: string): GivenSpec | undefined {
    return RunDirectory.leftSpec(name);
  }

  /**
   * Starts a keeper, with tokens above `tokenAbove` and the specification that was `left`, if one was; resolves when its
   * VM runs. @throws what kept it from starting
   */
  async start(
    { name, spec, directory, shadowWanted, startFrom, directories, cpuShareMax }: DeclaredVm & RunOrder,
    { tokenAbove, left, trace }: RequestContext & { tokenAbove: number; left: GivenSpec | undefined },
  ): Promise<void> {
    const { text, source } = left ?? { text: spec, source: join(directory, `${name}.yaml`) };
    const wishes = {
      stateDirectory: this.#options.stateDirectory,
      endPath: this.#endPath(name),
      shadowWanted: shadowWanted ?? undefined,
      startFrom: startFrom ?? undefined,
      ...{ tokenAbove, trace, cpuShareMax },
      directories: directories && [...directories],
    };
    await this.#options.startKeeper({ name, spec: text, source, wishes });
  }

  /** Resolves when nothing is left of the VM. @throws KeeperError KEEPER_NO_ANSWER, … */
  async stop(
    name: string,
    { graceful, termination, trace }: RequestContext & { graceful: boolean; termination: Termination | null },
  ): Promise<void> {
    const { clock } = this.#options;
    const keeper = this.#watches.get(name)?.keeper;
    const order = { graceful, ...(termination !== null && { termination }) };
    await this.#onBehalf(name, trace, (control, context) => control.stop({ ...order, ...context }));
    // The answer comes before the keeper has put everything away.
    if (keeper !== undefined) await waitForEnd(keeper, { deadlineMs: KEEPER_END_DEADLINE_MS, clock });
  }

  async promote(name: string, { trace }: RequestContext = {}): Promise<void> {
    await this.#onBehalf(name, trace, (control, context) => control.promote(context));
  }

  /** What the keepers that are known measure; undefined where one does not answer in time, or in another form. */
  metrics(): Promise<KeeperFigures> {
    return this.#scrape.take([...this.#watches.keys()]);
  }

  async limit(name: string, order: LimitsOrder): Promise<LimitsStatus> {
    using control = await this.#connect(name);
    return await control.limits(order);
  }

  async protect(name: string, { trace }: RequestContext = {}): Promise<void> {
    await this.#onBehalf(name, trace, (control, context) => control.protect(context));
  }

  async unprotect(name: string, { trace }: RequestContext = {}): Promise<void> {
    await this.#onBehalf(name, trace, (control, context) => control.unprotect(context));
  }

  async testFailover(name: string): Promise<FailoverReport> {
    using control = await this.#connect(name);
    return await control.testFailover();
  }

  /** Keepers on this machine of VMs that are not `declared`: shadows of others, and what they have become. */
  async strangers(declared: (name: string) => boolean): Promise<LodgerPage['lodgers']> {
    const found = RunDirectory.list().filter(({ name, keeper }) => keeper === 'alive' && !declared(name));
    return await Promise.all(
      found.map(async ({ name }) => {
        const status = await this.#statusOf(name);
        const state = status?.phase ?? 'no-answer';
        return { name, state, actsOn: status?.actsOn ?? null, memoryBytes: status?.memoryBytes ?? null };
      }),
    );
  }

  async snapshot(name: string, order: SnapshotOrder): Promise<SnapshotReport> {
    using control = await this.#connect(name);
    return await control.snapshot(order);
  }

  /** Joins the serial console. @throws KeeperError KEEPER_NO_CONSOLE, KEEPER_NOT_RUNNING, KEEPER_NO_ANSWER */
  async console(name: string): Promise<Duplex> {
    const control = await this.#connect(name);
    try {
      return await control.console();
    } catch (thrown) {
      control[Symbol.dispose]();
      throw thrown;
    }
  }

  /** Clears away what a keeper left that was killed or failed. */
  async sweep(name: string): Promise<void> {
    await RunDirectory.sweep(name, { clock: this.#options.clock });
  }

  [Symbol.dispose](): void {
    this.#disposed = true;
    for (const watch of [...this.#watches.values(), ...this.#samples.values()]) watch[Symbol.dispose]();
    this.#watches.clear();
    this.#samples.clear();
  }

  /** One that does not answer must not keep the others from being listed. */
  async #statusOf(name: string): Promise<VmStatus | undefined> {
    try {
      using control = await this.#connect(name);
      return await control.status();
    } catch {
      return undefined;
    }
  }

  #connect(name: string): Promise<ControlClient> {
    return ControlClient.connect(controlSocketOf(name), { vm: name, clock: this.#options.clock });
  }

  /** A keeper of an older version knows no trace. It refuses such a request before it does anything, and is asked again. */
  async #onBehalf(
    name: string,
    trace: Trace | undefined,
    act: (control: ControlClient, context: RequestContext) => Promise<void>,
  ): Promise<void> {
    try {
      using control = await this.#connect(name);
      await act(control, { trace });
    } catch (thrown) {
      const refused = thrown instanceof KeeperError && thrown.code === 'KEEPER_REQUEST_INVALID';
      if (trace === undefined || !refused) throw thrown;
      using control = await this.#connect(name);
      await act(control, {});
    }
  }

  #endPath(name: string): string {
    return join(this.#options.endDirectory, `${name}.json`);
  }

  #sightOf(name: string, found: FoundVm | undefined): FleetSight {
    if (found === undefined) return NOTHING;
    const { keeper, record, orphan } = found;
    const token = record?.bootId === bootId() ? record.token : undefined;
    if (keeper === 'lost') {
      const leftVm = (record !== undefined && record.shadow !== null) || orphan !== undefined;
      return { ...NOTHING, keeper: record?.failed ? 'failed' : 'lost', token, leftVm };
    }
    // A record that cannot be read is being replaced by a keeper that starts.
    const watch = record === undefined ? undefined : this.#watch(name, record.keeper);
    return {
      keeper: 'alive',
      phase: watch?.phase,
      pid: record?.keeper.pid,
      token,
      shadowWanted: watch?.shadowWanted,
      actsOn: watch?.actsOn,
      leftVm: false,
    };
  }

  #watch(name: string, keeper: KeeperWatch['keeper']): KeeperWatch {
    assert(!this.#disposed, 'a fleet that is disposed of looks no more');
    const known = this.#watches.get(name);
    if (known?.keeper.pid === keeper.pid && known.keeper.startTicks === keeper.startTicks) return known;
    known?.[Symbol.dispose]();
    this.#samples.get(name)?.[Symbol.dispose]();
    const { clock, onEvent, onChange, onSample, lastTaken } = this.#options;
    const identity = `${bootId()}/${keeper.pid}/${keeper.startTicks}`;
    const watch = new KeeperWatch({
      vm: name,
      keeper,
      since: lastTaken(name, identity),
      clock,
      onEvent: (event) => onEvent(event, identity),
      onChange: () => onChange(name),
      onEnd: () => {
        if (this.#watches.get(name) === watch) this.#forget(name);
        onChange(name);
      },
    });
    this.#watches.set(name, watch);
    this.#samples.set(name, new SampleWatch({ vm: name, clock, onSample }));
    return watch;
  }

  #forget(name: string): void {
    this.#watches.delete(name);
    this.#samples.get(name)?.[Symbol.dispose]();
    this.#samples.delete(name);
  }
}
