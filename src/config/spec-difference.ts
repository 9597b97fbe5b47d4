import { isDeepStrictEqual } from 'node:util';
import type { VmSpec } from './vm-spec-schema.ts';

export interface SpecDifference {
  /** `boot.cmdline`, `nics.0.mac` */
  readonly field: string;
  /** Undefined where the field is not there. */
  readonly before: unknown;
  readonly after: unknown;
}

/** Fields in which two specifications differ, with defaults filled in: what is written otherwise and means the same is none. */
export function specDifferences(before: VmSpec, after: VmSpec): SpecDifference[] {
  return differences(plain(before), plain(after), '');
}

function differences(before: unknown, after: unknown, field: string): SpecDifference[] {
  if (isDeepStrictEqual(before, after)) return [];
  if (!isContainer(before) || !isContainer(after)) return [{ field, before, after }];
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  return names.flatMap((name) =>
    differences(before[name], after[name], field === '' ? name : `${field}.${name}`),
  );
}

function isContainer(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

/** Without fields that are there and undefined. */
function plain(spec: VmSpec): unknown {
  return JSON.parse(JSON.stringify(spec));
}
