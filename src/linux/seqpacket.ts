import { closeSync } from 'node:fs';
import { checked, lastErrno, libc } from './libc.ts';
import { callFailed, LinuxError } from './linux-error.ts';
import { Mapping } from './mapping.ts';

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x40000000;
const MSG_TRUNC = 0x20;
const MSG_CTRUNC = 0x08;

/** Layout of the scratch page of a receiver: struct msghdr, struct iovec, control buffer, message. */
const IOVEC_AT = 64;
const CONTROL_AT = 128;
const CONTROL_BYTES = 256;
const MESSAGE_AT = CONTROL_AT + CONTROL_BYTES;
const MESSAGE_BYTES = 4096 - MESSAGE_AT;
const CMSGHDR_BYTES = 16;

type Received =
  /** The caller closes `fds`. */
  | { readonly kind: 'message'; readonly bytes: Uint8Array; readonly fds: readonly number[] }
  | { readonly kind: 'empty' }
  | { readonly kind: 'closed' };

/** Two ends of a connection that keeps messages apart; each message arrives whole and in order. */
export function seqpacketPair(): { readonly ours: SeqpacketSocket; readonly theirFd: number } {
  const fds = new Int32Array(2);
  checked(
    'socketpair',
    libc.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, new Uint8Array(fds.buffer)),
  );
  return { ours: new SeqpacketSocket(fds[0] ?? -1), theirFd: fds[1] ?? -1 };
}

/** A SOCK_SEQPACKET socket that receives messages of up to 3712 bytes with up to 60 descriptors. Owns `fd`. */
export class SeqpacketSocket implements Disposable {
  readonly fd: number;
  // Fixed memory: the kernel follows the addresses in struct msghdr.
  readonly #scratch = Mapping.anonymous(4096);
  #disposed = false;

  constructor(fd: number) {
    this.fd = fd;
  }

  /** Takes the next message if there is one; never waits. */
  receive(): Received {
    this.#prepare();
    const count = libc.recvmsg(this.fd, this.#scratch.address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (count === -1) {
      const errno = lastErrno();
      if (errno === 'EAGAIN' || errno === 'EINTR') return { kind: 'empty' };
      if (errno === 'ECONNRESET') return { kind: 'closed' };
      throw callFailed('recvmsg', errno);
    }
    const fds = this.#takeFds();
    const flags = this.#header().getInt32(48, true);
    if ((flags & (MSG_TRUNC | MSG_CTRUNC)) !== 0) {
      for (const fd of fds) closeSync(fd);
      throw new LinuxError('LINUX_MESSAGE_CUT', 'a message was longer than agreed', {
        call: 'recvmsg',
        hint: 'The other side speaks another version: restart it from the same release.',
      });
    }
    // Nobody sends empty messages, so nothing received means that the other side closed.
    if (count === 0) return { kind: 'closed' };
    return { kind: 'message', bytes: this.#scratch.bytes.slice(MESSAGE_AT, MESSAGE_AT + count), fds };
  }

  #header(): DataView {
    return new DataView(this.#scratch.bytes.buffer);
  }

  /** struct msghdr: name, namelen, iov, iovlen, control, controllen, flags. */
  #prepare(): void {
    const header = this.#header();
    const at = this.#scratch.address;
    const fields = [0, 0, at + IOVEC_AT, 1, at + CONTROL_AT, CONTROL_BYTES, 0];
    fields.push(0, at + MESSAGE_AT, MESSAGE_BYTES); // up to IOVEC_AT, then struct iovec
    for (const [index, value] of fields.entries()) header.setBigUint64(index * 8, BigInt(value), true);
  }

  /** struct cmsghdr: length with itself, level, type, and then the descriptors. */
  #takeFds(): number[] {
    const header = this.#header();
    const controlBytes = Number(header.getBigUint64(40, true));
    const fds: number[] = [];
    for (let at = 0; at + CMSGHDR_BYTES <= controlBytes; ) {
      const length = Number(header.getBigUint64(CONTROL_AT + at, true));
      const level = header.getInt32(CONTROL_AT + at + 8, true);
      const type = header.getInt32(CONTROL_AT + at + 12, true);
      if (level === SOL_SOCKET && type === SCM_RIGHTS) {
        for (let fdAt = CMSGHDR_BYTES; fdAt < length; fdAt += 4) {
          fds.push(header.getInt32(CONTROL_AT + at + fdAt, true));
        }
      }
      at += Math.ceil(Math.max(length, CMSGHDR_BYTES) / 8) * 8;
    }
    return fds;
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#scratch[Symbol.dispose]();
    closeSync(this.fd);
  }
}
