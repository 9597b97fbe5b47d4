/**
 * Milliseconds on CLOCK_MONOTONIC, which all processes of a machine share: the time of a kill in one process can be
 * held against the time of a reply in another. `Clock.nowMs` begins anew in every process.
 */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
