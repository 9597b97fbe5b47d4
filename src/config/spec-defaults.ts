import { z } from 'zod';
import { clockSchema, shadowSchema } from './vm-spec-schema.ts';

type Plain = Readonly<Record<string, unknown>>;

/** A part of a specification that says as little as it likes, and stays as it was said. */
function partOf(schema: z.ZodType) {
  return z.record(z.string(), z.unknown()).superRefine((part, context) => {
    const { error } = schema.safeParse(part);
    for (const { path, message } of error?.issues ?? []) context.addIssue({ code: 'custom', path, message });
  });
}

/** What a specification says where it says nothing itself. */
export const specDefaultsSchema = z
  .strictObject({ shadow: partOf(shadowSchema).optional(), clock: partOf(clockSchema).optional() })
  .meta({
    id: 'SpecDefaults',
    description: 'Fields of `shadow` and `clock` as a VM specification has them.',
  });

export type SpecDefaults = z.output<typeof specDefaultsSchema>;

/** `value` with what it leaves out. What is no map of fields stays as it is, to be refused as that. */
export function withDefaults(value: unknown, { shadow, clock }: SpecDefaults): unknown {
  if (!isPlain(value)) return value;
  return {
    ...value,
    ...(shadow !== undefined && { shadow: filled(value.shadow, shadow) }),
    ...(clock !== undefined && { clock: filled(value.clock, clock) }),
  };
}

function filled(part: unknown, defaults: Plain): unknown {
  if (part === undefined) return defaults;
  return isPlain(part) ? { ...defaults, ...part } : part;
}

function isPlain(value: unknown): value is Plain {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
