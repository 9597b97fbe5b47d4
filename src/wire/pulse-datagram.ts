import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';

/** Who sends: one side must not take its own words, thrown back at it, for those of the other. */
export type PulseSide = 'primary' | 'shadow';

/** One heartbeat. Times in milliseconds, each by the clock of who wrote it down. */
export interface Pulse {
  readonly path: number;
  /** Which start of the sender; a later one has a greater number. */
  readonly run: number;
  readonly sequence: number;
  readonly sentMs: number;
  /** `sentMs` of the newest pulse that was heard on this path, and for how long it had been here; undefined before that. */
  readonly echo: { readonly sentMs: number; readonly heldMs: number } | undefined;
}

/**
 * little endian: u32 magic, u8 side, u8 path, u16 zero, f64 run, f64 sequence, f64 sent, f64 echo or NaN, f64 held, then
 * the first 16 bytes of HMAC-SHA-256 over all of that (RFC 2104, section 5 on truncation).
 */
const MAGIC = 0x31505355;
const SIDES: readonly PulseSide[] = ['primary', 'shadow'];
const BODY_BYTES = 48;
const MAC_BYTES = 16;
export const PULSE_BYTES = BODY_BYTES + MAC_BYTES;
const KEY_BYTES = 32;

/** For one link between two keepers, which carries it from the one to the other. */
export function newPulseKey(): Buffer {
  return randomBytes(KEY_BYTES);
}

export function encodePulse(pulse: Pulse, { key, side }: { key: Uint8Array; side: PulseSide }): Buffer {
  const datagram = Buffer.alloc(PULSE_BYTES);
  datagram.writeUInt32LE(MAGIC, 0);
  datagram.writeUInt8(SIDES.indexOf(side), 4);
  datagram.writeUInt8(pulse.path, 5);
  datagram.writeDoubleLE(pulse.run, 8);
  datagram.writeDoubleLE(pulse.sequence, 16);
  datagram.writeDoubleLE(pulse.sentMs, 24);
  datagram.writeDoubleLE(pulse.echo?.sentMs ?? Number.NaN, 32);
  datagram.writeDoubleLE(pulse.echo?.heldMs ?? 0, 40);
  macOf(datagram, key).copy(datagram, BODY_BYTES);
  return datagram;
}

/** Undefined for whatever does not come from the other side of this very link. */
export function decodePulse(
  datagram: Uint8Array,
  { key, from }: { key: Uint8Array; from: PulseSide },
): Pulse | undefined {
  if (datagram.length !== PULSE_BYTES) return undefined;
  const bytes = Buffer.from(datagram.buffer, datagram.byteOffset, datagram.length);
  if (!timingSafeEqual(macOf(bytes, key), bytes.subarray(BODY_BYTES))) return undefined;
  if (bytes.readUInt32LE(0) !== MAGIC || bytes.readUInt8(4) !== SIDES.indexOf(from)) return undefined;
  const echoMs = bytes.readDoubleLE(32);
  return {
    path: bytes.readUInt8(5),
    run: bytes.readDoubleLE(8),
    sequence: bytes.readDoubleLE(16),
    sentMs: bytes.readDoubleLE(24),
    echo: Number.isNaN(echoMs) ? undefined : { sentMs: echoMs, heldMs: bytes.readDoubleLE(40) },
  };
}

function macOf(datagram: Buffer, key: Uint8Array): Buffer {
  return createHmac('sha256', key).update(datagram.subarray(0, BODY_BYTES)).digest().subarray(0, MAC_BYTES);
}
