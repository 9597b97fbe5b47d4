import { closeSync, openSync } from 'node:fs';
import { checked, lastErrno, libc } from './libc.ts';
import { errnoNameOf } from './linux-error.ts';

/** linux/userfaultfd.h, up to Linux 6.8; our headers may be older. */
const UFFDIO_API = 0xc018aa3f;
const USERFAULTFD_IOC_NEW = 0xaa00;
const UFFD_API = 0xaan;
const UFFD_USER_MODE_ONLY = 1;
const O_CLOEXEC = 0o2000000;
const O_NONBLOCK = 0o4000;

const FEATURE_BITS = {
  MISSING_SHMEM: 5n,
  MINOR_SHMEM: 10n,
  WP_HUGETLBFS_SHMEM: 12n,
  WP_UNPOPULATED: 13n,
  WP_ASYNC: 15n,
} as const;

type UserfaultfdFeature = keyof typeof FEATURE_BITS;

/** What may be watched: everything, or only what the process does itself and not what the kernel does for it. */
type UserfaultfdReach = 'full' | 'user-mode-only';

export type UserfaultfdSupport =
  | {
      readonly kind: 'supported';
      readonly reach: UserfaultfdReach;
      readonly features: readonly UserfaultfdFeature[];
    }
  | { readonly kind: 'refused'; readonly errnoName: string };

/**
 * What userfaultfd offers to this user on this kernel. Asynchronous write protection (`WP_ASYNC`) works with
 * either reach; answering faults of KVM needs `full`.
 */
export function probeUserfaultfd(): UserfaultfdSupport {
  const opened = openUserfaultfd();
  if ('errnoName' in opened) return { kind: 'refused', errnoName: opened.errnoName };
  try {
    // struct uffdio_api: api, features, ioctls. Asking for none, the kernel answers with all it has.
    const argument = new BigUint64Array([UFFD_API, 0n, 0n]);
    checked('ioctl UFFDIO_API', libc.ioctl(opened.fd, UFFDIO_API, new Uint8Array(argument.buffer)));
    const offered = argument[1] ?? 0n;
    const names = Object.keys(FEATURE_BITS) as UserfaultfdFeature[];
    const features = names.filter((name) => (offered & (1n << FEATURE_BITS[name])) !== 0n);
    return { kind: 'supported', reach: opened.reach, features };
  } finally {
    closeSync(opened.fd);
  }
}

function openUserfaultfd(): { fd: number; reach: UserfaultfdReach } | { errnoName: string } {
  const number = SYS_USERFAULTFD[process.arch];
  if (number === undefined) return { errnoName: 'ENOSYS' };
  const full = libc.syscall(number, O_CLOEXEC | O_NONBLOCK, 0, 0, 0);
  if (full !== -1) return { fd: full, reach: 'full' };
  const fromDevice = openFromDevice();
  if (fromDevice !== undefined) return { fd: fromDevice, reach: 'full' };
  const userOnly = libc.syscall(number, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY, 0, 0, 0);
  if (userOnly !== -1) return { fd: userOnly, reach: 'user-mode-only' };
  return { errnoName: lastErrno() };
}

/** The device gives the right to everyone who may open it, Linux 6.1. */
function openFromDevice(): number | undefined {
  let device: number;
  try {
    device = openSync('/dev/userfaultfd', 'r+');
  } catch (thrown) {
    if (errnoNameOf(thrown) === undefined) throw thrown;
    return undefined;
  }
  try {
    const fd = libc.ioctlAt(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    return fd === -1 ? undefined : fd;
  } finally {
    closeSync(device);
  }
}

const SYS_USERFAULTFD: Readonly<Record<string, number>> = { x64: 323, arm64: 282 };
