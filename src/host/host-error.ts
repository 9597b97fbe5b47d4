import { UnderstudyError } from '../base/errors.ts';

export type HostErrorCode =
  | 'HOST_VM_UNKNOWN'
  | 'HOST_VM_EXISTS'
  | 'HOST_VM_CHANGED'
  | 'HOST_NAME_FIXED'
  | 'HOST_VM_STUCK'
  | 'HOST_ALREADY_RUNS'
  | 'HOST_STATE_UNREADABLE'
  | 'HOST_STATE_CORRUPT'
  | 'HOST_STATE_NEWER';

/** What can go wrong in the daemon that owns the VMs of a machine. */
export class HostError extends UnderstudyError<HostErrorCode> {}
