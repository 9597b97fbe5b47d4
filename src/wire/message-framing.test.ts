import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { assert } from '../base/assert.ts';
import {
  type BodyLimits,
  encodeHeader,
  encodeMessage,
  HEADER_BYTES,
  MessageDecoder,
  type ReceivedMessage,
  WIRE_VERSION,
} from './message-framing.ts';
import { WireError } from './wire-error.ts';

const BODY_BYTES_MAX = 300;
const LIMITS: BodyLimits = new Map([
  [0, 0],
  [7, BODY_BYTES_MAX],
  [255, BODY_BYTES_MAX],
]);

const message = fc.record({
  type: fc.constantFrom(7, 255),
  flags: fc.nat(255),
  sequence: fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  body: fc.uint8Array({ maxLength: BODY_BYTES_MAX }),
});

function decode(chunks: readonly Uint8Array[], limits = LIMITS): ReceivedMessage[] {
  const decoder = new MessageDecoder({ limits });
  const found: ReceivedMessage[] = [];
  for (const chunk of chunks) decoder.push(chunk, (one) => found.push(one));
  return found;
}

/** Cuts `bytes` at the given places, in any order, twice the same place allowed. */
function split(bytes: Uint8Array, cuts: readonly number[]): Uint8Array[] {
  const places = [0, ...cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  return places.slice(1).map((end, index) => bytes.subarray(places[index], end));
}

function catching(task: () => unknown): WireError {
  try {
    task();
  } catch (thrown) {
    assert(thrown instanceof WireError, `a WireError, not ${thrown}`);
    return thrown;
  }
  throw new Error('nothing was thrown');
}

describe('messages between hosts', () => {
  it('come out as they went in, however the stream is split', () => {
    fc.assert(
      fc.property(fc.array(message), fc.array(fc.nat()), (messages, cuts) => {
        expect(decode(split(Buffer.concat(messages.map(encodeMessage)), cuts))).toEqual(messages);
      }),
    );
  });

  it('with any bit flipped are noticed, and those before are not lost', () => {
    fc.assert(
      fc.property(message, message, fc.nat(), (first, second, at) => {
        const before = encodeMessage(first);
        const damaged = encodeMessage(second);
        const bit = at % (damaged.length * 8);
        damaged[bit >> 3] = (damaged[bit >> 3] ?? 0) ^ (1 << (bit & 7));
        const decoder = new MessageDecoder({ limits: LIMITS });
        const found: ReceivedMessage[] = [];
        const push = () => decoder.push(Buffer.concat([before, damaged]), (one) => found.push(one));
        expect(catching(push).code).toMatch(/^WIRE_(?:GARBLED|VERSION)$/);
        expect(found).toEqual([first]);
        // What follows cannot be trusted to begin where it seems to.
        expect(() => decoder.push(before, (one) => found.push(one))).toThrow(WireError);
        expect(found).toHaveLength(1);
      }),
      { numRuns: 1000 },
    );
  });

  it('that are cut short are not handed out, and the decoder knows that something is missing', () => {
    fc.assert(
      fc.property(message, fc.nat(), (whole, at) => {
        const bytes = encodeMessage(whole);
        const decoder = new MessageDecoder({ limits: LIMITS });
        const found: ReceivedMessage[] = [];
        const end = at % bytes.length;
        decoder.push(bytes.subarray(0, end), (one) => found.push(one));
        expect(found).toEqual([]);
        expect(decoder.isBetweenMessages).toBe(end === 0);
        decoder.push(bytes.subarray(end), (one) => found.push(one));
        expect(found).toEqual([whole]);
        expect(decoder.isBetweenMessages).toBe(true);
      }),
    );
  });

  it.each([
    [7, BODY_BYTES_MAX + 1],
    [0, 1],
    [8, 0],
  ])('of type %i with %i bytes are refused by their header alone', (type, bodyBytes) => {
    const header = encodeHeader({ type, body: new Uint8Array(bodyBytes) });
    expect(header).toHaveLength(HEADER_BYTES);
    expect(catching(() => decode([header]))).toMatchObject({ code: 'WIRE_GARBLED' });
    // The same header is taken where the type may have so much (control).
    const decoder = new MessageDecoder({ limits: new Map([[type, bodyBytes]]) });
    decoder.push(header, () => {});
    expect(decoder.isBetweenMessages).toBe(bodyBytes === 0);
  });

  it('that are garbage are refused or waited on, and nothing is handed out', () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 400 })), (chunks) => {
        const found: ReceivedMessage[] = [];
        try {
          found.push(...decode(chunks));
        } catch (thrown) {
          expect(thrown).toBeInstanceOf(WireError);
        }
        expect(found).toEqual([]);
      }),
    );
  });

  it('of another version are refused by their first six bytes, with both versions', () => {
    const other = encodeHeader({ type: 7 }, { version: WIRE_VERSION + 1 });
    expect(catching(() => decode(split(other.subarray(0, 6), [1, 5])))).toMatchObject({
      code: 'WIRE_VERSION',
      facts: { ourVersion: WIRE_VERSION, theirVersion: WIRE_VERSION + 1 },
    });
  });
});
