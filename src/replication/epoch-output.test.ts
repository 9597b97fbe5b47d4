import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { decodeOutputs, encodeOutputs, type LinkOutput } from './epoch-output.ts';
import { ReplicationError } from './replication-error.ts';

const outputs = fc.array(
  fc.record({
    link: fc.string({ unit: 'binary', maxLength: 20 }),
    items: fc.array(fc.uint8Array({ maxLength: 100 }), { maxLength: 8 }),
  }),
  { maxLength: 4 },
) as fc.Arbitrary<LinkOutput[]>;

/** What decoding gives, or the code it refuses with; anything else that is thrown fails the test. */
function decoded(bytes: Uint8Array): LinkOutput[] | string {
  try {
    return decodeOutputs(Buffer.from(bytes));
  } catch (thrown) {
    if (thrown instanceof ReplicationError) return thrown.code;
    throw thrown;
  }
}

describe('the output of an epoch', () => {
  it('comes back as it was, items and their order', () => {
    fc.assert(
      fc.property(outputs, (sent) => {
        expect(decoded(encodeOutputs(sent))).toEqual(sent);
      }),
    );
  });

  it('that was cut short is refused, wherever the cut is', () => {
    fc.assert(
      fc.property(outputs, fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }), (sent, share) => {
        const bytes = encodeOutputs(sent);
        const cut = bytes.subarray(0, Math.floor(bytes.length * share));
        expect(decoded(cut)).toBe('REPLICATION_EPOCH_CORRUPT');
      }),
    );
  });

  it('with something behind it is refused', () => {
    fc.assert(
      fc.property(outputs, fc.uint8Array({ minLength: 1, maxLength: 50 }), (sent, more) => {
        expect(decoded(Buffer.concat([encodeOutputs(sent), more]))).toBe('REPLICATION_EPOCH_CORRUPT');
      }),
    );
  });

  it('made of garbage is refused or read, and never takes more room than it has bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (garbage) => {
        const result = decoded(garbage);
        if (typeof result === 'string') {
          expect(result).toBe('REPLICATION_EPOCH_CORRUPT');
          return;
        }
        const items = result.flatMap((output) => output.items.map((item) => item.length));
        expect(items.reduce((sum, length) => sum + length, 0)).toBeLessThanOrEqual(garbage.length);
      }),
      { numRuns: 1000 },
    );
  });
});
