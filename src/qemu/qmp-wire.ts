import type { Trace } from '../base/trace.ts';
import { MIB } from '../base/units.ts';
import { QemuError } from './qemu-error.ts';

/** One JSON object of the QEMU Machine Protocol (QEMU docs/interop/qmp-spec). */
export type QmpMessage = Readonly<Record<string, unknown>>;

/** The longest answer we ask for is far below; more is no QEMU. */
const LINE_BYTES_MAX = 4 * MIB;
const NEWLINE = 0x0a;
const EXCERPT_CHARS = 80;

/** Splits what arrives on a QMP socket, however it was cut on the way, into its JSON objects, one a line. */
export class QmpParser {
  readonly #onMessage: (message: QmpMessage) => void;
  readonly #lineBytesMax: number;
  /** Pieces of a line whose end has not arrived. */
  #pieces: Buffer[] = [];
  #pieceBytes = 0;

  constructor(onMessage: (message: QmpMessage) => void, { lineBytesMax = LINE_BYTES_MAX } = {}) {
    this.#onMessage = onMessage;
    this.#lineBytesMax = lineBytesMax;
  }

  /** @throws {QemuError} QMP_GARBAGE; nothing that follows can be trusted then. */
  push(chunk: Buffer): void {
    let start = 0;
    for (let end = chunk.indexOf(NEWLINE); end >= 0; end = chunk.indexOf(NEWLINE, start)) {
      this.#line(chunk.subarray(start, end));
      start = end + 1;
    }
    if (start < chunk.length) this.#keep(chunk.subarray(start));
  }

  #line(end: Buffer): void {
    let line = end;
    if (this.#pieces.length > 0) {
      this.#keep(end);
      line = Buffer.concat(this.#pieces, this.#pieceBytes);
      this.#pieces = [];
      this.#pieceBytes = 0;
    }
    this.#onMessage(parseLine(line.toString('utf8')));
  }

  #keep(piece: Buffer): void {
    this.#pieces.push(piece);
    this.#pieceBytes += piece.length;
    if (this.#pieceBytes > this.#lineBytesMax)
      throw garbage(`a line of more than ${this.#lineBytesMax} bytes`);
  }
}

/**
 * How a command is told from others: a number, and for one that is part of a request also that request's trace. QEMU
 * gives it back as it got it, and does not look into it.
 */
export type QmpId = number | `${number}/${string}`;

export function qmpId(number: number, trace: Trace | undefined): QmpId {
  return trace === undefined ? number : `${number}/${trace}`;
}

/** The number in an id that QEMU gave back; undefined for what is no id of ours. */
export function numberOf(id: unknown): number | undefined {
  if (typeof id === 'number') return id;
  const digits = typeof id === 'string' ? /^(\d{1,15})\//.exec(id)?.[1] : undefined;
  return digits === undefined ? undefined : Number(digits);
}

export function encodeCommand(command: string, args: QmpMessage | undefined, id: QmpId): string {
  return `${JSON.stringify({ execute: command, arguments: args, id })}\r\n`;
}

export function garbage(what: string, cause?: unknown): QemuError {
  return new QemuError('QMP_GARBAGE', `the peer on the QMP socket is no QEMU: ${what}`, {
    hint: 'Look for another program that uses this socket.',
    cause,
  });
}

function parseLine(line: string): QmpMessage {
  let message: unknown;
  try {
    message = JSON.parse(line);
  } catch (cause) {
    throw garbage(`it sent ${JSON.stringify(line.slice(0, EXCERPT_CHARS))}`, cause);
  }
  if (typeof message !== 'object' || message === null || Array.isArray(message)) {
    throw garbage(`it sent ${JSON.stringify(line.slice(0, EXCERPT_CHARS))}`);
  }
  return message as QmpMessage;
}
