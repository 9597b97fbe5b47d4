import { z } from 'zod';
import { parseDuration } from '../base/durations.ts';
import { isLoopbackHost } from '../base/loopback.ts';
import { MIB, parseBytes, TIB } from '../base/units.ts';

const HOUR_MS = 3_600_000;
const YEARS_MAX_MS = 20 * 365 * 24 * HOUR_MS;
const BYTES_MIN = 64 * MIB;

const absolutePath = z
  .string()
  .regex(/^\//, 'expected an absolute path: a daemon has no folder that others could begin at')
  .refine((path) => !path.includes('\0'), 'has a NUL byte');

const url = z.string().superRefine((text, context) => {
  const problem = urlProblem(text);
  if (problem !== undefined) context.addIssue({ code: 'custom', message: problem });
});

function urlProblem(text: string): string | undefined {
  const given = URL.canParse(text) ? new URL(text) : undefined;
  if (given === undefined || !/^https?:$/.test(given.protocol))
    return 'expected a URL such as https://metrics.example:8428';
  if (given.username !== '' || given.password !== '')
    return 'has credentials in it: put them into a file, credentials';
  if (given.search !== '' || given.hash !== '') return 'expected an address and at most a path';
  if (given.protocol === 'http:' && !isLoopbackHost(given.hostname))
    return 'expected https://: plain http is for loopback addresses only, e.g. http://127.0.0.1:8428';
  return undefined;
}

/** In ms. */
const duration = z.string('expected a time such as 36h or 14d').transform((text, context) => {
  const ms = parseDuration(text);
  if (ms === undefined) {
    context.addIssue({ code: 'custom', message: 'expected a time such as 36h or 14d' });
  } else if (ms < 2 * HOUR_MS || ms > YEARS_MAX_MS) {
    // An hour's buckets are made of its samples when it is over and what is late has had its time.
    context.addIssue({ code: 'custom', message: 'expected 2 hours to 20 years' });
  }
  return ms ?? z.NEVER;
});

const size = z.union([z.string(), z.int()], 'expected a size such as 2GiB').transform((given, context) => {
  const bytes = parseBytes(String(given));
  if (bytes === undefined) {
    context.addIssue({ code: 'custom', message: `${JSON.stringify(given)} is no size such as 2GiB` });
  } else if (bytes < BYTES_MIN || bytes > TIB) {
    context.addIssue({ code: 'custom', message: 'expected 64 MiB to 1 TiB' });
  }
  return bytes ?? z.NEVER;
});

const retention = z
  .strictObject({
    '1s': duration.prefault('1d'),
    '1m': duration.prefault('14d'),
    '1h': duration.prefault('400d'),
  })
  .superRefine((given, context) => {
    const contradict = (field: string, message: string) =>
      context.addIssue({ code: 'custom', path: [field], message });
    if (given['1m'] < given['1s']) contradict('1m', 'is shorter than that of 1s');
    if (given['1h'] < given['1m']) contradict('1h', 'is shorter than that of 1m');
  });

/** Where series are kept, and for how long. Explained in docs/telemetry-store.md. */
export const telemetrySchema = z
  .strictObject({
    store: z.enum(['sqlite', 'victoriametrics']).default('sqlite'),
    url: url.optional(),
    ca: absolutePath.optional(),
    credentials: z.strictObject({ kind: z.enum(['bearer', 'basic']), file: absolutePath }).optional(),
    retention: retention.prefault({}),
    maxBytes: size.prefault('2GiB'),
  })
  .superRefine((given, context) => {
    const contradict = (field: string, message: string) =>
      context.addIssue({ code: 'custom', path: [field], message });
    if (given.store === 'victoriametrics') {
      if (given.url === undefined) contradict('url', 'is missing');
      return;
    }
    for (const field of ['url', 'ca', 'credentials'] as const)
      if (given[field] !== undefined) contradict(field, 'is for store: victoriametrics');
  });

export type TelemetryConfig = z.output<typeof telemetrySchema>;
