import { z } from 'zod';
import { telemetrySchema } from './telemetry-schema.ts';

const absolutePath = z
  .string()
  .regex(/^\//, 'expected an absolute path: a daemon has no folder that others could begin at')
  .refine((path) => !path.includes('\0'), 'has a NUL byte');

/** groupadd(8): what Debian allows by default. */
const groupName = z.string().regex(/^[a-z_][a-z0-9_-]{0,31}$/, 'no name of a group');

const GROUP_MODE_MAX = 0o660;

/** YAML reads 0660 without quotes as the number 660; what is meant is plain enough. */
const mode = z.union([z.string(), z.int()], 'expected a mode such as "0660"').transform((given, context) => {
  const text = String(given);
  const bits = /^0?[0-7]{3}$/.test(text) ? Number.parseInt(text, 8) : undefined;
  if (bits === undefined) {
    context.addIssue({ code: 'custom', message: 'expected a mode such as "0660"' });
  } else if ((bits & 0o600) !== 0o600 || (bits & ~GROUP_MODE_MAX) !== 0) {
    context.addIssue({
      code: 'custom',
      message: 'expected "0600" or "0660": who may open the socket may do everything',
    });
  }
  return bits ?? z.NEVER;
});

const socket = z.strictObject({
  path: absolutePath.optional(),
  group: groupName.optional(),
  mode: mode.default(GROUP_MODE_MAX),
});

const listen = z.strictObject({
  address: z
    .string()
    .regex(
      /^(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$/,
      'expected address and port, e.g. 10.0.0.1:7443',
    )
    .refine(
      (text) => !(Number(text.slice(text.lastIndexOf(':') + 1)) > 65_535),
      'expected a port up to 65535',
    ),
  certificate: absolutePath,
  key: absolutePath,
  clientCa: absolutePath.optional(),
});

const LOG_LEVELS = ['debug', 'info', 'warn', 'error'] as const;

/** Left out means: as docs/host-configuration.md says. A test compares the keys. */
export const hostConfigSchema = z.strictObject({
  state: absolutePath.optional(),
  runDirectory: absolutePath.optional(),
  memoryDirectory: absolutePath.optional(),
  cacheDirectory: absolutePath.optional(),
  socket: socket.prefault({}),
  listen: listen.optional(),
  log: z.strictObject({ level: z.enum(LOG_LEVELS).default('info') }).prefault({}),
  keepers: z.strictObject({ start: z.enum(['auto', 'direct', 'systemd']).default('auto') }).prefault({}),
  events: z
    .strictObject({
      retentionDays: z.int().min(1).max(36_500).default(365),
      retentionMax: z.int().min(1000).max(100_000_000).default(100_000),
    })
    .prefault({}),
  reconcile: z.strictObject({ intervalMs: z.int().min(100).max(600_000).default(5000) }).prefault({}),
  telemetry: telemetrySchema.prefault({}),
});

export type HostConfig = z.output<typeof hostConfigSchema>;
