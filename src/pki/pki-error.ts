import { UnderstudyError } from '../base/errors.ts';

export type PkiErrorCode =
  | 'PKI_NAME_REFUSED'
  | 'PKI_NAME_TAKEN'
  | 'PKI_NO_CA'
  | 'PKI_INCOMPLETE'
  | 'PKI_FAILED';

/** Certificates of a private CA. */
export class PkiError extends UnderstudyError<PkiErrorCode> {}
