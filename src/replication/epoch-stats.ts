import { Measurement } from '../base/measurement.ts';
import type { PageRun } from '../memory/page-runs.ts';

const SAMPLES = 8192;
/** Milliseconds. Finest where a pause should lie; the last ones tell a bad moment from a broken machine. */
const PAUSE_BOUNDS_MS = [0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 25, 50, 100, 250, 1000];
const COMMIT_BOUNDS_MS = [1, 2, 3, 4, 6, 8, 12, 16, 25, 50, 100, 250, 500, 1000, 5000];
/** Each four times the one before: from 16 KiB to 4 GiB of pages. */
const DIRTY_BOUNDS_PAGES = [4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576];

/** What the epochs of one VM cost, whichever shadow they went to. */
export class EpochStats {
  /** From before input is held back until the VM runs and takes input again. */
  readonly pauseMs = new Measurement({ samples: SAMPLES, bounds: PAUSE_BOUNDS_MS });
  /** From the same moment until what the epoch held has left. */
  readonly commitMs = new Measurement({ samples: SAMPLES, bounds: COMMIT_BOUNDS_MS });
  readonly dirtyPages = new Measurement({ samples: SAMPLES, bounds: DIRTY_BOUNDS_PAGES });
  /** Told which pages an epoch took; undefined: nobody wants to know. */
  onWritten: ((runs: readonly PageRun[]) => void) | undefined;
}
