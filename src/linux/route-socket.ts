import { closeSync } from 'node:fs';
import { isIPv4 } from 'node:net';
import { assert } from '../base/assert.ts';
import { checked, errnoName, libc } from './libc.ts';
import { callFailed } from './linux-error.ts';
import { inNetns } from './netns.ts';

const AF_INET = 2;
const AF_INET6 = 10;
const AF_NETLINK = 16;
const SOCK_RAW = 3;
const SOCK_CLOEXEC = 0o2000000;
const NETLINK_ROUTE = 0;
const SIOCGIFINDEX = 0x8933;
const IFREQ_BYTES = 40;
/** IFNAMSIZ, with the zero at the end. */
const NAME_BYTES = 16;

/** linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h */
const NLMSG_ERROR = 2;
const NLM_F_REQUEST = 0x01;
const NLM_F_ACK = 0x04;
const NLM_F_EXCL = 0x200;
const NLM_F_CREATE = 0x400;
const RTM_SETLINK = 19;
const RTM_NEWADDR = 20;
const IFLA_ADDRESS = 1;
const IFLA_MASTER = 10;
const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
const IFF_UP = 1;
const HEADER_BYTES = 16;
const ANSWER_BYTES = 4096;

export interface DeviceChange {
  /** `52:54:00:12:34:56` */
  readonly hardwareAddress?: string;
  /** The bridge that it joins, by its index. */
  readonly master?: number;
  readonly up?: true;
}

/**
 * Network devices of one network namespace, set up as `ip` does it but without a process for each step, which takes
 * milliseconds in which a VM that is taken over stands still. The kernel answers before a call returns.
 * All throw LinuxError: `EPERM` without CAP_NET_ADMIN, `ENODEV` for what is not there, …
 */
export class RouteSocket implements Disposable {
  readonly #fd: number;

  constructor({ netns }: { netns?: string | undefined } = {}) {
    const open = () => libc.socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    // It belongs to the namespace in which it was made, whatever that of the thread is later.
    this.#fd = checked('socket AF_NETLINK', netns === undefined ? open() : inNetns(netns, open));
  }

  /** The number of a device in this namespace. */
  indexOf(device: string): number {
    assert(Buffer.byteLength(device) < NAME_BYTES, `a device name has at most 15 bytes: ${device}`);
    const request = Buffer.alloc(IFREQ_BYTES);
    request.write(device);
    checked(`find the device ${device}`, libc.ioctl(this.#fd, SIOCGIFINDEX, request));
    return request.readInt32LE(NAME_BYTES);
  }

  /** All of it in this order; what came before a step that fails stays. */
  change(device: number, { hardwareAddress, master, up }: DeviceChange): void {
    const flags = up === undefined ? 0 : IFF_UP;
    this.#ask(RTM_SETLINK, { what: `set up the device ${device}`, flags: 0 }, [
      // struct ifinfomsg: family, type, index, flags, mask of the flags that change.
      Buffer.from(Uint32Array.of(0, device, flags, flags).buffer),
      ...(hardwareAddress === undefined
        ? []
        : [attribute(IFLA_ADDRESS, Buffer.from(hardwareAddress.replaceAll(':', ''), 'hex'))]),
      ...(master === undefined ? [] : [attribute(IFLA_MASTER, Buffer.from(Uint32Array.of(master).buffer))]),
    ]);
  }

  /** `address`: of either family, with the length of its prefix: `10.77.0.1/24`. */
  addAddress(device: number, address: string): void {
    const [host = '', prefix = ''] = address.split('/');
    const family = isIPv4(host) ? AF_INET : AF_INET6;
    const bytes = Buffer.alloc(family === AF_INET ? 4 : 16);
    const what = `add the address ${address}`;
    if (libc.inetPton(family, host, bytes) !== 1) throw callFailed(what, 'EINVAL');
    this.#ask(RTM_NEWADDR, { what, flags: NLM_F_CREATE | NLM_F_EXCL }, [
      // struct ifaddrmsg: family, length of the prefix, flags, scope, index.
      Buffer.concat([Buffer.of(family, Number(prefix), 0, 0), Buffer.from(Uint32Array.of(device).buffer)]),
      attribute(IFA_LOCAL, bytes),
      attribute(IFA_ADDRESS, bytes),
    ]);
  }

  [Symbol.dispose](): void {
    closeSync(this.#fd);
  }

  #ask(type: number, { what, flags }: { what: string; flags: number }, parts: readonly Buffer[]): void {
    const header = Buffer.alloc(HEADER_BYTES);
    const message = Buffer.concat([header, ...parts]);
    message.writeUInt32LE(message.length, 0);
    message.writeUInt16LE(type, 4);
    message.writeUInt16LE(flags | NLM_F_REQUEST | NLM_F_ACK, 6);
    checked(what, libc.write(this.#fd, message, message.length));
    const answer = Buffer.alloc(ANSWER_BYTES);
    const length = checked(what, libc.read(this.#fd, answer, answer.length));
    assert(
      length >= HEADER_BYTES + 4 && answer.readUInt16LE(4) === NLMSG_ERROR,
      'who asks for an answer gets it',
    );
    const errno = -answer.readInt32LE(HEADER_BYTES);
    if (errno !== 0) throw callFailed(what, errnoName(errno));
  }
}

/** struct rtattr: length with itself, type, and then the value, filled up to whole words. */
function attribute(type: number, value: Uint8Array): Buffer {
  const bytes = 4 + value.length;
  const attribute = Buffer.alloc(Math.ceil(bytes / 4) * 4);
  attribute.writeUInt16LE(bytes, 0);
  attribute.writeUInt16LE(type, 2);
  attribute.set(value, 4);
  return attribute;
}
