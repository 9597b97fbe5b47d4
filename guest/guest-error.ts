import { UnderstudyError } from '../src/base/errors.ts';

type GuestErrorCode =
  | 'GUEST_TOOL_MISSING'
  | 'GUEST_DOWNLOAD_FAILED'
  | 'GUEST_PACKAGE_UNEXPECTED'
  | 'GUEST_COMPILE_FAILED'
  | 'GUEST_CACHE_UNWRITABLE'
  | 'GUEST_BUILD_BUSY';

/** The demo guest cannot be built. */
export class GuestError extends UnderstudyError<GuestErrorCode> {}

/** A package is not what this builder was made for. */
export function unexpectedPackage(message: string, cause?: unknown): GuestError {
  const hint =
    'Delete the guest folder in the cache and build again; the demo guest is made for Debian 12 on x86-64.';
  return new GuestError('GUEST_PACKAGE_UNEXPECTED', message, { hint, cause });
}
