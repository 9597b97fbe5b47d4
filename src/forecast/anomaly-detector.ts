import { assert } from '../base/assert.ts';
import { AnomalySigns, WINDOW_STEPS } from './anomaly-signs.ts';
import { type AnomalyProgress, restoreAnomalyState, saveAnomalyState } from './anomaly-state.ts';
import {
  ALARM_SCORE,
  ANOMALY_KINDS,
  type AnomalyEpisode,
  type AnomalyKind,
  type AnomalyVerdict,
} from './anomaly-verdict.ts';

/** So much of the rarest of late is no news any more. */
const NO_NEWS_SHARE = 0.5;
/** After as many steps a third of that is left. */
const NEWS_STEPS = 100;
/** News of this size (rarer by two digits than what is no news) is half of the way to the highest score. */
const NEWS_SCALE = 2;
/**
 * What comes slowly is never news. But as rare as one in a thousand, on average over an hour of steps of 5 min, is an anomaly
 * as well.
 */
const LASTING_RARITY = 3;
const LASTING_STEPS = 12;
/** What happens once in a hundred steps is calm. */
const CALM_RARITY = 2;
const CALM_STEPS = 12;
/** An episode that lasts this long is what is usual now: half of the window that says so has seen nothing else. */
const ADAPTED_STEPS = WINDOW_STEPS;
/** As many values in a row from the past: the clock was set back. */
const LATE_MAX = 10;
/** Longer gaps are all the same. */
const GAP_STEPS_MAX = 1_000_000;

export interface AnomalyOptions {
  /** Between one value and the next. */
  readonly stepMs: number;
  /** What it looks for. Default: all. */
  readonly kinds?: readonly AnomalyKind[];
}

/**
 * Tells of each value of a series whether it is like those before: how rare it is among what the series itself has shown so
 * far, by several signs, and whether that is news. There is nothing to be set per series. Values that are multiplied by a
 * constant give the same verdicts. Some microseconds per value.
 */
export class AnomalyDetector {
  readonly #stepMs: number;
  readonly #kinds: readonly AnomalyKind[];
  #signs = new AnomalySigns();
  #progress: AnomalyProgress = {
    lastMs: null,
    late: 0,
    values: 0,
    peak: 0,
    recent: [],
    calmSteps: 0,
    isArmed: true,
  };

  constructor({ stepMs, kinds = ANOMALY_KINDS }: AnomalyOptions) {
    assert(stepMs > 0 && kinds.length > 0, 'a series has steps, and something is looked for');
    this.#stepMs = stepMs;
    this.#kinds = kinds;
  }

  /** The detector that wrote `state`; undefined where it is damaged or of another version: then begin anew. */
  static restore(options: AnomalyOptions, state: Uint8Array): AnomalyDetector | undefined {
    const restored = restoreAnomalyState(state);
    if (restored === undefined) return undefined;
    const detector = new AnomalyDetector(options);
    detector.#signs = restored.signs;
    detector.#progress = restored.progress;
    return detector;
  }

  get isAnomalous(): boolean {
    return this.#progress.episode !== undefined;
  }

  /**
   * The value of a step, NaN where it is missing, and where the step begins: Unix time in ms. Steps between it and the last
   * one count as missing. A value of a step that it knows already, or of one before, changes nothing.
   */
  push(value: number, startMs: number): AnomalyVerdict {
    const progress = this.#progress;
    if (!this.#advance(startMs)) return this.#verdict({ score: 0, change: undefined });
    const signs = this.#signs;
    if (Number.isFinite(value)) {
      signs.takeValue(value, startMs);
      progress.values += 1;
    } else signs.takeNothing();

    const kind = this.#strongest();
    const rarity = signs.rarities[kind];
    const news = Math.max(0, rarity - NO_NEWS_SHARE * progress.peak);
    progress.peak = rarity > progress.peak ? rarity : progress.peak * (1 - 1 / NEWS_STEPS);
    const isLasting = this.#lasts(rarity);
    if (this.#isLearning) return this.#follow({ kind, rarity, score: 0, startMs });
    const score = news / (news + NEWS_SCALE);
    const begins = isLasting && progress.isArmed && progress.episode === undefined;
    return this.#follow({ kind, rarity, score: begins ? Math.max(score, ALARM_SCORE) : score, startMs });
  }

  /** All that it has learnt. */
  save(): Uint8Array {
    return saveAnomalyState(this.#signs, this.#progress);
  }

  get #isLearning(): boolean {
    return this.#progress.values < WINDOW_STEPS;
  }

  /** False where the step is not after the last one. */
  #advance(startMs: number): boolean {
    const progress = this.#progress;
    const steps = progress.lastMs === null ? 1 : Math.round((startMs - progress.lastMs) / this.#stepMs);
    if (steps < 1 && progress.late < LATE_MAX) {
      progress.late += 1;
      return false;
    }
    progress.late = 0;
    progress.lastMs = startMs;
    if (steps > 1) this.#signs.skip(Math.min(steps - 1, GAP_STEPS_MAX));
    return true;
  }

  /** Whether the last steps together were rare enough. */
  #lasts(rarity: number): boolean {
    const { recent } = this.#progress;
    recent.push(rarity);
    if (recent.length > LASTING_STEPS) recent.shift();
    return recent.reduce((sum, one) => sum + one, 0) >= LASTING_RARITY * LASTING_STEPS;
  }

  #strongest(): AnomalyKind {
    const { rarities } = this.#signs;
    return this.#kinds.reduce((best, kind) => (rarities[kind] > rarities[best] ? kind : best));
  }

  #follow({ kind, rarity, score, startMs }: Sighting): AnomalyVerdict {
    const progress = this.#progress;
    const isCalm = rarity < CALM_RARITY;
    const { episode } = progress;
    if (episode === undefined) {
      const begins = progress.isArmed && score >= ALARM_SCORE;
      if (isCalm) progress.isArmed = true;
      if (!begins) return this.#verdict({ score, change: undefined });
      progress.episode = { kind, reason: this.#signs.reason(kind), sinceMs: startMs, steps: 1, score };
      progress.calmSteps = 0;
      return this.#verdict({ score, change: 'begins' });
    }
    episode.steps += 1;
    progress.calmSteps = isCalm ? progress.calmSteps + 1 : 0;
    const hasAdapted = episode.steps >= ADAPTED_STEPS && episode.kind !== 'missing';
    if (progress.calmSteps < CALM_STEPS && !hasAdapted) return this.#verdict({ score, change: undefined });
    progress.episode = undefined;
    progress.isArmed = isCalm;
    const change = progress.calmSteps >= CALM_STEPS ? 'calm' : 'adapted';
    return this.#verdict({ score, change, over: episode });
  }

  #verdict({ score, change, over }: Outcome): AnomalyVerdict {
    const { episode } = this.#progress;
    const known = episode ?? over;
    return {
      score,
      isLearning: this.#isLearning,
      isAnomalous: episode !== undefined,
      change,
      episode: known === undefined ? undefined : { ...known },
      expected: this.#signs.expected(),
    };
  }
}

interface Sighting {
  readonly kind: AnomalyKind;
  readonly rarity: number;
  readonly score: number;
  readonly startMs: number;
}

interface Outcome {
  readonly score: number;
  readonly change: AnomalyVerdict['change'];
  readonly over?: AnomalyEpisode;
}
