import { randomBytes } from 'node:crypto';
import { type DemoGuest, ensureDemoGuest } from '../../guest/build.ts';
import type { Clock } from '../base/clock.ts';
import { seededRandom } from '../base/seeded-random.ts';
import { runRoot } from '../control/run-paths.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { orAborted } from './abortable-wait.ts';
import { DemoNetwork } from './demo-network.ts';
import { type DemoReport, demoReport, type Failover, killToReplyMs } from './demo-report.ts';
import { DemoVm, eventMs } from './demo-vm.ts';
import type { RequestTiming } from './load-generator.ts';
import { RedisLoad } from './redis-load.ts';

const ROUND_TRIPS = 150;
const WARM_UP_ROUND_TRIPS = 25;
const ROUND_TRIP_GAP_MS = 20;
/** The kill falls somewhere into this time after the load runs on a protected VM. */
const KILL_AFTER_MS = { min: 300, max: 1500 };
/** Of a time that crosses the control socket as whole milliseconds. */
const EVENT_TIME_ERROR_MS = 1;
const NONCE_KEY = 'understudy:nonce';
/** Kills beyond those that were asked for, as long as none gave a time. */
const MORE_KILLS_MAX = 5;

export interface DemoOptions {
  readonly kills: number;
  readonly clients: number;
  /** Decides the moments of the kills. */
  readonly seed: number;
  readonly clock: Clock;
  /** Told what is being done, whenever it takes longer than a second. */
  readonly onProgress: (step: string) => void;
  readonly signal?: AbortSignal | undefined;
  /** By default TAP where this user may use it, else passt. */
  readonly network?: 'tap' | 'passt' | undefined;
  /** Leave the protected VM running. */
  readonly keep?: boolean;
}

export interface DemoOutcome {
  readonly report: DemoReport;
  /** The VM and its network, when they were left running. */
  readonly kept: { readonly vm: string; readonly network: DemoNetwork } | null;
}

/**
 * Runs Redis in a VM, kills the VM's QEMU again and again while clients write, and sees whether anything was lost. Real
 * time is spent; nothing is left behind, also when the signal is aborted, unless the VM is to be kept.
 * @throws UnderstudyError: what kept it from running; the signal's reason
 */
export async function runDemo(options: DemoOptions): Promise<DemoOutcome> {
  const { onProgress, signal, keep = false } = options;
  const name = `demo-${process.pid}`;
  // Where the VM's sockets cannot lie is said now, not after the minutes that the guest may take to build.
  runRoot();
  const guest = await ensureDemoGuest({ onProgress, signal });
  await using opened = new AsyncDisposableStack();
  const network = opened.use(await DemoNetwork.open({ name, kind: options.network, onProgress }));
  const demo = new Demo(options, { name, guest, network });
  const unprotected = await demo.measureUnprotected();
  onProgress('Starting the guest again, this time with a shadow');
  const vm = opened.use(await demo.startVm());
  const report = await demo.measureProtected(vm, unprotected);
  if (!keep) return { report, kept: null };
  vm.keep();
  // The namespace stays, the rest is for the stack to let go of.
  await vm[Symbol.asyncDispose]();
  opened.move();
  return { report, kept: { vm: name, network } };
}

class Demo {
  readonly #options: DemoOptions;
  readonly #setting: { readonly name: string; readonly guest: DemoGuest; readonly network: DemoNetwork };
  readonly #random: () => number;

  constructor(options: DemoOptions, setting: { name: string; guest: DemoGuest; network: DemoNetwork }) {
    this.#options = options;
    this.#setting = setting;
    this.#random = seededRandom(options.seed);
  }

