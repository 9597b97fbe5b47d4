import { closeSync, constants, openSync } from 'node:fs';
import { assert } from '../base/assert.ts';
import { checked, libc } from './libc.ts';
import { fromNodeError } from './linux-error.ts';
import { inNetns } from './netns.ts';

const TUNSETIFF = 0x400454ca;
const IFF_TAP = 0x0002;
const IFF_NO_PI = 0x1000;
const IFREQ_BYTES = 40;
/** IFNAMSIZ, with the zero at the end. */
const NAME_BYTES = 16;

/**
 * Creates the TAP device `device`, or attaches to it, in the network namespace `netns` if given. Returns its
 * descriptor: a read or write is one Ethernet frame, reads do not block. The device goes away when the
 * descriptor is closed.
 * @throws LinuxError: `EPERM` without CAP_NET_ADMIN, `EBUSY` when another process holds the device, `ENOENT`
 * without /dev/net/tun.
 */
export function openTap(options: { device: string; netns?: string }): number {
  const { device, netns } = options;
  assert(Buffer.byteLength(device) < NAME_BYTES, `a device name has at most 15 bytes: ${device}`);
  // A TAP belongs to the namespace in which /dev/net/tun was opened.
  const fd = netns === undefined ? openTun() : inNetns(netns, openTun);
  try {
    const request = Buffer.alloc(IFREQ_BYTES);
    request.write(device);
    request.writeInt16LE(IFF_TAP | IFF_NO_PI, NAME_BYTES);
    checked('ioctl TUNSETIFF', libc.ioctl(fd, TUNSETIFF, request), TAP_HINT);
    return fd;
  } catch (thrown) {
    closeSync(fd);
    throw thrown;
  }
}

function openTun(): number {
  try {
    return openSync('/dev/net/tun', constants.O_RDWR | constants.O_NONBLOCK);
  } catch (thrown) {
    throw fromNodeError('open /dev/net/tun', thrown, { hint: TAP_HINT });
  }
}

const TAP_HINT =
  'A TAP needs the tun module and the right to make network devices; where it is not to be had, use the passt uplink.';
