import { z } from 'zod';
import type { SampleSubscription, SubscribeOptions } from '../telemetry/sample-feed.ts';

/** The last moment that a date can be of. */
const WALL_MS_MAX = 8.64e15;
/** More than anything can be: what is made of it has to stay a number. */
const amount = z.number().nonnegative().max(1e18);

export const sampleSchema = z.object({
  vm: z.string(),
  instanceId: z.string(),
  wallMs: z.number().min(0).max(WALL_MS_MAX),
  monotonicMs: z.number().min(-1e15).max(1e15),
  intervalMs: amount,
  values: z.record(z.string(), amount),
});

const profileSchema = z.object({
  vm: z.string(),
  instanceId: z.string(),
  timestamp: z.string(),
  windowMs: amount,
  samples: z.int().nonnegative(),
  metrics: z.record(
    z.string(),
    z.object({
      ...{ count: z.int(), min: amount, mean: amount, max: amount },
      ...{ p50: amount, p95: amount },
    }),
  ),
});

/** What a keeper answers to `telemetry`. It is checked by who asked: the keeper may be of another version. */
export const telemetryStatusSchema = z.object({
  intervalMs: amount,
  /** Sources that fail or hang: what they say is missing in samples. */
  failing: z.array(z.string()),
  /** Null before the first one. */
  last: sampleSchema.nullable(),
  /** Of the last samples; null before the first one. */
  profile: profileSchema.nullable(),
});

export type TelemetryStatus = z.output<typeof telemetryStatusSchema>;

/** What can be asked about the telemetry of a VM. */
export interface TelemetryControl {
  /** With `intervalMs` samples are taken that often from now on, until the keeper ends. */
  telemetry(order: { readonly intervalMs?: number | undefined }): Promise<TelemetryStatus>;
  /** Samples from now on. Throws KEEPER_IS_SHADOW. */
  samples(options: SubscribeOptions): SampleSubscription;
}
