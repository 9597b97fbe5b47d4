import { UnderstudyError } from '../base/errors.ts';

export type HostErrorCode =
  | 'HOST_UNKNOWN'
  | 'HOST_VM_UNKNOWN'
  | 'HOST_VM_EXISTS'
  | 'HOST_VM_CHANGED'
  | 'HOST_NAME_FIXED'
  | 'HOST_VM_STUCK'
  | 'HOST_VM_SUSPENDED'
  | 'HOST_NO_SAVED_STATE'
  | 'HOST_NO_SERIES'
  | 'HOST_NO_TELEMETRY'
  | 'HOST_VM_RUNS'
  | 'HOST_VM_ELSEWHERE'
  | 'HOST_TOKEN_UNKNOWN'
  | 'HOST_TENANT_UNKNOWN'
  | 'HOST_TENANT_EXISTS'
  | 'HOST_TENANT_OWNS_VMS'
  | 'HOST_POLICY_UNKNOWN'
  | 'HOST_POLICY_CHANGED'
  | 'HOST_LIMIT'
  | 'HOST_SPEC_REFUSED'
  | 'HOST_ALREADY_RUNS'
  | 'HOST_GROUP_UNKNOWN'
  | 'HOST_NO_SYSTEMD'
  | 'HOST_STATE_UNREADABLE'
  | 'HOST_STATE_CORRUPT'
  | 'HOST_STATE_NEWER'
  | 'HOST_STATE_MISSING'
  | 'HOST_BACKUP_EXISTS'
  | 'HOST_BACKUP_INVALID'
  | 'HOST_BACKUP_FAILED';

/** What can go wrong in the daemon that owns the VMs of a machine. */
export class HostError extends UnderstudyError<HostErrorCode> {}
