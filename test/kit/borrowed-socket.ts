import { execFileSync } from 'node:child_process';
import { closeSync, readdirSync, readlinkSync, writeSync } from 'node:fs';
import { checked, libc } from '../../src/linux/libc.ts';

const SYS_PIDFD_OPEN = 434;
const SYS_PIDFD_GETFD = 438;

/** A second descriptor of a socket that another process has open: what is written to it comes from that process. */
export interface BorrowedSocket extends Disposable {
  write(bytes: Uint8Array): void;
}

/** The end that process `pid` has of the connection through the unix socket whose path ends in `pathEnd`. */
export function borrowSocket(pid: number, pathEnd: string): BorrowedSocket {
  const fd = duplicate(pid, descriptorOf(pid, inodesOf(pathEnd)));
  return {
    write: (bytes) => {
      writeSync(fd, bytes);
    },
    [Symbol.dispose]: () => closeSync(fd),
  };
}

/** Inodes of both ends; lines of `ss`: `u_str ESTAB 0 0 PATH INODE PEERPATH PEERINODE`. */
function inodesOf(pathEnd: string): ReadonlySet<string> {
  const lines = execFileSync('ss', ['--unix', '--no-header', 'state', 'established'], { encoding: 'utf8' });
  const fields = lines.split('\n').map((line) => line.trim().split(/\s+/));
  const ends = fields.filter((words) => words.some((word) => word.endsWith(pathEnd)));
  return new Set(ends.flat().filter((word) => /^\d+$/.test(word)));
}

function descriptorOf(pid: number, inodes: ReadonlySet<string>): number {
  const folder = `/proc/${pid}/fd`;
  const found = readdirSync(folder).find((fd) => {
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`${folder}/${fd}`))?.[1];
    return inode !== undefined && inodes.has(inode);
  });
  if (found === undefined) throw new Error(`process ${pid} has none of the sockets ${[...inodes]}`);
  return Number(found);
}

function duplicate(pid: number, fd: number): number {
  const pidfd = checked('pidfd_open', libc.syscall(SYS_PIDFD_OPEN, pid, 0, 0, 0));
  try {
    return checked('pidfd_getfd', libc.syscall(SYS_PIDFD_GETFD, pidfd, fd, 0, 0));
  } finally {
    closeSync(pidfd);
  }
}
