import { SampleWindow } from '../base/sample-window.ts';

const SAMPLES = 8192;

/** What the epochs of one VM cost, whichever shadow they went to. */
export class EpochStats {
  /** From before input is held back until the VM runs and takes input again. */
  readonly pauseMs = new SampleWindow(SAMPLES);
  /** From the same moment until what the epoch held has left. */
  readonly commitMs = new SampleWindow(SAMPLES);
  readonly dirtyPages = new SampleWindow(SAMPLES);
}
