import { z } from 'zod';
import { parseDuration } from '../base/durations.ts';

const DAY_MS = 86_400_000;
const EVERY_MS_MIN = 60_000;
const EVERY_MS_MAX = 30 * DAY_MS;

const every = z.string('expected a time such as 1h or 1d').transform((text, context) => {
  const ms = parseDuration(text);
  if (ms === undefined)
    context.addIssue({ code: 'custom', message: `${JSON.stringify(text)} is no time such as 1h or 1d` });
  else if (ms < EVERY_MS_MIN || ms > EVERY_MS_MAX)
    context.addIssue({ code: 'custom', message: 'expected 1m to 30d' });
  return ms ?? z.NEVER;
});
const filePath = z
  .string()
  .min(1, 'is empty')
  .refine((path) => !path.includes('\0'), 'has a NUL byte');

/** Snapshots that a VM's keeper takes by itself. */
export const snapshotsSchema = z
  .strictObject({
    every: every.optional(),
    keep: z.int().min(1).max(1000).default(24),
    daily: z.int().min(0).max(366).default(0),
    onShutdown: z.boolean().default(false),
    directory: filePath.optional(),
    keyFile: filePath.optional(),
  })
  .superRefine(({ every: given, onShutdown }, context) => {
    if (given !== undefined || onShutdown) return;
    context.addIssue({ code: 'custom', path: ['every'], message: 'expected a time, or onShutdown: true' });
  })
  .transform(({ every: everyMs, ...rest }) => ({ ...rest, everyMs }));

export type SnapshotsSpec = z.output<typeof snapshotsSchema>;
