import type { Clock } from '../base/clock.ts';
import { Measurement } from '../base/measurement.ts';
import type { GuestLink } from '../net/guest-link.ts';

const SAMPLES = 1024;
/** Milliseconds: the promotion itself takes a few, a hanging primary is given seconds before it is taken for dead. */
const BOUNDS_MS = [2, 4, 6, 8, 12, 16, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/** Of one takeover, by one clock. */
export interface TakeoverTimes {
  /** The last sign of life of what was lost. */
  readonly lastSignMs: number;
  /** It is taken for lost. */
  readonly noticedAtMs: number;
  /** It cannot act any more: dead, or without the right to. */
  readonly fencedAtMs: number;
  /** The guest runs again. */
  readonly runsAtMs: number;
}

export interface TakeoverFigures {
  readonly detectMs: number;
  readonly fenceMs: number;
  readonly promoteMs: number;
  readonly outageMs: number;
}

/** How long the takeovers of one VM took, step by step. */
export class TakeoverStats {
  /** From the last sign of life until the primary is taken for lost; 0 where its end is told at once. */
  readonly detectMs = measurement();
  /** From then until it is certain that it cannot act. */
  readonly fenceMs = measurement();
  /** From then until the VM runs again. */
  readonly promoteMs = measurement();
  /** From then until the guest's first frame leaves. */
  readonly replyMs = measurement();
  /** All but the last of these. */
  readonly outageMs = measurement();

  add({ lastSignMs, noticedAtMs, fencedAtMs, runsAtMs }: TakeoverTimes): TakeoverFigures {
    const taken: TakeoverFigures = {
      detectMs: noticedAtMs - lastSignMs,
      fenceMs: fencedAtMs - noticedAtMs,
      promoteMs: runsAtMs - fencedAtMs,
      outageMs: runsAtMs - lastSignMs,
    };
    this.detectMs.add(taken.detectMs);
    this.fenceMs.add(taken.fenceMs);
    this.promoteMs.add(taken.promoteMs);
    this.outageMs.add(taken.outageMs);
    return taken;
  }
}

/** Waits for the guest's first frame after a takeover. To be made right before the guest runs. */
export class FirstReply {
  readonly #left: Promise<number>;

  constructor(links: readonly GuestLink[], clock: Clock) {
    const { promise, resolve } = Promise.withResolvers<number>();
    this.#left = promise;
    // Bytes of the console answer nobody.
    for (const link of links) if (link.carriesFrames) link.onNextRelease(() => resolve(clock.nowMs()));
  }

  /** `told`: with the time from when the guest ran. Never, where the guest sends nothing. */
  since(
    { runsAtMs, stats }: { runsAtMs: number; stats: TakeoverStats },
    told: (replyMs: number) => void,
  ): void {
    void this.#left.then((atMs) => {
      // It may have left before QEMU had answered that the guest runs.
      const replyMs = Math.max(0, atMs - runsAtMs);
      stats.replyMs.add(replyMs);
      told(replyMs);
    });
  }
}

function measurement(): Measurement {
  return new Measurement({ samples: SAMPLES, bounds: BOUNDS_MS });
}
