import { join } from 'node:path';
import { QemuError } from './qemu-error.ts';

/** sockaddr_un has 108 bytes for a path and its closing zero. */
const SOCKET_PATH_BYTES_MAX = 107;

/** The files and sockets of one QEMU process. A VM's primary and standby are instances with paths of their own. */
export interface InstancePaths {
  /** Ours alone, whoever QEMU runs as: holds the sockets that we listen on, and the logs. */
  readonly directory: string;
  /**
   * For what QEMU makes by itself; belongs to the user that it runs as. Nothing in it is to be trusted: a file may be
   * a link to something else.
   */
  readonly qemuDirectory: string;
  /** Guest memory; on tmpfs. */
  readonly memory: string;
  /** QEMU listens. */
  readonly qmp: string;
  /** One socket for each nic; we listen. */
  readonly nics: readonly string[];
  /** Serial console; we listen. */
  readonly console: string;
  /** Guest agent channel; we listen. */
  readonly agent: string;
  /** Disks that commit with epochs; we listen. */
  readonly disks: string;
  /** QEMU listens for device state. */
  readonly incoming: string;
  /** Where QEMU saves its device state. On tmpfs, as it is written while the guest stands still. */
  readonly deviceState: string;
  /** Where QEMU puts its firmware for us to read. */
  readonly firmware: string;
  readonly log: string;
}

export interface InstancePathsOptions {
  /** Directory of the VM, e.g. /run/understudy/NAME. */
  readonly runDirectory: string;
  /** A tmpfs, e.g. /dev/shm. */
  readonly memoryDirectory: string;
  readonly vm: string;
  /** Counts the VM's QEMU processes. */
  readonly instance: number;
  readonly nicCount: number;
}

/** @throws {QemuError} QEMU_PATH_TOO_LONG when a socket's path would not fit */
export function instancePaths(options: InstancePathsOptions): InstancePaths {
  const { runDirectory, memoryDirectory, vm, instance, nicCount } = options;
  const directory = join(runDirectory, String(instance));
  const qemuDirectory = join(directory, 'qemu');
  const socket = (name: string) => withinSocketLimit(join(directory, name));
  const inMemory = join(memoryDirectory, `us-${vm}-${instance}`);
  return {
    directory,
    qemuDirectory,
    memory: `${inMemory}.ram`,
    qmp: socket('qemu/qmp'),
    nics: Array.from({ length: nicCount }, (_, index) => socket(`nic${index}`)),
    console: socket('console'),
    agent: socket('agent'),
    disks: socket('disks'),
    incoming: socket('qemu/incoming'),
    deviceState: `${inMemory}.state`,
    firmware: join(qemuDirectory, 'firmware'),
    log: join(directory, 'qemu.log'),
  };
}

function withinSocketLimit(path: string): string {
  const bytes = Buffer.byteLength(path);
  if (bytes <= SOCKET_PATH_BYTES_MAX) return path;
  throw new QemuError(
    'QEMU_PATH_TOO_LONG',
    `${path} has ${bytes} bytes; a socket takes ${SOCKET_PATH_BYTES_MAX}`,
    {
      hint: 'Choose a shorter run directory.',
      facts: { path, bytes },
    },
  );
}
