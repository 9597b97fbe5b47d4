import { Buffer } from 'node:buffer';

const ETHERNET_BYTES = 14;
const MAC_BYTES = 6;
const SOURCE_AT = 6;
const PROTOCOL_AT = 12;
const ARP = 0x0806;
const RARP = 0x8035;
const IPV6 = 0x86dd;
const ARP_BYTES = 28;
const ARP_SENDER_AT = ETHERNET_BYTES + 14;
/** Hardware is Ethernet, protocol IPv4, with their lengths: RFC 826. */
const ARP_HEAD = [0, 1, 8, 0, 6, 4];
const ICMPV6 = 58;
const ADVERTISEMENT = 136;
const IPV6_AT = ETHERNET_BYTES;
const ICMP_AT = IPV6_AT + 40;
const TARGET_AT = ICMP_AT + 8;
const ADVERTISEMENT_BYTES = 32;
/** All nodes, RFC 4291 section 2.7.1, and the Ethernet address that goes with it, RFC 2464 section 7. */
const ALL_NODES = Buffer.from('ff020000000000000000000000000001', 'hex');
const ALL_NODES_MAC = Buffer.from('333300000001', 'hex');
const BROADCAST = Buffer.alloc(MAC_BYTES, 0xff);
/** A guest may claim as many as it likes. */
const ADDRESSES_MAX = 32;

/**
 * Which addresses a nic's guest has said are its own: by ARP (RFC 826), and by neighbour advertisements (RFC 4861). Sources of
 * packets say nothing: a guest that routes forwards those of others.
 */
export class ClaimedAddresses {
  readonly #mac: Buffer;
  readonly #claimed = new Set<string>();
  readonly #onNew: (() => void) | undefined;

  constructor(
    mac: string,
    options: { readonly known?: readonly string[]; readonly onNew?: () => void } = {},
  ) {
    this.#mac = macBytes(mac);
    for (const address of options.known ?? []) this.#add(address);
    this.#onNew = options.onNew;
  }

  /** A frame of the guest's. Whatever it is, nothing comes of it but a claim. */
  note(frame: Uint8Array): void {
    const address = claimIn(frame, this.#mac);
    if (address !== undefined && this.#add(address)) this.#onNew?.();
  }

  /** In hexadecimal digits: 8 of an IPv4, 32 of an IPv6 address. */
  get all(): readonly string[] {
    return [...this.#claimed];
  }

  #add(address: string): boolean {
    if (this.#claimed.has(address) || !/^(?:[0-9a-f]{8}|[0-9a-f]{32})$/.test(address)) return false;
    // The oldest goes: a guest that was given another address uses the new one.
    if (this.#claimed.size >= ADDRESSES_MAX)
      for (const oldest of this.#claimed) {
        this.#claimed.delete(oldest);
        break;
      }
    this.#claimed.add(address);
    return true;
  }
}

/**
 * What tells a network where a nic is now: RARP, from which switches learn the port, as QEMU sends it after a migration;
 * gratuitous ARP (RFC 5227, section 3) and unsolicited neighbour advertisements (RFC 4861, section 7.2.6) for its addresses.
 */
export function announcementFrames(mac: string, addresses: readonly string[]): Uint8Array[] {
  const own = macBytes(mac);
  const claimed = addresses.map((address) => Buffer.from(address, 'hex'));
  return [
    arpFrame(own, { protocol: RARP, operation: 3, address: Buffer.alloc(4) }),
    ...claimed
      .filter(({ length }) => length === 4)
      .map((address) => arpFrame(own, { protocol: ARP, operation: 1, address })),
    ...claimed.filter(({ length }) => length === 16).map((address) => advertisementFrame(own, address)),
  ];
}

function claimIn(frame: Uint8Array, mac: Buffer): string | undefined {
  const bytes = Buffer.from(frame.buffer, frame.byteOffset, frame.length);
  if (bytes.length < ETHERNET_BYTES || !bytes.subarray(SOURCE_AT, SOURCE_AT + MAC_BYTES).equals(mac))
    return undefined;
  switch (bytes.readUInt16BE(PROTOCOL_AT)) {
    case ARP: {
      if (bytes.length < ETHERNET_BYTES + ARP_BYTES) return undefined;
      const sender = bytes.subarray(ETHERNET_BYTES + 8, ARP_SENDER_AT);
      const address = bytes.subarray(ARP_SENDER_AT, ARP_SENDER_AT + 4);
      // A probe has no sender's address: nobody has it yet.
      return sender.equals(mac) && address.some((byte) => byte !== 0) ? address.toString('hex') : undefined;
    }
    case IPV6: {
      const isAdvertisement =
        bytes.length >= TARGET_AT + 16 && bytes[IPV6_AT + 6] === ICMPV6 && bytes[ICMP_AT] === ADVERTISEMENT;
      return isAdvertisement ? bytes.subarray(TARGET_AT, TARGET_AT + 16).toString('hex') : undefined;
    }
    default:
      return undefined;
  }
}

function ethernet(
  frame: Buffer,
  { to, from, protocol }: { to: Buffer; from: Buffer; protocol: number },
): Buffer {
  to.copy(frame, 0);
  from.copy(frame, SOURCE_AT);
  frame.writeUInt16BE(protocol, PROTOCOL_AT);
  return frame;
}

/** Sender and target are the same, and so are their addresses. */
function arpFrame(
  mac: Buffer,
  { protocol, operation, address }: { protocol: number; operation: number; address: Buffer },
): Uint8Array {
  const frame = ethernet(Buffer.alloc(60), { to: BROADCAST, from: mac, protocol });
  frame.set(ARP_HEAD, ETHERNET_BYTES);
  frame.writeUInt16BE(operation, ETHERNET_BYTES + 6);
  for (const at of [ETHERNET_BYTES + 8, ETHERNET_BYTES + 18]) {
    // Who announces an address asks for it without saying whose it is.
    if (protocol === RARP || at === ETHERNET_BYTES + 8) mac.copy(frame, at);
    address.copy(frame, at + MAC_BYTES);
  }
  return frame;
}

function advertisementFrame(mac: Buffer, address: Buffer): Uint8Array {
  const frame = Buffer.alloc(ICMP_AT + ADVERTISEMENT_BYTES);
  ethernet(frame, { to: ALL_NODES_MAC, from: mac, protocol: IPV6 });
  frame.writeUInt8(0x60, IPV6_AT);
  frame.writeUInt16BE(ADVERTISEMENT_BYTES, IPV6_AT + 4);
  // Neighbour discovery is heeded with a hop limit of 255 only: nothing was forwarded.
  frame.set([ICMPV6, 255], IPV6_AT + 6);
  address.copy(frame, IPV6_AT + 8);
  ALL_NODES.copy(frame, IPV6_AT + 24);
  // Override: entries that others have are to be replaced.
  frame.set([ADVERTISEMENT, 0, 0, 0, 0x20], ICMP_AT);
  address.copy(frame, TARGET_AT);
  // Option: target link-layer address, in units of 8 bytes.
  frame.set([2, 1, ...mac], TARGET_AT + 16);
  frame.writeUInt16BE(checksumOf(frame), ICMP_AT + 2);
  return frame;
}

/** RFC 4443, section 2.3: over a pseudo-header of RFC 8200, section 8.1, and the message. */
function checksumOf(frame: Buffer): number {
  let sum = ADVERTISEMENT_BYTES + ICMPV6;
  for (let at = IPV6_AT + 8; at < frame.length; at += 2) sum += frame.readUInt16BE(at);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}

function macBytes(mac: string): Buffer {
  return Buffer.from(mac.replaceAll(':', ''), 'hex');
}
