import { UnderstudyError } from '../base/errors.ts';

export type LeaseErrorCode = 'LEASE_STORE_AWAY' | 'LEASE_RECORD_FOREIGN';

/** It is not known who may act. After LEASE_STORE_AWAY a change that was asked for may or may not have happened. */
export class LeaseError extends UnderstudyError<LeaseErrorCode> {}
