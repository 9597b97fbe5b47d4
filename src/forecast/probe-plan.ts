/** Leads that are judged as one. */
export interface LeadBucket {
  /** The last of its leads; the first is the one after the bucket before. */
  readonly upTo: number;
  /** Leads whose forecasts are kept until they can be held against what happened. */
  readonly probes: readonly number[];
  /** So many steps lie between two forecasts that are kept. */
  readonly everySteps: number;
}

/** For steps of 5 minutes, up to a day and what is beyond. */
export const MINUTES_BUCKETS: readonly LeadBucket[] = [
  { upTo: 1, probes: [1], everySteps: 3 },
  { upTo: 3, probes: [2, 3], everySteps: 3 },
  { upTo: 12, probes: [6, 9, 12], everySteps: 6 },
  { upTo: 24, probes: [16, 20, 24], everySteps: 12 },
  { upTo: 48, probes: [32, 40, 48], everySteps: 12 },
  { upTo: 96, probes: [72, 96], everySteps: 24 },
  { upTo: 192, probes: [144, 192], everySteps: 48 },
  { upTo: 288, probes: [240, 288], everySteps: 48 },
];

/** For steps of 5 seconds, up to a quarter of an hour. */
export const SECONDS_BUCKETS: readonly LeadBucket[] = [
  { upTo: 1, probes: [1], everySteps: 3 },
  { upTo: 3, probes: [2, 3], everySteps: 3 },
  { upTo: 12, probes: [6, 12], everySteps: 6 },
  { upTo: 60, probes: [30, 60], everySteps: 30 },
  { upTo: 180, probes: [120, 180], everySteps: 60 },
];

/** Which bucket judges a lead. */
export function bucketOf(buckets: readonly LeadBucket[], lead: number): number {
  let index = 0;
  while (index < buckets.length - 1 && (buckets[index]?.upTo ?? 0) < lead) index += 1;
  return index;
}
