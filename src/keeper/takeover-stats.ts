import { SampleWindow } from '../base/sample-window.ts';

const SAMPLES = 1024;

/** How long the promotions of one VM took. */
export class TakeoverStats {
  /** From the proof that the old primary is dead until the VM runs again. */
  readonly promoteMs = new SampleWindow(SAMPLES);
  /** From the first sign of the loss until the VM runs again. */
  readonly outageMs = new SampleWindow(SAMPLES);

  /** Times of one clock; returns what they amount to. */
  add(times: { lostAtMs: number; startMs: number; nowMs: number }): { promoteMs: number; outageMs: number } {
    const taken = { promoteMs: times.nowMs - times.startMs, outageMs: times.nowMs - times.lostAtMs };
    this.promoteMs.add(taken.promoteMs);
    this.outageMs.add(taken.outageMs);
    return taken;
  }
}
