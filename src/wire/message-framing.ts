import { xxh64 } from '@node-rs/xxhash';
import { assert } from '../base/assert.ts';
import { WireError } from './wire-error.ts';

/** What both sides have to speak. Raised with every change that the other side would misread. */
export const WIRE_VERSION = 1;

/**
 * Header, little endian. Magic and version keep their places for ever, so that hosts of different releases can tell each
 * other which they speak. The header has a checksum of its own: a length is believed only after it.
 */
const MAGIC = 0x5258_5355; // "USXR"
const AT = {
  magic: 0,
  version: 4,
  type: 6,
  flags: 7,
  bodyBytes: 8,
  reserved: 12,
  sequence: 16,
  bodyHash: 24,
  headerHash: 32,
} as const;
const VERSION_END = 6;
export const HEADER_BYTES = 40;
/** So that a body of zeros, or none, does not have the hash that it has elsewhere. */
const SEED = BigInt(MAGIC);
const NOTHING = new Uint8Array(0);

export interface Message {
  /** 0 … 255; which there are, and how long each may be, is the link's and its users' business. */
  readonly type: number;
  /** 0 … 255, free for whoever uses the type. */
  readonly flags?: number;
  /** Counted by whoever uses the type; 0 where nobody does. */
  readonly sequence?: bigint;
  readonly body?: Uint8Array;
}

export interface ReceivedMessage extends Required<Message> {
  readonly body: Uint8Array<ArrayBuffer>;
}

/** Most bytes that the body of a message of each type may have. A type that is not in it does not exist. */
export type BodyLimits = ReadonlyMap<number, number>;

/** The header of a message, to be sent right before its body. The body is not copied. */
export function encodeHeader(message: Message, options: { version?: number } = {}): Buffer {
  const { type, flags = 0, sequence = 0n, body = NOTHING } = message;
  assert(isByte(type) && isByte(flags), `type ${type} and flags ${flags} have a byte each`);
  assert(sequence >= 0n && sequence < 1n << 64n, `sequence ${sequence} has 64 bits`);
  const header = Buffer.alloc(HEADER_BYTES);
  header.writeUInt32LE(MAGIC, AT.magic);
  header.writeUInt16LE(options.version ?? WIRE_VERSION, AT.version);
  header.writeUInt8(type, AT.type);
  header.writeUInt8(flags, AT.flags);
  header.writeUInt32LE(body.length, AT.bodyBytes);
  header.writeBigUInt64LE(sequence, AT.sequence);
  header.writeBigUInt64LE(xxh64(body, SEED), AT.bodyHash);
  header.writeBigUInt64LE(hashOf(header), AT.headerHash);
  return header;
}

/** Header and body in one piece. */
export function encodeMessage(message: Message): Buffer {
  return Buffer.concat([encodeHeader(message), message.body ?? NOTHING]);
}

/**
 * Finds messages in a byte stream, however it is split. Holds at most one message that is not whole; whoever sends a
 * length that is too large is found out before anything is set aside for it. After an error it takes nothing more.
 */
export class MessageDecoder {
  readonly #limits: BodyLimits;
  readonly #version: number;
  readonly #header = Buffer.alloc(HEADER_BYTES);
  #headerFill = 0;
  #body: Uint8Array<ArrayBuffer> | undefined;
  #bodyFill = 0;
  #failure: WireError | undefined;

  constructor({ limits, version = WIRE_VERSION }: { limits: BodyLimits; version?: number }) {
    this.#limits = limits;
    this.#version = version;
  }

  /** Whether the stream may end here. */
  get isBetweenMessages(): boolean {
    return this.#headerFill === 0;
  }

  /** @throws WireError WIRE_GARBLED, WIRE_VERSION */
  push(chunk: Uint8Array, onMessage: (message: ReceivedMessage) => void): void {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      this.#take(chunk, onMessage);
    } catch (thrown) {
      if (thrown instanceof WireError) this.#failure = thrown;
      throw thrown;
    }
  }

  #take(chunk: Uint8Array, onMessage: (message: ReceivedMessage) => void): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#body === undefined) {
        at += this.#fillHeader(chunk.subarray(at));
        if (this.#headerFill < HEADER_BYTES) return;
        this.#body = new Uint8Array(this.#checkedBodyBytes());
        this.#bodyFill = 0;
      }
      const part = chunk.subarray(at, at + this.#body.length - this.#bodyFill);
      this.#body.set(part, this.#bodyFill);
      this.#bodyFill += part.length;
      at += part.length;
      if (this.#bodyFill === this.#body.length) onMessage(this.#finish(this.#body));
    }
  }

  #fillHeader(chunk: Uint8Array): number {
    const part = chunk.subarray(0, HEADER_BYTES - this.#headerFill);
    this.#header.set(part, this.#headerFill);
    const fillBefore = this.#headerFill;
    this.#headerFill += part.length;
    // As early as possible: whoever speaks something else may never send a whole header.
    if (fillBefore < VERSION_END && this.#headerFill >= VERSION_END) this.#checkVersion();
    return part.length;
  }

  #checkVersion(): void {
    if (this.#header.readUInt32LE(AT.magic) !== MAGIC) throw garbled('it does not begin as a message does');
    const theirs = this.#header.readUInt16LE(AT.version);
    if (theirs === this.#version) return;
    throw new WireError(
      'WIRE_VERSION',
      `the other host speaks version ${theirs} between hosts, this one version ${this.#version}`,
      {
        hint: 'Bring both hosts to the same release of Understudy.',
        facts: { ourVersion: this.#version, theirVersion: theirs },
      },
    );
  }

  #checkedBodyBytes(): number {
    const header = this.#header;
    if (header.readBigUInt64LE(AT.headerHash) !== hashOf(header))
      throw garbled('its header does not fit its checksum');
    if (header.readUInt32LE(AT.reserved) !== 0) throw garbled('it uses what is reserved');
    const type = header.readUInt8(AT.type);
    const bodyBytes = header.readUInt32LE(AT.bodyBytes);
    const limitBytes = this.#limits.get(type);
    if (limitBytes === undefined) throw garbled(`there is no type ${type}`);
    if (bodyBytes > limitBytes)
      throw garbled(`${bodyBytes} bytes are more than the ${limitBytes} that type ${type} may have`);
    return bodyBytes;
  }

  #finish(body: Uint8Array<ArrayBuffer>): ReceivedMessage {
    const header = this.#header;
    if (header.readBigUInt64LE(AT.bodyHash) !== xxh64(body, SEED))
      throw garbled('its body does not fit its checksum');
    this.#body = undefined;
    this.#headerFill = 0;
    return {
      type: header.readUInt8(AT.type),
      flags: header.readUInt8(AT.flags),
      sequence: header.readBigUInt64LE(AT.sequence),
      body,
    };
  }
}

function isByte(value: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= 255;
}

function hashOf(header: Buffer): bigint {
  return xxh64(header.subarray(0, AT.headerHash), SEED);
}

function garbled(reason: string): WireError {
  return new WireError('WIRE_GARBLED', `a message between hosts is damaged: ${reason}`, {
    hint: 'Nothing damaged was used, and the link is made anew. If it happens again, check memory and network of both hosts.',
    facts: { reason },
  });
}
