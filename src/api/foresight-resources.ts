import { z } from 'zod';
import { ALLOCATION_MODES } from '../config/allocation-schema.ts';
import { RESOLUTIONS, type Resolution } from '../telemetry/series-store.ts';

/** Names of what can be foreseen, as people type them. */
export const RESOURCE_NAMES = ['cpu', 'memory', 'disk', 'net'] as const;
export type ResourceName = (typeof RESOURCE_NAMES)[number];

export const resourceNameSchema = z.enum(RESOURCE_NAMES);

const amount = z.number().nonnegative();
const unit = z.enum(['millicores', 'bytes', 'bytes per second']);

const quantiles = z
  .object({ levels: z.array(z.number()), values: z.array(z.number()) })
  .nullable()
  .meta({ description: 'values[i] is the quantile levels[i]. null while too little is known.' });

const standing = z
  .object({
    allocated: amount.meta({ description: 'What the VM may use.' }),
    reserved: amount.meta({ description: 'Kept for it, handed over when it needs it.' }),
    min: amount,
    max: amount,
  })
  .nullable()
  .meta({ description: 'null where nothing is decided about this resource.' });

export const forecastSchema = z
  .object({
    vm: z.string(),
    resource: resourceNameSchema,
    unit,
    at: z.iso.datetime().meta({ description: 'Of the newest sample.' }),
    history: z.object({
      stepSeconds: z.number(),
      startedAt: z.iso.datetime().nullable(),
      values: z
        .array(z.number().nullable())
        .meta({ description: 'Means of steps, oldest first; null: missing.' }),
    }),
    levels: z.array(z.number()),
    rows: z
      .array(z.object({ horizonSeconds: z.number(), values: z.array(z.number()) }))
      .meta({ description: 'Quantiles by horizon; none while too little is known.' }),
    peak: quantiles,
    peakHorizonSeconds: z.number(),
    allocation: standing,
    isAnomalous: z.boolean(),
  })
  .meta({ id: 'Forecast', description: 'What a VM will need of one resource.' });

export const allocationSchema = z
  .object({
    vm: z.string(),
    mode: z.enum(ALLOCATION_MODES),
    horizonSeconds: z.number(),
    resources: z.array(
      z.object({
        resource: resourceNameSchema,
        unit,
        allocation: standing,
        peak: quantiles,
        isAnomalous: z.boolean(),
      }),
    ),
    decisions: z.array(
      z.object({
        id: z.int(),
        time: z.iso.datetime(),
        facts: z.record(z.string(), z.unknown()),
      }),
    ),
  })
  .meta({
    id: 'Allocation',
    description: 'What a VM has, what is kept for it, and the last decisions, newest first.',
  });

export const outlookSchema = z
  .object({
    host: z.string(),
    risk: z.number(),
    horizonSeconds: z.number(),
    resources: z.array(
      z.object({
        resource: resourceNameSchema,
        unit,
        capacity: amount.nullable().meta({ description: 'null where nobody knows what this host has.' }),
        vms: z.int(),
        used: amount.meta({ description: 'By all VMs together, now.' }),
        allocated: amount,
        reserved: amount,
        lent: amount,
        peakOfSum: quantiles.meta({
          description: 'Of what all VMs need together within the horizon, at its highest.',
        }),
        sumOfPeaks: amount.nullable().meta({
          description: 'Of each VM at the same quantile: what would be needed if all came at once.',
        }),
        needed: amount
          .nullable()
          .meta({ description: 'What has to be there so that it is too little with no more than the risk.' }),
        promisable: amount
          .nullable()
          .meta({ description: 'What may be promised to VMs like these at that risk.' }),
      }),
    ),
  })
  .meta({ id: 'Outlook', description: 'What this host has, against what its VMs will need together.' });

/** A metric as samples name it: ASCII, as those of METRICS with the name of a disk or network card in it. */
export const metricNameSchema = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/, 'expected the name of a metric, such as cpu.usedCores');

export const seriesSchema = z
  .object({
    vm: z.string(),
    metric: z.string(),
    resolution: z.enum(RESOLUTIONS),
    buckets: z.array(
      z.object({
        startedAt: z.iso.datetime(),
        count: z.int(),
        ...{ min: z.number(), mean: z.number(), max: z.number() },
        ...{ p50: z.number(), p90: z.number(), p99: z.number() },
      }),
    ),
    metrics: z.array(z.string()).meta({ description: 'All that is known of this VM.' }),
  })
  .meta({
    id: 'Series',
    description: 'What was measured of a VM, oldest first; times without a sample are not in it.',
  });

export type Series = z.output<typeof seriesSchema>;
export type Outlook = z.output<typeof outlookSchema>;
export type Forecast = z.output<typeof forecastSchema>;
export type Allocation = z.output<typeof allocationSchema>;

/** What the API needs of the agents of a host's VMs. */
export interface ForesightService {
  /** @throws HostError HOST_VM_UNKNOWN, HOST_NO_TELEMETRY */
  forecast(vm: string, resource: ResourceName): Forecast;
  /** Of the last `seconds`. @throws HostError HOST_VM_UNKNOWN, HOST_NO_SERIES; TelemetryError */
  series(
    vm: string,
    query: { readonly metric: string; readonly resolution: Resolution; readonly seconds: number },
  ): Promise<Series>;
  /** @throws HostError HOST_UNKNOWN */
  outlook(host: string, options: { readonly risk: number }): Outlook;
  /** With at most `limit` decisions. @throws HostError HOST_VM_UNKNOWN, HOST_NO_TELEMETRY */
  allocation(vm: string, options: { readonly limit: number }): Allocation;
}
