import { readFileSync } from 'node:fs';
import { assert, InvariantViolation } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { Failpoints } from '../base/failpoint.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import {
  type EpochEvent,
  type EpochPolicy,
  type EpochState,
  initialEpochState,
  stepEpoch,
} from '../epoch/epoch-machine.ts';
import type { EpochParticipant } from '../epoch/participant.ts';
import type { DirtyLog } from '../memory/dirty-log.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { countPages, mergeRuns, type PageRun, piecesOf } from '../memory/page-runs.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { Machine } from '../qemu/machine.ts';
import { QemuError } from '../qemu/qemu-error.ts';
import type { EpochSlot } from './epoch-slot.ts';
import type { EpochStats } from './epoch-stats.ts';
import { type EpochStore, freeSlot } from './epoch-store.ts';
import type { EpochDiskSource } from './epoch-writes.ts';

/** The VM that acts, as far as its epochs are concerned. */
export interface PipelineSource {
  readonly machine: Pick<Machine, 'wake' | 'stopAndSave' | 'cont' | 'standstillMs'>;
  readonly memory: GuestMemory;
  readonly dirtyLog: DirtyLog;
  readonly links: readonly GuestLink[];
  /** Who else takes part in epochs, e.g. the VM's own events. */
  readonly participants: readonly EpochParticipant[];
  readonly disks: readonly EpochDiskSource[];
  /** File that QEMU writes its device state to. */
  readonly deviceStatePath: string;
  /** False once the VM stopped by itself (powered off, panicked): then it must not be continued. */
  readonly mayContinue: () => boolean;
  /** A state with a panic in it is never committed: the shadow goes on from before. */
  readonly hasPanicked: () => boolean;
}

export interface PipelineOptions {
  readonly source: PipelineSource;
  readonly store: EpochStore;
  readonly policy: EpochPolicy;
  readonly firstEpoch: EpochId;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
  readonly stats: EpochStats;
  /** Undefined, or resolves, when what the shadow holds may be relied on by everybody. Rejects: it never will. */
  readonly beforeRelease?: ((epoch: EpochId) => Promise<void> | undefined) | undefined;
  /** After the commit and the release of what waited for it. */
  readonly onCommit: (epoch: EpochId) => void;
  /** The primary did not answer as a living one does. The pipeline has halted. */
  readonly onPrimaryLost: (cause: unknown) => void;
  /** Epochs cannot be staged, e.g. for lack of room. The pipeline has halted; the VM runs on. */
  readonly onShadowLost: (cause: unknown) => void;
  readonly onPause: (pausedMs: number) => void;
}

/** Failures to stage in a row after which the shadow is given up. */
const STAGE_FAILURES_MAX = 3;
/** A device state is written in about so much time; a scan that takes longer is better made once. */
const SCAN_TWICE_MS_MAX = 0.6;
const SCAN_SMOOTHING = 0.1;
/** How often written pages are counted between cuts, and which share of time that may cost. */
const PEEK_INTERVAL_MS = 25;
const PEEK_SHARE = 0.02;
/** So many dirty pages take about a millisecond to copy; more of them are copied before the pause. */
const COPY_AHEAD_PAGES_MIN = 1024;
const COPY_AHEAD_CHUNK_PAGES = 256;

/** Carries out the epochs of one VM against one shadow: cut, stage, acknowledge, release. */
export class EpochPipeline {
  readonly #options: PipelineOptions;
  #state: EpochState;
  #cancelWake: () => void = () => {};
  #cancelPeek: () => void = () => {};
  /** Until the VM runs again: one cut at a time. */
  #cutting: Promise<void> | undefined;
  /** Epochs are acknowledged in the order of their cuts, while later ones may be cut already. */
  #acknowledging: Promise<void> = Promise.resolve();
  #stageFailures = 0;
  readonly #startedMs: number;
  #pausedMs = 0;
  /** Of the epoch before: the best guess of what the next one holds. */
  #lastDirtyPages = 0;
  /** What a look for dirty pages takes: it grows with the VM's memory. */
  #scanMs = 0;
  #frozen = false;
  /** When the newest committed epoch was cut; undefined before the first commit. */
  #committedCutMs: number | undefined;

  constructor(options: PipelineOptions) {
    this.#options = options;
    this.#startedMs = options.clock.nowMs();
    this.#state = initialEpochState(options.policy, this.#startedMs, options.firstEpoch);
  }

