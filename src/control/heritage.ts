import { isDeepStrictEqual } from 'node:util';
import type { VmSpec } from '../config/vm-spec-schema.ts';
import type { KeeperRecord, RecordedQemu } from './keeper-record.ts';

/** What a killed keeper left of its VM that the next one can go on from. */
export type Heritage =
  | { readonly kind: 'none' }
  /** Memory and staged epochs of a shadow that was in sync: all output had waited for it. `instance` is its number. */
  | { readonly kind: 'shadow'; readonly instance: number }
  /** A QEMU that acted without such a shadow, and stands still: its own state is the only one there is. */
  | ({ readonly kind: 'orphan' } & RecordedQemu);

interface Circumstances {
  /** What the next keeper is to keep; undefined for one that wants to begin anew. */
  readonly spec: VmSpec | undefined;
  readonly bootId: string;
  readonly lives: (process: RecordedQemu['process']) => boolean;
}

/**
 * A shadow in sync comes before the QEMU that acted: what the killed keeper still held of that one's output is in the
 * shadow's epochs, and of a byte stream nobody would send it again.
 * Device state is only understood by a machine that was built in the same way, and memory is gone after a reboot.
 */
export function heritageOf(
  record: KeeperRecord | undefined,
  { spec, bootId, lives }: Circumstances,
): Heritage {
  if (record === undefined || !isHeir(record, { spec, bootId })) return { kind: 'none' };
  if (record.shadow !== null) return { kind: 'shadow', instance: record.shadow };
  if (record.acting !== null && lives(record.acting.process)) return { kind: 'orphan', ...record.acting };
  return { kind: 'none' };
}

/** Whether a keeper of `spec` follows the one that wrote this record. */
export function isHeir(
  record: KeeperRecord,
  { spec, bootId }: Pick<Circumstances, 'spec' | 'bootId'>,
): boolean {
  if (spec === undefined || record.bootId !== bootId || record.failed) return false;
  return isDeepStrictEqual(record.spec, JSON.parse(JSON.stringify(spec)));
}
