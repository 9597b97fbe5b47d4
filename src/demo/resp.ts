import { MIB } from '../base/units.ts';
import { DemoError } from './demo-error.ts';

/** RESP2, the protocol of Redis: https://redis.io/docs/latest/develop/reference/protocol-spec/ */
export type Reply = string | number | null | RedisErrorReply | readonly Reply[];

/** `-ERR …`: Redis understood and refused. */
export class RedisErrorReply {
  readonly message: string;

  constructor(message: string) {
    this.message = message;
  }
}

const REPLY_BYTES_MAX = 64 * MIB;
const NESTING_MAX = 8;
const CR = 0x0d;
const LF = 0x0a;

/** A command as an array of bulk strings. */
export function encodeCommand(words: readonly string[]): string {
  return `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join('')}`;
}

interface Parsed {
  readonly reply: Reply;
  readonly end: number;
}

/** Cuts a stream of bytes into replies, whatever pieces it comes in. */
export class ReplyDecoder {
  #pending: Buffer = Buffer.alloc(0);

  /** Calls `onReply` for every reply that `chunk` completes. @throws DemoError DEMO_REDIS_GARBLED */
  push(chunk: Uint8Array, onReply: (reply: Reply) => void): void {
    this.#pending = this.#pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#pending, chunk]);
    let start = 0;
    for (;;) {
      const parsed = parseReply(this.#pending, start, 0);
      if (parsed === undefined) break;
      start = parsed.end;
      onReply(parsed.reply);
    }
    this.#pending = this.#pending.subarray(start);
    if (this.#pending.length > REPLY_BYTES_MAX) throw garbled('a reply without an end');
  }
}

/** Undefined while bytes are missing. */
function parseReply(bytes: Buffer, start: number, depth: number): Parsed | undefined {
  const lineEnd = bytes.indexOf(LF, start);
  if (lineEnd === -1) return undefined;
  if (bytes[lineEnd - 1] !== CR || lineEnd - 1 <= start) throw garbled('a line without its type or end');
  const text = bytes.toString('utf8', start + 1, lineEnd - 1);
  const end = lineEnd + 1;
  switch (String.fromCharCode(bytes[start] ?? 0)) {
    case '+':
      return { reply: text, end };
    case '-':
      return { reply: new RedisErrorReply(text), end };
    case ':':
      return { reply: wholeNumber(text), end };
    case '$':
      return parseBulk(bytes, wholeNumber(text), end);
    case '*':
      return parseArray(bytes, { count: wholeNumber(text), start: end, depth });
    default:
      throw garbled('an unknown type of reply');
  }
}

function parseBulk(bytes: Buffer, length: number, start: number): Parsed | undefined {
  if (length === -1) return { reply: null, end: start };
  if (length < 0 || length > REPLY_BYTES_MAX) throw garbled(`a string of ${length} bytes`);
  const end = start + length;
  if (bytes.length < end + 2) return undefined;
  if (bytes[end] !== CR || bytes[end + 1] !== LF) throw garbled('a string longer than announced');
  return { reply: bytes.toString('utf8', start, end), end: end + 2 };
}

function parseArray(
  bytes: Buffer,
  { count, start, depth }: { count: number; start: number; depth: number },
): Parsed | undefined {
  if (count === -1) return { reply: null, end: start };
  if (count < 0 || depth === NESTING_MAX) throw garbled('an array that cannot be');
  const reply: Reply[] = [];
  let end = start;
  for (let index = 0; index < count; index += 1) {
    const element = parseReply(bytes, end, depth + 1);
    if (element === undefined) return undefined;
    reply.push(element.reply);
    end = element.end;
  }
  return { reply, end };
}

function wholeNumber(text: string): number {
  if (!/^-?\d{1,15}$/.test(text)) throw garbled(`${JSON.stringify(text.slice(0, 40))} as a number`);
  return Number(text);
}

function garbled(what: string): DemoError {
  return new DemoError('DEMO_REDIS_GARBLED', `Redis sent ${what}`, {
    hint: 'Something between the client and Redis changed bytes, or what answers is no Redis.',
  });
}
