import { UnderstudyError } from '../base/errors.ts';

export type QemuErrorCode =
  | 'QEMU_MISSING'
  | 'QEMU_TOO_OLD'
  | 'QEMU_USER_UNKNOWN'
  | 'QEMU_PATH_TOO_LONG'
  | 'QEMU_UNPROTECTABLE'
  | 'QEMU_ARGUMENT_REFUSED'
  | 'QEMU_START_FAILED'
  | 'QEMU_DISK_IN_USE'
  | 'QEMU_LOAD_FAILED'
  | 'QEMU_FIRMWARE_REFUSED'
  | 'QEMU_NOT_RESUMABLE'
  | 'QEMU_UNKILLABLE'
  | 'QEMU_KVM_UNUSABLE'
  | 'QMP_COMMAND_FAILED'
  | 'QMP_DISCONNECTED'
  | 'QMP_TIMEOUT'
  | 'QMP_GARBAGE';

/**
 * Something went wrong with a QEMU process. The QMP codes tell apart who failed: the command (QEMU lives and
 * refused), the connection (QEMU is gone), time (QEMU hangs) or the protocol (that is no QEMU).
 */
export class QemuError extends UnderstudyError<QemuErrorCode> {}
