import { Measurement } from '../base/measurement.ts';

const SAMPLES = 1024;
/** Milliseconds: the promotion itself takes a few, a hanging primary is given seconds before it is taken for dead. */
const BOUNDS_MS = [2, 4, 6, 8, 12, 16, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000];

/** How long the promotions of one VM took. */
export class TakeoverStats {
  /** From the proof that the old primary is dead until the VM runs again. */
  readonly promoteMs = new Measurement({ samples: SAMPLES, bounds: BOUNDS_MS });
  /** From the loss of the primary, of one that hangs from its last answer, until the VM runs again. */
  readonly outageMs = new Measurement({ samples: SAMPLES, bounds: BOUNDS_MS });

  /** Times of one clock; returns what they amount to. */
  add(times: { lostAtMs: number; startMs: number; nowMs: number }): { promoteMs: number; outageMs: number } {
    const taken = { promoteMs: times.nowMs - times.startMs, outageMs: times.nowMs - times.lostAtMs };
    this.promoteMs.add(taken.promoteMs);
    this.outageMs.add(taken.outageMs);
    return taken;
  }
}
