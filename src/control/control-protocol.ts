import { z } from 'zod';
import { isTrace } from '../base/trace.ts';
import { KIB, MIB } from '../base/units.ts';
import { TELEMETRY_INTERVAL_MS_MAX, TELEMETRY_INTERVAL_MS_MIN } from '../config/vm-telemetry-schema.ts';
import { limitsOrderSchema } from './limits-status.ts';
import { sampleSchema } from './telemetry-status.ts';

/**
 * What is spoken on a keeper's control socket: JSON, one message a line, one request at a time.
 *
 *   → {"id": 1, "method": "status"}
 *   ← {"id": 1, "ok": true, "result": {…}}                 or {"id": 1, "ok": false, "error": {"code", …}}
 *   → {"id": 2, "method": "events", "params": {"since": 0, "follow": true}}
 *   ← {"id": 2, "event": {…}} …                            the answer follows the last event
 *   → {"id": 3, "method": "samples"}
 *   ← {"id": 3, "sample": {…}, "lost": 0} …           until the VM ends; `lost`: so many before it were not taken in time
 *   → {"id": 4, "method": "console"}
 *   ← {"id": 4, "ok": true, "result": null}                from here on raw bytes both ways
 *
 * `promote` and `stop` may carry a `trace`, the id of the request that they are part of: logs, events and QMP commands
 * that follow from them carry it too.
 */
export const REQUEST_BYTES_MAX = 4 * KIB;
export const ANSWER_BYTES_MAX = MIB;

const id = z.int().nonnegative();
const trace = z.string().refine(isTrace, 'expected 1 to 64 of A-Z a-z 0-9 _ . : -').optional();

const absolutePath = z.string().startsWith('/').max(1024);

export const requestSchema = z.discriminatedUnion('method', [
  z.strictObject({ id, method: z.literal('status') }),
  z.strictObject({ id, method: z.literal('metrics') }),
  z.strictObject({
    id,
    method: z.literal('events'),
    params: z.strictObject({
      /** Events after this number. */
      since: z.int().nonnegative().default(0),
      /** Go on with the events to come, until the VM ends. */
      follow: z.boolean().default(false),
    }),
  }),
  z.strictObject({ id, trace, method: z.literal('promote') }),
  z.strictObject({ id, trace, method: z.literal('protect') }),
  z.strictObject({ id, trace, method: z.literal('unprotect') }),
  z.strictObject({
    id,
    trace,
    method: z.literal('place'),
    params: z.strictObject({ host: z.string().max(64).nullable() }),
  }),
  z.strictObject({ id, trace, method: z.literal('test-failover') }),
  z.strictObject({
    id,
    trace,
    method: z.literal('snapshot'),
    params: z.strictObject({
      path: absolutePath,
      keyFile: absolutePath.optional(),
      pause: z.boolean().optional(),
    }),
  }),
  z.strictObject({
    id,
    method: z.literal('call-off-snapshot'),
    params: z.strictObject({ path: absolutePath }),
  }),
  z.strictObject({
    id,
    trace,
    method: z.literal('stop'),
    params: z.strictObject({
      graceful: z.boolean(),
      termination: z.enum(['remove', 'suspend', 'snapshot']).optional(),
    }),
  }),
  z.strictObject({
    id,
    method: z.literal('telemetry'),
    params: z.strictObject({
      /** Samples are taken that often from now on. */
      intervalMs: z.number().min(TELEMETRY_INTERVAL_MS_MIN).max(TELEMETRY_INTERVAL_MS_MAX).optional(),
    }),
  }),
  z.strictObject({ id, trace, method: z.literal('limits'), params: limitsOrderSchema }),
  z.strictObject({ id, method: z.literal('samples') }),
  z.strictObject({ id, method: z.literal('console') }),
]);

export type Request = z.output<typeof requestSchema>;

const errorSchema = z.object({ code: z.string(), message: z.string(), hint: z.string().optional() });

/** A keeper of another version may say more: fields that are not known here are passed over. */
export const answerSchema = z.union([
  z.object({ id, ok: z.literal(true), result: z.unknown() }),
  z.object({ id: id.nullable(), ok: z.literal(false), error: errorSchema }),
  z.object({
    id,
    event: z.object({
      seq: z.int(),
      time: z.string(),
      vm: z.string(),
      kind: z.string(),
      // A keeper of an older version does not say.
      token: z.number().default(0),
      epoch: z.number(),
      facts: z.record(z.string(), z.unknown()),
    }),
  }),
  z.object({ id, sample: sampleSchema, lost: z.int().nonnegative() }),
]);

export type Answer = z.output<typeof answerSchema>;
export type AnswerError = z.output<typeof errorSchema>;

export function encodeLine(message: Request | Answer): string {
  return `${JSON.stringify(message)}\n`;
}

/** Undefined for what is no JSON. */
export function decodeLine(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}

/** Cuts a stream of bytes into lines, whatever pieces it comes in. */
export class LineSplitter {
  readonly #bytesMax: number;
  #pending: Buffer = Buffer.alloc(0);

  /** A line longer than `bytesMax` is `too-long`, and so is everything after it. */
  constructor({ bytesMax }: { bytesMax: number }) {
    this.#bytesMax = bytesMax;
  }

  push(bytes: Uint8Array): void {
    this.#pending = Buffer.concat([this.#pending, bytes]);
  }

  /** The next line without its end. */
  next(): { kind: 'line'; text: string } | { kind: 'none' } | { kind: 'too-long' } {
    const end = this.#pending.indexOf(0x0a);
    if ((end === -1 ? this.#pending.length : end) > this.#bytesMax) return { kind: 'too-long' };
    if (end === -1) return { kind: 'none' };
    const text = this.#pending.toString('utf8', 0, end);
    this.#pending = this.#pending.subarray(end + 1);
    return { kind: 'line', text };
  }

  /** Takes what was pushed but is no whole line yet. */
  takeRest(): Uint8Array {
    const rest = this.#pending;
    this.#pending = Buffer.alloc(0);
    return rest;
  }
}
