/** How one resource of one VM follows its demand. Amounts as in {@link RESOURCES}. */
export interface ScalingPolicy {
  /** Bounds of what the VM may use. */
  readonly min: number;
  readonly max: number;
  /** The forecast's quantile of the peak within the horizon that shall be there. */
  readonly quantile: number;
  /** On top of that quantile, as a share of it. */
  readonly marginShare: number;
  /** What has to be missing, as a share of what the VM has, before it is asked for: `allocation.preAllocationThreshold`. */
  readonly preAllocationThreshold: number;
  /** How long a reservation that nobody uses lasts: the horizon of the forecast. */
  readonly reservationMs: number;
  /** Above this share of what is allocated, or of time in which the VM was held back, more is needed at once. */
  readonly fullShare: number;
  readonly pressureShareMax: number;
  /** How much more that is, as a share of what is allocated. */
  readonly reliefShare: number;
  /** How long there has to be too much before some of it is taken back. */
  readonly lowerAfterMs: number;
  /** At most this share at a time, */
  readonly lowerShareMax: number;
  /** and not more often than this. */
  readonly lowerIntervalMs: number;
  /** After the VM was held back nothing is taken for this long: it doubles each time that happens soon after a lowering. */
  readonly calmMs: number;
}

const MINUTE_MS = 60_000;

/** Fast up, slow down. `quantile` and `marginShare` are those of `npm run bench -- policy` at 1.4 % violated hours. */
export const DEFAULT_SCALING: Omit<ScalingPolicy, 'min' | 'max'> = {
  quantile: 0.95,
  marginShare: 0.2,
  preAllocationThreshold: 0.1,
  reservationMs: 60 * MINUTE_MS,
  fullShare: 0.95,
  pressureShareMax: 0.05,
  reliefShare: 0.5,
  lowerAfterMs: 10 * MINUTE_MS,
  lowerShareMax: 0.25,
  lowerIntervalMs: MINUTE_MS,
  calmMs: 5 * MINUTE_MS,
};

/** However often it oscillates, a VM gets back to what it needs within an hour. */
export const CALM_MS_MAX = 60 * MINUTE_MS;
