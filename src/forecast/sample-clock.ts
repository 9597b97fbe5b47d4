/** When a sample was taken, by the two clocks of its host. */
export interface SampleTime {
  /** Unix time: may be set, forth and back. */
  readonly wallMs: number;
  /** Never goes back, but begins anew with each boot and is another one on each host. */
  readonly monotonicMs: number;
}

export type Passage =
  | { readonly kind: 'forward'; readonly ms: number }
  /** Taken before a sample that came earlier. */
  | { readonly kind: 'late'; readonly ms: number }
  | { readonly kind: 'duplicate' };

/** The longest time between samples of a host that runs. What is longer is a gap, or a clock that jumped. */
const INTERVAL_MS_MAX = 120_000;
const LATE_MS_MAX = 600_000;
/** Two clocks that agree differ by no more than this, and a hundredth. */
const DISAGREEMENT_MS = 2000;

/**
 * How much time lies between two samples, from what both clocks say of it. Where they agree, that is it. Else one of them
 * jumped: the wall clock was set, or the monotonic one is of another boot or host; the one that says something likely is
 * believed, and time never goes back for it.
 */
export function passageOf(before: SampleTime, now: SampleTime): Passage {
  const steady = now.monotonicMs - before.monotonicMs;
  const wall = now.wallMs - before.wallMs;
  if (steady === 0 && wall === 0) return { kind: 'duplicate' };
  const agree = Math.abs(steady - wall) <= DISAGREEMENT_MS + Math.abs(steady) / 100;
  if (steady >= 0 && (agree || steady <= INTERVAL_MS_MAX)) return { kind: 'forward', ms: steady };
  if (agree && steady >= -LATE_MS_MAX) return { kind: 'late', ms: -steady };
  if (wall >= 0) return { kind: 'forward', ms: wall };
  return { kind: 'forward', ms: Math.max(0, steady) };
}
