/**
 * What the store says of one VM. The record is written by compare-and-swap on its revision only, so each writer knows
 * exactly what its write follows.
 */
export interface LeaseRecord {
  /** Grows with every write that lets a host release what no other host holds. A token has one holder, ever. */
  readonly token: number;
  /** The host that may act. */
  readonly holder: string;
  /**
   * `in-sync`: the holder releases nothing that the shadow has not acknowledged; no expiry.
   * `alone`: it releases everything; the right ends when it is not renewed.
   * `ended`: the VM has ended, by itself or because somebody said so. Nobody starts it until somebody says so.
   */
  readonly mode: 'in-sync' | 'alone' | 'ended';
  readonly shadow: LeaseShadow | undefined;
  /**
   * The holder has the VM's state on disk, or is about to, saved under this token: until it is used or given up there is
   * nothing else to go on from. Gone with the first record of another holder.
   */
  readonly suspended?: number | undefined;
}

/** What a record is to say of such a state: what the one before said, that there is one, or that there is none. */
export type SavedWord = 'as-before' | 'kept' | 'gone';

export interface LeaseShadow {
  readonly host: string;
  /** Which copy of the VM it is about: a number that the primary gives out anew for every synchronisation. */
  readonly copy: number;
  readonly state: 'fresh' | 'stale';
}

/** The record as it was read. Revision 0 means that there is none yet. */
export interface StoredLease {
  readonly record: LeaseRecord | undefined;
  readonly revision: number;
  /** Whether the right of a holder that is alone has not run out yet, as the store counts. */
  readonly isHeld: boolean;
  /** Of the write that began the hold, or renewed it last: who sees it grow knows that the holder lives. */
  readonly holdRevision?: number | undefined;
}

export type SwapOutcome =
  | { readonly kind: 'swapped'; readonly revision: number }
  /** Something else is there: this write did not happen now, but an earlier try of the same may have. */
  | { readonly kind: 'lost'; readonly stored: StoredLease }
  /** No answer in time: it happened, or did not, or will yet. */
  | { readonly kind: 'unknown' }
  /** It never left this host. */
  | { readonly kind: 'unreachable' };

export function isSameRecord(one: LeaseRecord | undefined, other: LeaseRecord): boolean {
  return (
    one !== undefined &&
    one.token === other.token &&
    one.holder === other.holder &&
    one.mode === other.mode &&
    one.suspended === other.suspended &&
    one.shadow?.host === other.shadow?.host &&
    one.shadow?.copy === other.shadow?.copy &&
    one.shadow?.state === other.shadow?.state
  );
}

/** Whether the shadow on host `self` that holds this copy may take the right of the primary. */
export function isTakeable(
  record: LeaseRecord | undefined,
  { self, copy }: { self: string; copy: number },
): boolean {
  return (
    record !== undefined &&
    record.mode === 'in-sync' &&
    record.holder !== self &&
    record.shadow?.host === self &&
    record.shadow.state === 'fresh' &&
    record.shadow.copy === copy
  );
}

/** Whether host `self`, which has nothing of this VM, is on record as a shadow that could take over. */
export function isCountedOn(record: LeaseRecord | undefined, self: string): boolean {
  return record?.mode === 'in-sync' && record.shadow?.host === self && record.shadow.state === 'fresh';
}

/**
 * Whether a host with no state of the VM may boot it anew: `never` while a fresh shadow could go on, or while a
 * holder elsewhere may still be acting.
 */
export function coldStart(
  { record, isHeld }: StoredLease,
  host: { self: string; provenDeadToken: number | undefined; isStartWanted: boolean },
): 'never' | 'if-unheld' | 'at-once' {
  const { self, provenDeadToken, isStartWanted } = host;
  if (record === undefined) return 'at-once';
  if (isSuspendedElsewhere(record, self) && provenDeadToken !== record.token) return 'never';
  if (record.mode === 'ended') return isStartWanted ? 'at-once' : 'never';
  // Whoever proved it has seen that the other host of this pair is off, and what it did under this token is over.
  if (provenDeadToken === record.token) return 'at-once';
  const hasFreshShadow = record.mode === 'in-sync' && record.shadow?.state === 'fresh';
  if (hasFreshShadow) return 'never';
  // What ran here before is over: this host was started since.
  if (record.holder === self) return 'at-once';
  return record.mode === 'alone' && !isHeld ? 'if-unheld' : 'never';
}

/** Its state lies on the disk of another host: there it is started again. */
export function isSuspendedElsewhere(record: LeaseRecord, self: string): boolean {
  return record.suspended !== undefined && record.holder !== self;
}

/** The record of a VM that has ended. A later start gets a higher token. */
export function recordEnded(record: LeaseRecord, { keepsState }: { keepsState: boolean }): LeaseRecord {
  const { token, holder, suspended } = record;
  const ended: LeaseRecord = { token: token + 1, holder, mode: 'ended', shadow: undefined };
  return keepsState && suspended !== undefined ? { ...ended, suspended } : ended;
}

/** No copy has this number. */
const NO_COPY = 0;

/** The record of a host that is about to act alone, whatever was there before. */
export function recordAlone(
  { record }: StoredLease,
  { self, savedState }: { self: string; savedState: SavedWord },
): LeaseRecord {
  const other = record === undefined || record.holder === self ? record?.shadow?.host : record.holder;
  const token = (record?.token ?? 0) + 1;
  const before = record?.holder === self ? record.suspended : undefined;
  const suspended = savedState === 'as-before' ? before : savedState === 'kept' ? token : undefined;
  return {
    token,
    holder: self,
    mode: 'alone',
    ...(suspended !== undefined && { suspended }),
    shadow:
      other === undefined || other === self
        ? undefined
        : {
            host: other,
            copy: record?.shadow?.host === other ? record.shadow.copy : NO_COPY,
            state: 'stale',
          },
  };
}
