import { type BodyLimits, HEADER_BYTES, type Message } from './message-framing.ts';
import { WireError } from './wire-error.ts';

/** Types of the link itself. Those of its users begin at 16. */
export const LINK_TYPE = { hello: 0, refusal: 1, credit: 2, bye: 3 } as const;
export const USER_TYPE_MIN = 16;

const HELLO_BYTES = 4;
const CREDIT_BYTES = 8;
const REFUSAL_BYTES_MAX = 64;
const WINDOW_BYTES_MAX = 2 ** 31;
const LINK_LIMITS: BodyLimits = new Map([
  [LINK_TYPE.hello, HELLO_BYTES],
  [LINK_TYPE.refusal, REFUSAL_BYTES_MAX],
  [LINK_TYPE.credit, CREDIT_BYTES],
  [LINK_TYPE.bye, 0],
]);

export function withLinkLimits(limits: BodyLimits): BodyLimits {
  return new Map([...LINK_LIMITS, ...limits]);
}

/** Largest message that a user of the link may send, with its header. */
export function largestMessageBytes(limits: BodyLimits): number {
  return HEADER_BYTES + Math.max(0, ...limits.values());
}

/** The first message of both sides: how many bytes of messages may be on their way to whoever sends it. */
export function helloMessage(windowBytes: number): Message {
  const body = Buffer.alloc(HELLO_BYTES);
  body.writeUInt32LE(windowBytes, 0);
  return { type: LINK_TYPE.hello, body };
}

/** @throws WireError WIRE_GARBLED */
export function readHello(body: Uint8Array): { readonly windowBytes: number } {
  const windowBytes = body.length === HELLO_BYTES ? viewOf(body).getUint32(0, true) : 0;
  if (windowBytes === 0 || windowBytes > WINDOW_BYTES_MAX) throw misused('hello');
  return { windowBytes };
}

/** Says how many bytes of messages have been dealt with since the link began, and that its sender lives. */
export function creditMessage(consumedBytes: bigint): Message {
  const body = Buffer.alloc(CREDIT_BYTES);
  body.writeBigUInt64LE(consumedBytes, 0);
  return { type: LINK_TYPE.credit, body };
}

/** @throws WireError WIRE_GARBLED */
export function readCredit(body: Uint8Array): bigint {
  if (body.length !== CREDIT_BYTES) throw misused('credit');
  return viewOf(body).getBigUint64(0, true);
}

/** Tells a host that it is not welcome, by the code of the error. */
export function refusalMessage(code: string): Message {
  return { type: LINK_TYPE.refusal, body: Buffer.from(code) };
}

export function readRefusal(body: Uint8Array): WireError {
  const text = Buffer.from(body).toString('latin1');
  const reason = /^WIRE_[A-Z_]+$/.test(text) ? text : 'no reason that could be read';
  return new WireError('WIRE_REFUSED', `the other host refuses this one: ${reason}`, {
    hint: 'See docs/errors.md for that code: it is about the certificate or name that this host shows.',
    facts: { reason },
  });
}

export function misused(what: string): WireError {
  return new WireError('WIRE_GARBLED', `the other host sends what makes no sense: ${what}`, {
    hint: 'Bring both hosts to the same release of Understudy.',
    facts: { reason: what },
  });
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}
