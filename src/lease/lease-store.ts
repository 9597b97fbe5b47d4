import { z } from 'zod';
import { LeaseError } from './lease-error.ts';
import type { LeaseRecord, StoredLease, SwapOutcome } from './lease-record.ts';

/**
 * Where the records are. Its reads are linearizable: they see every write that was answered before. What it says about
 * writes is what lease-decision.ts relies on, so that an outcome that is not certain has to be `unknown`.
 */
export interface LeaseStore extends AsyncDisposable {
  /** @throws LeaseError LEASE_STORE_AWAY, LEASE_STORE_REFUSED, LEASE_RECORD_UNREADABLE */
  read(vm: string): Promise<StoredLease>;
  /**
   * Writes the record if the revision is still the expected one. `alone` begins a hold of the store's TTL, which is not
   * over before that time has passed since the call; other modes end it.
   */
  swap(vm: string, write: LeaseWrite): Promise<SwapOutcome>;
  /**
   * Lets the hold begin anew if it is that of the token and not over.
   * @throws LeaseError LEASE_STORE_AWAY, LEASE_STORE_REFUSED: it may have begun anew, or not
   */
  renew(vm: string, renewal: { token: number }): Promise<'renewed' | 'refused'>;
  /**
   * Calls `changed` when the record or its hold may be another. May call too often, and is late when the store is away:
   * whoever cares reads.
   */
  watch(vm: string, changed: () => void): Disposable;
}

export interface LeaseWrite {
  readonly expectedRevision: number;
  readonly record: LeaseRecord;
  /** Refuse also as long as there is a hold. */
  readonly onlyIfUnheld: boolean;
}

const VM_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

const recordSchema = z.strictObject({
  token: z.int().min(1),
  holder: z.string().min(1).max(255),
  mode: z.enum(['in-sync', 'alone', 'ended']),
  shadow: z
    .strictObject({
      host: z.string().min(1).max(255),
      copy: z.int().min(0),
      state: z.enum(['fresh', 'stale']),
    })
    .optional(),
  suspended: z.int().min(1).optional(),
});

export function writeRecord(record: LeaseRecord): string {
  return JSON.stringify(record);
}

/** @throws LeaseError LEASE_RECORD_UNREADABLE: nobody may act on a record that is not understood */
export function readRecord(vm: string, text: string): LeaseRecord {
  try {
    const { shadow, ...record } = recordSchema.parse(JSON.parse(text));
    return { ...record, shadow };
  } catch (cause) {
    throw new LeaseError('LEASE_RECORD_UNREADABLE', `what the store says of ${vm} is no record of a lease`, {
      hint: 'Something else writes to the store, or a newer release does. Let no host start the VM before that is clear.',
      facts: { vm },
      cause,
    });
  }
}

/** A name that is safe as a part of keys. @throws LeaseError LEASE_STORE_UNUSABLE */
export function checkedName(vm: string): string {
  if (VM_NAME.test(vm)) return vm;
  throw new LeaseError('LEASE_STORE_UNUSABLE', `${JSON.stringify(vm)} cannot be the name of a lease`, {
    hint: 'Names have letters, digits, dots, dashes and underscores, and begin with a letter or digit.',
    facts: { vm },
  });
}
