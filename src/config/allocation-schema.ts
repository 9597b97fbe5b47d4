import { z } from 'zod';
import { parseDuration } from '../base/durations.ts';
import { parseBytes } from '../base/units.ts';

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
export const HORIZON_MS_DEFAULT = HOUR_MS;

interface DurationBounds {
  readonly min: string;
  readonly max: string;
}

function duration({ min, max }: DurationBounds) {
  return z.string(`expected a time such as ${min}`).transform((text, context) => {
    const ms = parseDuration(text);
    if (ms === undefined)
      context.addIssue({ code: 'custom', message: `${JSON.stringify(text)} is no time such as ${min}` });
    else if (ms < (parseDuration(min) ?? 0) || ms > (parseDuration(max) ?? 0))
      context.addIssue({ code: 'custom', message: `expected ${min} to ${max}` });
    return ms ?? z.NEVER;
  });
}

/** What is foreseen of a VM. Its agent forecasts up to a day ahead; this is how far ahead something is kept ready. */
export const forecastSchema = z
  .strictObject({ horizon: duration({ min: '5m', max: '24h' }).optional() })
  .transform(({ horizon: horizonMs = HORIZON_MS_DEFAULT }) => ({ horizonMs }));

export const ALLOCATION_MODES = ['off', 'recommend', 'auto'] as const;
export type AllocationMode = (typeof ALLOCATION_MODES)[number];

/** Policies that have a name, from the one that keeps the most ready. */
const NAMED = {
  eager: { quantile: 0.99, margin: 0.2, lowerAfterMs: 30 * MINUTE_MS },
  balanced: { quantile: 0.95, margin: 0.2, lowerAfterMs: 10 * MINUTE_MS },
  thrifty: { quantile: 0.9, margin: 0.1, lowerAfterMs: 5 * MINUTE_MS },
} as const;

const ownPolicy = z
  .strictObject({
    quantile: z.number().min(0.5).max(0.99).default(NAMED.balanced.quantile),
    margin: z.number().min(0).max(4).default(NAMED.balanced.margin),
    lowerAfter: duration({ min: '1m', max: '24h' }).optional(),
  })
  .transform(({ lowerAfter = NAMED.balanced.lowerAfterMs, ...rest }) => ({
    ...rest,
    lowerAfterMs: lowerAfter,
  }));

const NAMES = Object.keys(NAMED).join(', ');

/** Not a union: what is wrong with an object is to be told as of an object. */
const scalingPolicy = z.unknown().transform((given, context): z.output<typeof ownPolicy> => {
  if (typeof given === 'string' && Object.hasOwn(NAMED, given)) return NAMED[given as keyof typeof NAMED];
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    context.addIssue({ code: 'custom', message: `expected ${NAMES}, or {quantile, margin, lowerAfter}` });
    return z.NEVER;
  }
  const { data, error } = ownPolicy.safeParse(given);
  for (const issue of error?.issues ?? [])
    context.addIssue({ ...issue } as Parameters<typeof context.addIssue>[0]);
  return data ?? z.NEVER;
});

const cores = z
  .number()
  .min(0.01)
  .max(1024)
  .transform((amount) => Math.round(amount * 1000));
const bytes = z.union([z.string(), z.number()]).transform((given, context) => {
  const amount = parseBytes(String(given));
  if (amount === undefined || amount < 1)
    context.addIssue({ code: 'custom', message: 'expected a size such as 256MiB' });
  return amount ?? z.NEVER;
});

function bounds<Amount extends z.ZodType<number>>(amount: Amount) {
  return z
    .strictObject({ min: amount.optional(), max: amount.optional() })
    .superRefine(({ min, max }, context) => {
      if (min === undefined || max === undefined || min <= max) return;
      context.addIssue({ code: 'custom', path: ['min'], message: 'is more than max' });
    });
}

/** What a VM may get of each resource, and how that follows its forecast. Amounts as in `RESOURCES`. */
export const allocationSchema = z.strictObject({
  mode: z.enum(ALLOCATION_MODES).default('recommend'),
  preAllocationThreshold: z.number().min(0).max(1).default(0.1),
  scalingPolicy: scalingPolicy.prefault('balanced'),
  cpu: bounds(cores).optional(),
  memory: bounds(bytes).optional(),
  disk: bounds(bytes).optional(),
  net: bounds(bytes).optional(),
});
