import { z } from 'zod';
import type { Role } from './principal.ts';
import { vmNameSchema } from './resources.ts';

/** A row of the table of routes. */
export interface Route {
  /** The least that a caller has to be. Who declares a VM names files and programs of the host: that is for admins. */
  readonly role: Role | 'anyone';
  /** Not for those who belong to a tenant. */
  readonly hostOnly?: boolean;
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE';
  /** As in OpenAPI: `/v1/vms/{name}`. */
  readonly path: string;
  readonly summary: string;
  readonly params?: z.ZodObject;
  readonly query?: z.ZodObject;
  readonly headers?: z.ZodObject;
  readonly body?: z.ZodType;
  readonly status: 101 | 200 | 201 | 204;
  readonly mediaType?: 'text/event-stream' | 'text/plain';
  readonly answer: z.ZodType;
  /** Other than usual; milliseconds. */
  readonly deadlineMs?: number;
}

/** A number in a query or header: digits, nothing else that JavaScript would take for a number. */
export function decimal<Schema extends z.ZodType>(schema: Schema) {
  return z.preprocess(
    (text) => (typeof text === 'string' && /^\d{1,15}$/.test(text) ? Number(text) : text),
    schema,
  );
}

export const limit = decimal(z.int().min(1).max(1000))
  .default(100)
  .meta({ description: 'At most so many, 100 unless told otherwise.' });
export const afterEvent = decimal(z.int().nonnegative())
  .default(0)
  .meta({ description: 'Number of an event.' });
export const ofVm = vmNameSchema.optional().meta({ description: 'Only what concerns this VM.' });

export const oneVm = z.strictObject({ name: vmNameSchema });
export const nothing = z.null().meta({ description: 'Done.' });

export const entityTag = z
  .string()
  .regex(/^"[1-9]\d{0,14}"$/, 'expected one entity tag as ETag gave it')
  .transform((tag) => Number(tag.slice(1, -1)))
  .meta({ description: 'The ETag of the version that was read.' });

export const keyed = z.object({
  'idempotency-key': z
    .string()
    .regex(/^[\x21-\x7e]{1,128}$/, 'expected 1 to 128 visible characters')
    .optional()
    .meta({ description: 'A repeated request with the same key gets the first answer and does nothing.' }),
});
