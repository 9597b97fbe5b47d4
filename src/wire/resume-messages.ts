import { misused } from './link-messages.ts';
import type { BodyLimits, Message } from './message-framing.ts';
import type { ResumePoint } from './resume-log.ts';

/** What a link that outlasts its connections says for itself, among the messages of its users. */
export const RESUME_TYPE = { knock: 252, agreed: 253, refused: 254, used: 255 } as const;

const KNOCK_BYTES = 24;
const COUNT_BYTES = 8;
const REASON_BYTES_MAX = 64;
const RESUME_LIMITS: BodyLimits = new Map([
  [RESUME_TYPE.knock, KNOCK_BYTES],
  [RESUME_TYPE.agreed, COUNT_BYTES],
  [RESUME_TYPE.refused, REASON_BYTES_MAX],
  [RESUME_TYPE.used, COUNT_BYTES],
]);

export function withResumeLimits(limits: BodyLimits): BodyLimits {
  return new Map([...limits, ...RESUME_LIMITS]);
}

/** What somebody shows who says to be the other end of a link. The one who waits knows what is right. */
export interface LinkClaim {
  /** Which link: so random that nobody comes upon it. */
  readonly stream: bigint;
  /** Under which right. */
  readonly token: bigint;
}

/** The first message on a new connection: who asks to go on, and how much it has used of what was sent to it. */
export function knockMessage({ stream, token }: LinkClaim, used: bigint): Message {
  const body = Buffer.alloc(KNOCK_BYTES);
  for (const [index, value] of [stream, token, used].entries()) body.writeBigUInt64LE(value, index * 8);
  return { type: RESUME_TYPE.knock, body };
}

/** @throws WireError WIRE_GARBLED */
export function readKnock(body: Uint8Array): { readonly claim: LinkClaim; readonly point: ResumePoint } {
  if (body.length !== KNOCK_BYTES) throw misused('whom it says to be');
  const view = new DataView(body.buffer, body.byteOffset, body.length);
  const at = (offset: number) => view.getBigUint64(offset, true);
  return { claim: { stream: at(0), token: at(8) }, point: { stream: at(0), sequence: at(16) } };
}

/** The answer: this side goes on, and has used so much. Or, while it goes on: nothing before has to be kept. */
export function countMessage(
  type: typeof RESUME_TYPE.agreed | typeof RESUME_TYPE.used,
  used: bigint,
): Message {
  const body = Buffer.alloc(COUNT_BYTES);
  body.writeBigUInt64LE(used, 0);
  return { type, body };
}

/** @throws WireError WIRE_GARBLED */
export function readCount(body: Uint8Array): bigint {
  if (body.length !== COUNT_BYTES) throw misused('a count');
  return new DataView(body.buffer, body.byteOffset, body.length).getBigUint64(0, true);
}

export function refusedMessage(reason: string): Message {
  return { type: RESUME_TYPE.refused, body: Buffer.from(reason) };
}

export function readRefused(body: Uint8Array): string {
  const text = Buffer.from(body).toString('latin1');
  return /^[a-z]{1,20}$/.test(text) ? text : 'no reason that could be read';
}
