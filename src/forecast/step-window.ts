import type { SeriesContext } from './forecast-model.ts';

const NOTHING = new Uint8Array(0);

/** Of a model that can be made anew from the history. */
export function nothingToSave(): Uint8Array {
  return NOTHING;
}

/** So many steps are a while, and no more than the history has besides the one that leaves. */
export function windowSteps({ stepMs, history }: SeriesContext, windowMs: number): number {
  return Math.max(1, Math.min(Math.round(windowMs / stepMs), history.capacity - 1));
}

/** The mean of `steps` values up to the one of `ago` steps ago; NaN where all of them are missing. */
export function meanOf({ history }: SeriesContext, { steps, ago }: { steps: number; ago: number }): number {
  let sum = 0;
  let count = 0;
  for (let step = 0; step < steps; step += 1) {
    const value = history.at(ago + step);
    if (Number.isNaN(value)) continue;
    sum += value;
    count += 1;
  }
  return count === 0 ? Number.NaN : sum / count;
}
