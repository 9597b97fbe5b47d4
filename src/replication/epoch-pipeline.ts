import { readFileSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import type { Failpoints } from '../base/failpoint.ts';
import { SampleWindow } from '../base/sample-window.ts';
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
import { countPages, type PageRun } from '../memory/page-runs.ts';
import type { GuestLink } from '../net/guest-link.ts';
import type { Machine } from '../qemu/machine.ts';
import type { EpochSlot } from './epoch-slot.ts';
import type { ShadowImage } from './shadow-image.ts';

/** The VM that acts, as far as its epochs are concerned. */
export interface PipelineSource {
  readonly machine: Pick<Machine, 'stopAndSave' | 'cont'>;
  readonly memory: GuestMemory;
  readonly dirtyLog: DirtyLog;
  readonly links: readonly GuestLink[];
  /** Who else takes part in epochs, e.g. the VM's own events. */
  readonly participants: readonly EpochParticipant[];
  /** File that QEMU writes its device state to. */
  readonly deviceStatePath: string;
  /** False once the VM stopped by itself (powered off, panicked): then it must not be continued. */
  readonly mayContinue: () => boolean;
}

export interface PipelineOptions {
  readonly source: PipelineSource;
  readonly image: ShadowImage;
  readonly policy: EpochPolicy;
  readonly firstEpoch: EpochId;
  readonly clock: Clock;
  readonly failpoints: Failpoints;
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
const SAMPLES = 8192;
/** How often written pages are counted between cuts, and which share of time that may cost. */
const PEEK_INTERVAL_MS = 25;
const PEEK_SHARE = 0.02;

/** Carries out the epochs of one VM against one shadow: cut, stage, acknowledge, release. */
export class EpochPipeline {
  readonly #options: PipelineOptions;
  #state: EpochState;
  #cancelWake: () => void = () => {};
  #cancelPeek: () => void = () => {};
  #cutting: Promise<void> | undefined;
  #stageFailures = 0;
  /** Output waits in the open epoch: what came before the seal leaves with the commit and asks for no cut. */
  #heldSinceSeal = false;
  readonly #startedMs: number;
  readonly pauseMs = new SampleWindow(SAMPLES);
  readonly commitMs = new SampleWindow(SAMPLES);
  readonly dirtyPages = new SampleWindow(SAMPLES);

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
    this.#heldSinceSeal = true;
    if (!this.#state.outputHeld) this.#step({ kind: 'output-held', nowMs: this.#nowMs() });
  }

  /** Cuts as soon as possible, whatever the pause budget says. */
  demand(): void {
    this.#step({ kind: 'demand', nowMs: this.#nowMs() });
  }

  /** Makes no further cut and resolves when one that is under way has come to its end. */
  async halt(): Promise<void> {
    this.#step({ kind: 'halt' });
    this.#cancelWake();
    this.#cancelPeek();
    await this.#cutting;
  }

  get openEpoch(): EpochId {
    return this.#state.open;
  }

  /** Share of time paused since this pipeline started. */
  get pauseShare(): number {
    const elapsedMs = this.#nowMs() - this.#startedMs;
    return elapsedMs > 0 ? this.pauseMs.sum / elapsedMs : 0;
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
    return [...this.#options.source.links, ...this.#options.source.participants];
  }

  async #cut(epoch: EpochId): Promise<void> {
    const { image, failpoints } = this.#options;
    let slot = image.take();
    try {
      // All slots wait to be applied: the shadow is slower than the VM writes, so the VM waits (back-pressure).
      if (slot === undefined) {
        await image.settle();
        slot = image.take();
      }
      assert(slot !== undefined, 'a settled image has a free slot');
      slot.begin(epoch);
    } catch (cause) {
      this.#lose(this.#options.onShadowLost, cause);
      return;
    }
    try {
      await failpoints.hit('cut.before-pause');
      const staged = await this.#pause(epoch, slot);
      if (staged.kind === 'staged') await this.#complete(epoch, slot, staged);
      else this.#abandon(epoch, slot, staged);
    } catch (cause) {
      this.#lose(this.#options.onPrimaryLost, cause);
    }
  }

  /** The critical section: everything in here adds to the time that the VM stands still. */
  async #pause(epoch: EpochId, slot: EpochSlot): Promise<PauseOutcome> {
    const { source, failpoints } = this.#options;
    const { links, machine } = source;
    const startMs = this.#nowMs();
    for (const link of links) link.pauseInput();
    const { stopped, saved } = machine.stopAndSave(source.deviceStatePath);
    await Promise.all([stopped, saved]);
    await failpoints.hit('cut.after-pause');
    for (const link of links) link.drainOutput();
    await failpoints.hit('cut.before-scan');
    // Last, because saving device state may itself write guest memory.
    const runs = source.dirtyLog.collect();
    await failpoints.hit('cut.after-scan');
    let failure: unknown;
    try {
      slot.capture(source.memory, runs);
    } catch (cause) {
      // No room, most likely. The pages are not lost: they join the next epoch.
      source.dirtyLog.mark(runs);
      failure = cause;
    }
    await failpoints.hit('cut.after-stage');
    for (const participant of this.#participants()) participant.seal(epoch);
    this.#heldSinceSeal = false;
    await failpoints.hit('cut.before-resume');
    if (source.mayContinue()) await machine.cont();
    for (const link of links) link.resumeInput();
    const pausedMs = this.#nowMs() - startMs;
    this.pauseMs.add(pausedMs);
    this.dirtyPages.add(countPages(runs));
    this.#options.onPause(pausedMs);
    await failpoints.hit('cut.after-resume');
    return failure === undefined
      ? { kind: 'staged', pausedMs, startMs, runs }
      : { kind: 'failed', pausedMs, cause: failure };
  }

  async #complete(epoch: EpochId, slot: EpochSlot, staged: Staged): Promise<void> {
    const { image, source, failpoints } = this.#options;
    try {
      slot.finish({
        deviceState: readFileSync(source.deviceStatePath),
        outputs: source.links.map((link) => ({ link: link.name, items: link.sealedOutput(epoch) })),
      });
    } catch (cause) {
      source.dirtyLog.mark(staged.runs);
      this.#abandon(epoch, slot, { kind: 'failed', pausedMs: staged.pausedMs, cause });
      return;
    }
    await failpoints.hit('commit.before-acknowledge');
    image.acknowledge(slot, epoch);
    await failpoints.hit('commit.after-acknowledge');
    this.#stageFailures = 0;
    this.#reportCut(epoch, staged.pausedMs);
    this.#step({ kind: 'acknowledged', epoch, nowMs: this.#nowMs() });
    this.commitMs.add(this.#nowMs() - staged.startMs);
    this.#options.onCommit(epoch);
    await failpoints.hit('commit.after-release');
  }

  /** The epoch could not be staged. It joins the next one, and after some failures in a row the shadow is given up. */
  #abandon(epoch: EpochId, slot: EpochSlot, { pausedMs, cause }: Failed): void {
    this.#options.image.giveBack(slot);
    this.#stageFailures += 1;
    const givenUp = this.#stageFailures >= STAGE_FAILURES_MAX;
    if (givenUp) this.#step({ kind: 'halt' });
    this.#reportCut(epoch, pausedMs);
    this.#step({ kind: 'failed', epoch, nowMs: this.#nowMs() });
    if (givenUp) this.#options.onShadowLost(cause);
  }

  #reportCut(epoch: EpochId, pausedMs: number): void {
    this.#cutting = undefined;
    this.#step({ kind: 'cut', epoch, pausedMs, outputHeld: this.#heldSinceSeal, nowMs: this.#nowMs() });
  }

  #lose(report: (cause: unknown) => void, cause: unknown): void {
    this.#cutting = undefined;
    this.#step({ kind: 'halt' });
    this.#cancelWake();
    this.#cancelPeek();
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

type Staged = {
  readonly kind: 'staged';
  readonly pausedMs: number;
  readonly startMs: number;
  readonly runs: readonly PageRun[];
};
type Failed = { readonly kind: 'failed'; readonly pausedMs: number; readonly cause: unknown };
type PauseOutcome = Staged | Failed;
