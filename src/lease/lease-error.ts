import { UnderstudyError } from '../base/errors.ts';

export type LeaseErrorCode =
  | 'LEASE_STORE_AWAY'
  | 'LEASE_STORE_REFUSED'
  | 'LEASE_STORE_UNUSABLE'
  | 'LEASE_RECORD_UNREADABLE';

/** The right to act cannot be read or written. */
export class LeaseError extends UnderstudyError<LeaseErrorCode> {}
