import { z } from 'zod';
import { PHASES } from '../shadow/protection.ts';

/** More than any keeper of ours has; one that goes mad must not fill a time series database. */
const BUCKETS_MAX = 32;

const amount = z.number().nonnegative();
const count = z.int().nonnegative();

/** See `Histogram` in base/measurement.ts. */
const histogramSchema = z
  .object({
    bounds: z.array(z.number()).max(BUCKETS_MAX),
    counts: z.array(count).max(BUCKETS_MAX + 1),
    sum: amount,
  })
  .refine(({ bounds, counts }) => counts.length === bounds.length + 1, 'one bucket more than bounds')
  .refine(
    ({ bounds }) => bounds.every((bound, index) => index === 0 || bound > (bounds[index - 1] ?? Number.NaN)),
    'bounds that grow',
  );

const measuredSchema = z.object({
  recent: z.object({ count, p50: amount, p99: amount, max: amount }),
  histogram: histogramSchema,
});

/**
 * What a keeper answers to `metrics`, for those who ask every few seconds. It is checked by who asked: the keeper may be
 * of another version, or out of its mind. Times in milliseconds, memory in bytes; counts are since the keeper started.
 */
export const vmMetricsSchema = z.object({
  phase: z.enum(PHASES),
  upMs: amount,
  memoryBytes: amount,
  epochs: z.object({
    /** Number of the newest committed epoch, and of the one that is open; null while there is no shadow to commit to. */
    committed: count,
    open: count.nullable(),
    commits: count,
    pauseMs: measuredSchema,
    commitMs: measuredSchema,
    dirtyPages: measuredSchema,
    /** Share of time that the VM has stood still since its present shadow is in sync, and its bound. */
    pauseShare: amount,
    pauseShareMax: amount,
  }),
  /** Whether its specification asks for a shadow. */
  shadowEnabled: z.boolean(),
  shadow: z
    .object({
      copiedShare: amount,
      /** Since the newest committed epoch was cut; null before the first commit. */
      lagMs: amount.nullable(),
      /** How often its connection was taken up again, and what did not have to be copied; of one on another host only. */
      reconnects: count.optional(),
      savedBytes: count.optional(),
    })
    .nullable(),
  clock: z.object({ errorMs: z.number().nullable(), answeredAgoMs: amount.nullable(), corrections: count }),
  /** Of all disks that commit with epochs; left out by keepers of older releases. */
  disks: z.object({ heldBytes: count }).optional(),
  /** Of all links together. */
  links: z.object({
    heldItems: count,
    heldBytes: count,
    loggedItems: count,
    loggedBytes: count,
    releasedItems: count,
    replayedItems: count,
    droppedItems: count,
    refusedItems: count,
  }),
  promotions: count,
  restarts: count,
  promoteMs: measuredSchema,
  outageMs: measuredSchema,
  /** A keeper of an older release says nothing of these. */
  detectMs: measuredSchema.optional(),
  fenceMs: measuredSchema.optional(),
  replyMs: measuredSchema.optional(),
  /** Ways to the other host. */
  paths: z
    .array(
      z.object({
        address: z.string().max(256),
        isHeard: z.boolean(),
        rttMs: amount,
        jitterMs: amount.nullable(),
        received: count,
        lost: count,
      }),
    )
    .max(8)
    .optional(),
  /** Of a VM of several hosts. */
  lease: z.object({ awayMs: amount.nullable(), endsInMs: amount.nullable() }).optional(),
  /** Those that it takes by itself; left out by one that takes none, and by keepers of older releases. */
  snapshots: z
    .object({
      taken: count,
      failed: count,
      skipped: count,
      /** Since the newest by schedule; null before there is one. */
      ageMs: amount.nullable(),
    })
    .optional(),
});

export type VmMetrics = z.output<typeof vmMetricsSchema>;
export type Measured = z.output<typeof measuredSchema>;
