import { z } from 'zod';
import { parseDuration } from '../base/durations.ts';

/** Bounds of the interval between two samples of one VM. */
export const TELEMETRY_INTERVAL_MS_MIN = 100;
export const TELEMETRY_INTERVAL_MS_MAX = 60_000;
export const TELEMETRY_INTERVAL_MS_DEFAULT = 1000;

const interval = z.string('expected a time such as 1s or 250ms').transform((text, context) => {
  const ms = parseDuration(text);
  if (ms === undefined)
    context.addIssue({ code: 'custom', message: `${JSON.stringify(text)} is no time such as 1s or 250ms` });
  else if (ms < TELEMETRY_INTERVAL_MS_MIN || ms > TELEMETRY_INTERVAL_MS_MAX)
    context.addIssue({ code: 'custom', message: 'expected 100ms to 60s' });
  return ms ?? z.NEVER;
});

/** How a VM is measured. */
export const telemetrySchema = z
  .strictObject({ interval: interval.optional() })
  .transform(({ interval: intervalMs = TELEMETRY_INTERVAL_MS_DEFAULT }) => ({ intervalMs }));
