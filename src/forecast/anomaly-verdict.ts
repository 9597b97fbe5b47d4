/**
 * `level`: one value is far from what is usual (at this time of day, once two days are known). `jump`: the step from the value
 * before is. `shift`: the last values together are somewhere else. `spread`: they vary more, or less. `record`: a value is
 * beyond all before. `stuck`: the same value for much longer than ever. `missing`: no values for much longer than ever.
 */
export type AnomalyKind = 'level' | 'jump' | 'shift' | 'spread' | 'record' | 'stuck' | 'missing';

export const ANOMALY_KINDS: readonly AnomalyKind[] = [
  'level',
  'jump',
  'shift',
  'spread',
  'record',
  'stuck',
  'missing',
];

/** One incident, however many values it lasts. */
export interface AnomalyEpisode {
  readonly kind: AnomalyKind;
  /** In words and numbers, in units of the series. */
  readonly reason: string;
  /** Where the step began that showed it: Unix time in ms. */
  readonly sinceMs: number;
  /** How many steps it has lasted. */
  readonly steps: number;
  /** Of the value that began it. */
  readonly score: number;
}

/** What a detector says of a value. */
export interface AnomalyVerdict {
  /** How new and how rare this is, 0 … 1. From {@link ALARM_SCORE} up an episode begins. The same incident is new only once. */
  readonly score: number;
  /** It has seen too little to say anything: the score is 0. */
  readonly isLearning: boolean;
  /** An episode begins or goes on. Whoever learns from values, or takes resources away by them, waits. */
  readonly isAnomalous: boolean;
  /** `calm`: as usual again. `adapted`: it has lasted so long that it is what is usual now. */
  readonly change: 'begins' | 'calm' | 'adapted' | undefined;
  /** The one that begins, goes on, or is over with this value. */
  readonly episode: AnomalyEpisode | undefined;
  /**
   * Where 98 of 100 of the last 288 values lay, this one included, wider where both days before were so at this hour. In units
   * of the series.
   */
  readonly expected: { readonly low: number; readonly high: number } | undefined;
}

/** Rarer by three digits than what is no news: once in some thousand steps of a series that only varies. */
export const ALARM_SCORE = 0.6;

/** Three digits, as a person would say it. */
export function inWords(value: number): string {
  return String(Number(value.toPrecision(3)));
}