  async startVm(spec: Readonly<Record<string, unknown>> = {}): Promise<DemoVm> {
    const { clock, signal } = this.#options;
    try {
      return await DemoVm.start({ ...this.#setting, clock, signal, spec });
    } catch (thrown) {
      throw this.#setting.network.explained(thrown);
    }
  }

  /** The same guest in a run of its own, so that no shadow that is being filled disturbs the measurement. */
  async measureUnprotected(): Promise<RequestTiming[]> {
    const { onProgress } = this.#options;
    onProgress('Starting the guest without a shadow, for comparison');
    await using _vm = await this.startVm({ shadow: { enabled: false } });
    await using load = await this.#startLoad();
    await load.connect(1);
    onProgress('Measuring round trips without a shadow');
    return await this.#roundTrips(load);
  }

  async measureProtected(vm: DemoVm, unprotected: readonly RequestTiming[]): Promise<DemoReport> {
    const { onProgress, clients, kills } = this.#options;
    await using load = await this.#startLoad();
    onProgress('Copying the guest to its shadow');
    let { seq } = await vm.untilProtected();
    await this.#wait(load.connect(clients));
    onProgress('Measuring round trips with a shadow');
    const protectedTimings = await this.#roundTrips(load);
    const before = await this.#lifeOf(load, { nonce: randomBytes(16).toString('hex') });
    const statuses: VmStatus[] = [];
    const failovers: Failover[] = [];
    await this.#wait(load.begin());
    for (let kill = 1; kill <= kills || mayKillForTiming(failovers, kills); kill += 1) {
      onProgress(
        kill <= kills
          ? `Killing QEMU under load, ${kill} of ${kills}`
          : 'Killing QEMU once more: no reply so far had to wait for the shadow',
      );
      await this.#pauseBeforeKill();
      statuses.push(await vm.status());
      const failover = await this.#failOver(vm, { load, after: seq });
      failovers.push(failover);
      seq = failover.protectedSeq;
    }
    await this.#pauseBeforeKill();
    const last = await vm.status();
    const { connections } = await this.#wait(load.end());
    onProgress('Reading every acknowledged write back');
    const verification = await this.#wait(load.verify());
    const guestClockErrorMs = await this.#wait(load.guestClockErrorMs());
    const after = await this.#lifeOf(load);
    return demoReport({
      accel: last.accel,
      qemu: last.qemuVersion,
      epochs: last.epochs.commits,
      pauses: [...statuses, last].map(({ epochs }) => epochs),
      unprotected,
      protected: protectedTimings,
      failovers,
      ...verification,
      connections,
      guestRebooted: last.restarts > 0 || after !== before,
      guestClockErrorMs,
    });
  }

  async #failOver(
    vm: DemoVm,
    { load, after }: { load: RedisLoad; after: number },
  ): Promise<Failover & { readonly protectedSeq: number }> {
    const { clock } = this.#options;
    const { killMs } = await vm.killPrimary();
    const lost = await vm.waitFor(['fencing'], { after });
    const back = await vm.waitFor(['promoted', 'restarted-cold'], { after: lost.seq });
    const again = await vm.untilProtected({ after: back.seq });
    const timings = await this.#wait(load.openAt(killMs));
    const discoveredMs = eventMs(lost, clock) + EVENT_TIME_ERROR_MS;
    const { promoteMs } = back.facts;
    return {
      promoteMs: typeof promoteMs === 'number' ? promoteMs : null,
      killToReplyMs: killToReplyMs(timings, { killMs, discoveredMs }),
      protectedSeq: again.seq,
    };
  }

  #startLoad(): Promise<RedisLoad> {
    const { clock, signal } = this.#options;
    return RedisLoad.start({ ...this.#setting.network.redis, clock, signal });
  }

  async #roundTrips(load: RedisLoad): Promise<RequestTiming[]> {
    const requests = WARM_UP_ROUND_TRIPS + ROUND_TRIPS;
    const timings = await this.#wait(load.paced({ requests, gapMs: ROUND_TRIP_GAP_MS }));
    return timings.slice(WARM_UP_ROUND_TRIPS);
  }

  /**
   * What no reboot survives: a key that exists in memory only, which is set when `nonce` is given, and the number that
   * Redis gave itself when it started.
   */
  async #lifeOf(load: RedisLoad, { nonce }: { nonce?: string } = {}): Promise<string> {
    if (nonce !== undefined) await this.#wait(load.command('SET', NONCE_KEY, nonce));
    const kept = await this.#wait(load.command('GET', NONCE_KEY));
    const info = String(await this.#wait(load.command('INFO', 'server')));
    return `${kept} ${/^run_id:(\w+)/m.exec(info)?.[1]}`;
  }

  #pauseBeforeKill(): Promise<void> {
    const { clock, signal } = this.#options;
    const { min, max } = KILL_AFTER_MS;
    return clock.sleep(min + this.#random() * (max - min), signal);
  }

  #wait<Result>(work: Promise<Result>): Promise<Result> {
    return orAborted(work, this.#options.signal);
  }
}

/**
 * A kill between the cut of an epoch and its commit lets that epoch answer every open request: about one in four. When
 * all kills were such ones, nothing is known yet of how long a client waits.
 */
function mayKillForTiming(failovers: readonly Failover[], kills: number): boolean {
  const isTimed = failovers.some(({ killToReplyMs }) => killToReplyMs !== null);
  return !isTimed && failovers.length < kills + MORE_KILLS_MAX;
}
