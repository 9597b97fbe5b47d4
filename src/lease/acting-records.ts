import { z } from 'zod';
import { LeaseError } from './lease-error.ts';

export const actingRecordSchema = z.object({
  /** Grows each time that the right to act passes on, or is held without the shadow from then on. */
  token: z.int().positive(),
  /** The host that acts, or did last. */
  holder: z.string(),
  /** The keeper that acts there; null when the VM has ended. */
  owner: z.string().nullable(),
  /**
   * `in-sync`: all output waits for the shadow, which may take over at any time. `alone`: the shadow is behind, if there is
   * one, and may not. `released`: nobody acts.
   */
  mode: z.enum(['in-sync', 'alone', 'released']),
  shadow: z.object({ host: z.string(), session: z.string() }).nullable(),
});

/** Who acts as a VM, and who may take over. */
export type ActingRecord = z.infer<typeof actingRecordSchema>;

export interface FoundRecord {
  readonly record: ActingRecord;
  /** Of this version: a swap names the one that it replaces. */
  readonly revision: string;
}

/** The store of all VMs' records, which all hosts share. */
export interface ActingRecords {
  /** The newest one, as of some moment during this call. @throws LeaseError */
  read(vm: string): Promise<FoundRecord | undefined>;
  /**
   * Writes the record if that of `revision` (undefined: none) is still the newest one. @throws LeaseError
   * LEASE_STORE_AWAY: it may or may not have been written
   */
  swap(vm: string, change: { revision: string | undefined; record: ActingRecord }): Promise<boolean>;
  close(): void;
}

/** @throws LeaseError LEASE_RECORD_FOREIGN */
export function parseRecord(text: string, vm: string): ActingRecord {
  try {
    return actingRecordSchema.parse(JSON.parse(text));
  } catch (cause) {
    throw new LeaseError('LEASE_RECORD_FOREIGN', `what is on record about ${vm} cannot be understood`, {
      hint: 'Run the same version of understudy on all hosts.',
      facts: { vm },
      cause,
    });
  }
}