  /** Output waits for commits from here on; the first epoch is cut at once and makes the shadow's copy exact. */
  start(): void {
    for (const link of this.#options.source.links) link.holdOutput();
    this.demand();
    this.#peekLater(PEEK_INTERVAL_MS);
  }

  /** Some link holds its first output since the cut. */
  noteHeldOutput(): void {
    if (!this.#state.outputHeld) this.#step({ kind: 'output-held', nowMs: this.#nowMs() });
  }

  /** Cuts as soon as possible, whatever the pause budget says. */
  demand(): void {
    this.#step({ kind: 'demand', nowMs: this.#nowMs() });
  }

  /**
   * The VM is about to be fenced off: from this moment nothing is sealed and no further epoch is committed. An epoch
   * that is sealed after its links were closed lacks what they held. `halt` still has to be waited for.
   */
  freeze(): void {
    this.#frozen = true;
    this.#endCuts();
  }

  /**
   * Makes no further cut and resolves when one that is under way has come to its end. What the shadow has not
   * acknowledged by then it never will: it joins the open epoch.
   */
  async halt(): Promise<void> {
    this.#endCuts();
    await this.#cutting;
    await this.#acknowledging;
    this.#step({ kind: 'abandon' });
  }

  get openEpoch(): EpochId {
    return this.#state.open;
  }

  /** Undefined, or resolves when the VM runs again, if it is being cut into: who can wait had better not disturb it. */
  get cutting(): Promise<void> | undefined {
    return this.#cutting;
  }

  /** Share of time paused since this pipeline started. */
  get pauseShare(): number {
    const elapsedMs = this.#nowMs() - this.#startedMs;
    return elapsedMs > 0 ? this.#pausedMs / elapsedMs : 0;
  }

  /** Milliseconds since the newest committed epoch was cut: what a loss would set the VM back by. Undefined before the first commit. */
  get lagMs(): number | undefined {
    return this.#committedCutMs === undefined ? undefined : this.#nowMs() - this.#committedCutMs;
  }

  #endCuts(): void {
    this.#step({ kind: 'halt' });
    this.#cancelWake();
    this.#cancelPeek();
  }

  #nowMs(): number {
    return this.#options.clock.nowMs();
  }

  #step(event: EpochEvent): void {
    const { next, effects } = stepEpoch(this.#state, event, this.#options.policy);
    this.#state = next;
    for (const effect of effects) {
      switch (effect.kind) {
        case 'wake':
          this.#cancelWake();
          this.#cancelWake = this.#options.clock.after(Math.max(0, effect.atMs - this.#nowMs()), () =>
            this.#step({ kind: 'tick', nowMs: this.#nowMs() }),
          );
          break;
        case 'commit':
          for (const participant of this.#participants()) participant.commit(effect.epoch);
          break;
        case 'abort':
          for (const participant of this.#participants()) participant.abort(effect.epoch);
          break;
        case 'cut':
          this.#cancelWake();
          assert(this.#cutting === undefined, 'one cut at a time');
          this.#cutting = this.#cut(effect.epoch);
          break;
      }
    }
  }

  #participants(): readonly EpochParticipant[] {
    const { links, participants, disks } = this.#options.source;
    return [...links, ...participants, ...disks];
  }

  async #cut(epoch: EpochId): Promise<void> {
    const { store, failpoints } = this.#options;
    let slot: EpochSlot;
    try {
      // While all are in use the shadow is slower than the VM writes, so the VM waits (back-pressure).
      slot = await freeSlot(store);
      slot.begin(epoch);
    } catch (cause) {
      this.#cutting = undefined;
      this.#lose(this.#options.onShadowLost, cause);
      return;
    }
    try {
      await failpoints.hit('cut.before-pause');
      await this.#cutInto(slot, epoch);
    } catch (cause) {
      this.#cutting = undefined;
      this.#lose(this.#options.onPrimaryLost, cause);
    }
  }

