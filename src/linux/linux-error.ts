import { type ErrorDetails, UnderstudyError } from '../base/errors.ts';

type LinuxErrorCode =
  | 'LINUX_CALL_FAILED'
  | 'LINUX_FILE_ENDED'
  | 'LINUX_MESSAGE_CUT'
  | 'LINUX_CGROUP_LIMIT_REFUSED'
  | 'LINUX_CGROUP_BUSY';

interface LinuxErrorDetails extends ErrorDetails {
  /** The call that failed, by the name of its manual page or what it was for: `ioctl TUNSETIFF`. */
  readonly call: string;
  /** errno by name: `EPERM`. Undefined when the call itself did not fail. */
  readonly errnoName?: string;
}

/** The kernel refused something. `call` and `errnoName` say what and how. */
export class LinuxError extends UnderstudyError<LinuxErrorCode> {
  readonly call: string;
  readonly errnoName: string | undefined;

  constructor(code: LinuxErrorCode, message: string, details: LinuxErrorDetails) {
    const { call, errnoName } = details;
    super(code, message, { ...details, facts: { ...details.facts, call, ...(errnoName && { errnoName }) } });
    this.call = call;
    this.errnoName = errnoName;
  }
}

const HINTS: Readonly<Record<string, string>> = {
  EACCES: 'Run as root, or give this user access to the file or capability named.',
  EPERM: 'Run as root, or give this user the capability that the call needs.',
  EMFILE: 'Raise the limit of open files (ulimit -n).',
  ENOMEM: 'Free memory on this host, or give the VM less.',
  ENOSPC: 'Free space in the file system named.',
  ENOSYS: 'This kernel does not have the call: use a newer one, see `understudy doctor`.',
  ESRCH: 'The process is gone.',
};

export function callFailed(call: string, errnoName: string, details: ErrorDetails = {}): LinuxError {
  const hint = details.hint ?? HINTS[errnoName];
  return new LinuxError('LINUX_CALL_FAILED', `${call}: ${errnoName}`, {
    ...details,
    ...(hint !== undefined && { hint }),
    call,
    errnoName,
  });
}

/** What Node's own file calls throw, told as a LinuxError; anything else is rethrown as it is. */
export function fromNodeError(call: string, thrown: unknown, details: ErrorDetails = {}): LinuxError {
  const code = errnoNameOf(thrown);
  if (code === undefined) throw thrown;
  return callFailed(call, code, { ...details, cause: thrown });
}

/** The errno name that an error of Node carries: `ENOENT`. */
export function errnoNameOf(thrown: unknown): string | undefined {
  if (!(thrown instanceof Error) || !('code' in thrown)) return undefined;
  return typeof thrown.code === 'string' && /^E[A-Z0-9]+$/.test(thrown.code) ? thrown.code : undefined;
}
