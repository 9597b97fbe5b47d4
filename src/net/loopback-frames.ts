const IPV4 = 0x0800;
const IPV6 = 0x86dd;
const PROTOCOL_AT = 12;
/** Behind the Ethernet header: RFC 791 section 3.1, RFC 8200 section 3. */
const IPV4_DESTINATION_AT = 30;
const IPV6_DESTINATION_AT = 38;
const IPV6_MAPPED_PREFIX_BYTES = 10;

/**
 * Whether a frame is for an address that means this machine itself to whoever opens a socket for it, as passt does:
 * 127.0.0.0/8, and 0.0.0.0, which Linux connects to the loopback; ::1, :: and all else below ::/80, where the IPv6
 * forms of IPv4 addresses lie. Such a frame has no business on a wire (RFC 1122 section 3.2.1.3, RFC 4291 section 2.5.3);
 * but a guest sends what it likes.
 */
export function isForLoopback(frame: Uint8Array): boolean {
  const protocol = ((frame[PROTOCOL_AT] ?? 0) << 8) | (frame[PROTOCOL_AT + 1] ?? 0);
  if (protocol === IPV4) return [0, 127].includes(frame[IPV4_DESTINATION_AT] ?? 0);
  if (protocol !== IPV6) return false;
  const destination = frame.subarray(IPV6_DESTINATION_AT, IPV6_DESTINATION_AT + IPV6_MAPPED_PREFIX_BYTES);
  return destination.every((byte) => byte === 0);
}