  async #cutInto(slot: EpochSlot, epoch: EpochId): Promise<void> {
    const { source, failpoints } = this.#options;
    const staging: Staging = { runs: [], failure: undefined };
    const expectedPages = Math.max(this.#state.dirtyPages, this.#lastDirtyPages);
    if (source.dirtyLog.atomic && expectedPages >= COPY_AHEAD_PAGES_MIN) {
      await this.#copyAhead(slot, staging);
    }
    const roomWasMade = source.links.map((link) => link.leaveUnread()).includes(true);
    // A QEMU that has just sent something is awake; the threads of an idle one take a millisecond to wake up, which
    // need not be one in which its guest stands still. An answer also says that it has used the room it was given.
    if (!this.#state.outputHeld || roomWasMade) await source.machine.wake();
    if (this.#frozen) return;
    const startMs = this.#nowMs();
    for (const link of source.links) link.pauseInput();
    for (const disk of source.disks) disk.letThrough();
    const stopMs = await this.#stage(slot, staging);
    if (this.#frozen || source.hasPanicked()) {
      // Who froze them, or watches the guest and was told before it stood still, ends these epochs.
      this.#cutting = undefined;
      this.#step({ kind: 'halt' });
      return;
    }
    for (const participant of this.#participants()) participant.seal(epoch);
    this.#step({ kind: 'sealed', epoch });
    await failpoints.hit('cut.before-resume');
    // QEMU takes its time to continue. The epoch is completed meanwhile, so that what it holds leaves sooner.
    const resumed = this.#resume(startMs, stopMs);
    if (this.#finish(slot, epoch, staging)) this.#acknowledgeInOrder(slot, epoch, startMs);
    const written = mergeRuns(staging.runs);
    this.#lastDirtyPages = countPages(written);
    this.#options.stats.dirtyPages.add(this.#lastDirtyPages);
    this.#options.stats.onWritten?.(written);
    await resumed;
  }

  /** The critical section: what happens in here adds to the time that the VM stands still. Returns what the stop took. */
  async #stage(slot: EpochSlot, staging: Staging): Promise<number> {
    const { source, failpoints } = this.#options;
    const startMs = this.#nowMs();
    const { stopped, saved } = source.machine.stopAndSave(source.deviceStatePath);
    await stopped;
    const stopMs = this.#nowMs() - startMs;
    await failpoints.hit('cut.after-pause');
    await failpoints.hit('cut.before-scan');
    // While QEMU writes its device state, most of memory is taken …
    if (this.#mayScanTwice()) this.#captureDirty(slot, staging);
    await failpoints.hit('cut.after-scan');
    await saved.catch((cause) => {
      if (!isRefusal(cause)) throw cause;
      staging.failure = cause;
    });
    await failpoints.hit('cut.after-save');
    // … and at last what the saving itself has written.
    this.#captureDirty(slot, staging);
    // Only now: QEMU uses the room that this makes to go on with its queues, also while the VM stands still.
    for (const link of source.links) link.drainOutput();
    await failpoints.hit('cut.after-stage');
    return stopMs;
  }

  /**
   * Takes most of a large epoch while the VM still runs, so that it need not stand still for it. What it writes
   * meanwhile is dirty again and taken a second time.
   */
  async #copyAhead(slot: EpochSlot, staging: Staging): Promise<void> {
    const runs = this.#collect(staging);
    for (const piece of piecesOf(runs, COPY_AHEAD_CHUNK_PAGES)) {
      this.#capture(slot, [piece], staging);
      // Frames want to be passed on meanwhile.
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  /** Where the dirty log allows it, and where a scan is so quick that a second one costs less than it gains. */
  #mayScanTwice(): boolean {
    return this.#options.source.dirtyLog.atomic && this.#scanMs < SCAN_TWICE_MS_MAX;
  }

  #captureDirty(slot: EpochSlot, staging: Staging): void {
    this.#capture(slot, this.#collect(staging), staging);
  }

  #collect(staging: Staging): readonly PageRun[] {
    const startMs = this.#nowMs();
    const runs = this.#options.source.dirtyLog.collect();
    this.#scanMs += SCAN_SMOOTHING * (this.#nowMs() - startMs - this.#scanMs);
    staging.runs = staging.runs.concat(runs);
    return runs;
  }

  /** For lack of room what is dirty stays noted in `staging`. */
  #capture(slot: EpochSlot, runs: readonly PageRun[], staging: Staging): void {
    try {
      if (staging.failure === undefined) slot.capture(this.#options.source.memory, runs);
    } catch (cause) {
      staging.failure = cause;
    }
  }

  /** Sends `cont` at once; resolves when the VM runs and takes input again. */
  async #resume(startMs: number, stopMs: number): Promise<void> {
    const { source, onPause, failpoints } = this.#options;
    if (source.mayContinue()) await source.machine.cont();
    for (const link of source.links) {
      link.readOn();
      link.resumeInput();
    }
    // The answer may have waited for us while we completed the epoch: QEMU knows when the guest ran again.
    const standstillMs = Math.max(0, source.machine.standstillMs ?? Number.POSITIVE_INFINITY);
    const pausedMs = Math.min(this.#nowMs() - startMs, stopMs + standstillMs);
    this.#pausedMs += pausedMs;
    this.#options.stats.pauseMs.add(pausedMs);
    onPause(pausedMs);
    await failpoints.hit('cut.after-resume');
    this.#cutting = undefined;
    this.#step({ kind: 'resumed', pausedMs, nowMs: this.#nowMs() });
  }

  /**
   * Makes the staged epoch whole; false if that failed. In one go: QEMU's file with the device state is written
   * again at the next cut, and only the newest epoch can still be joined to the one after it.
   */
  #finish(slot: EpochSlot, epoch: EpochId, staging: Staging): boolean {
    const { source } = this.#options;
    try {
      if (staging.failure !== undefined) throw staging.failure;
      slot.finish({
        deviceState: readFileSync(source.deviceStatePath),
        outputs: source.links.map((link) => ({ link: link.name, items: link.sealedOutput(epoch) })),
        disks: source.disks.map((disk) => ({ disk: disk.name, writes: disk.sealedWrites(epoch) })),
      });
      return true;
    } catch (cause) {
      this.#abandon(epoch, slot, { runs: staging.runs, cause });
      return false;
    }
  }

  #acknowledgeInOrder(slot: EpochSlot, epoch: EpochId, startMs: number): void {
    this.#options.store.offer(slot, epoch);
    this.#acknowledging = this.#acknowledging
      .then(() => this.#acknowledge(slot, epoch, startMs))
      .catch((cause) => this.#lose(this.#options.onShadowLost, cause));
  }

  async #acknowledge(slot: EpochSlot, epoch: EpochId, startMs: number): Promise<void> {
    const { store, failpoints, onCommit } = this.#options;
    await failpoints.hit('commit.before-acknowledge');
    if (this.#frozen) return;
    // Without a turn of the event loop where there is nothing to wait for.
    const held = store.acknowledge(slot, epoch);
    if (held !== undefined) {
      await held;
      // The shadow holds it, and releases its output itself if it takes over now.
      if (this.#frozen) return;
    }
    await failpoints.hit('commit.after-acknowledge');
    const awaited = this.#options.beforeRelease?.(epoch);
    if (awaited !== undefined) await awaited;
    this.#stageFailures = 0;
    this.#committedCutMs = startMs;
    this.#step({ kind: 'acknowledged', epoch, nowMs: this.#nowMs() });
    this.#options.stats.commitMs.add(this.#nowMs() - startMs);
    onCommit(epoch);
    await failpoints.hit('commit.after-release');
  }

  /** The epoch could not be staged. It joins the next one, and after some failures in a row the shadow is given up. */
  #abandon(
    epoch: EpochId,
    slot: EpochSlot,
    { runs, cause }: { runs: readonly PageRun[]; cause: unknown },
  ): void {
    this.#options.source.dirtyLog.mark(runs);
    this.#options.store.giveBack(slot);
    this.#stageFailures += 1;
    const givenUp = this.#stageFailures >= STAGE_FAILURES_MAX;
    if (givenUp) this.#step({ kind: 'halt' });
    this.#step({ kind: 'failed', epoch, nowMs: this.#nowMs() });
    if (givenUp) this.#options.onShadowLost(cause);
  }

  /** A cut that is under way comes to its end by itself, and `halt` waits for that. */
  #lose(report: (cause: unknown) => void, cause: unknown): void {
    // A bug is no loss: it ends the keeper, and the VM with it.
    if (cause instanceof InvariantViolation) throw cause;
    this.#endCuts();
    report(cause);
  }

  /** Counts what is dirty between cuts, so that a VM that writes a lot is cut before its epoch grows too large. */
  #peekLater(afterMs: number): void {
    this.#cancelPeek = this.#options.clock.after(afterMs, () => {
      if (this.#state.phase === 'halted') return;
      const startMs = this.#nowMs();
      let pages: number | undefined;
      try {
        // During a cut the count would be of no use.
        if (this.#state.phase === 'open')
          pages = this.#options.source.dirtyLog.peek(this.#options.policy.dirtyPagesMax);
      } catch (cause) {
        this.#lose(this.#options.onPrimaryLost, cause);
        return;
      }
      if (pages !== undefined) this.#step({ kind: 'dirty', pages, nowMs: this.#nowMs() });
      this.#peekLater(Math.max(PEEK_INTERVAL_MS, (this.#nowMs() - startMs) / PEEK_SHARE));
    });
  }
}

/** QEMU lives and said no, e.g. because there is no room for its device state. */
function isRefusal(cause: unknown): boolean {
  return cause instanceof QemuError && cause.code === 'QMP_COMMAND_FAILED';
}

interface Staging {
  runs: PageRun[];
  /** Why not all of `runs` is in the slot. */
  failure: unknown;
}
