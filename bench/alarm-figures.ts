import { probationRows, type ScoredSeries } from './nab-score.ts';

const DAY_MS = 86_400_000;
/** Rows at or above the threshold that are not further apart than this are one alarm. */
const SAME_ALARM_ROWS = 12;

export interface TimedScores extends ScoredSeries {
  readonly startsMs: readonly number[];
}

/** What somebody who is woken by alarms would count. Rows of NAB's probation do not count. */
export interface AlarmFigures {
  /** Alarms within windows / alarms. 0 where there is none. */
  readonly precision: number;
  /** Windows with an alarm / windows. */
  readonly recall: number;
  /** Alarms outside of all windows, a day and series. */
  readonly falseAlarmsPerDay: number;
  /** From the beginning of each found window to its first alarm. */
  readonly delays: readonly { readonly minutes: number; readonly share: number }[];
}

export function alarmFigures(series: readonly TimedScores[], threshold: number): AlarmFigures {
  let right = 0;
  let wrong = 0;
  let days = 0;
  let windows = 0;
  const delays: { minutes: number; share: number }[] = [];
  for (const { scores, windows: labelled, startsMs } of series) {
    const probation = Math.ceil(probationRows(scores.length));
    const counted = labelled.filter(({ last }) => last >= probation);
    windows += counted.length;
    days += ((startsMs.at(-1) ?? 0) - (startsMs[probation] ?? 0)) / DAY_MS;
    const found = new Set<unknown>();
    let last = Number.NEGATIVE_INFINITY;
    for (let row = probation; row < scores.length; row += 1) {
      if ((scores[row] ?? 0) < threshold) continue;
      const window = counted.find((one) => one.first <= row && row <= one.last);
      if (row - last > SAME_ALARM_ROWS && window !== undefined) right += 1;
      if (row - last > SAME_ALARM_ROWS && window === undefined) wrong += 1;
      last = row;
      if (window === undefined || found.has(window)) continue;
      found.add(window);
      const minutes = ((startsMs[row] ?? 0) - (startsMs[window.first] ?? 0)) / 60_000;
      delays.push({ minutes, share: (row - window.first) / (window.last - window.first + 1) });
    }
  }
  return {
    precision: right / Math.max(1, right + wrong),
    recall: delays.length / Math.max(1, windows),
    falseAlarmsPerDay: wrong / Math.max(1, days),
    delays,
  };
}
