import { z } from 'zod';
import { failoverReportSchema } from '../control/failover-report.ts';
import { clipped, garbled, refusalShape } from '../replication/peer-messages.ts';

/**
 * What a keeper asks that of its shadow on another host to do with what it holds, beside taking epochs. An errand has a
 * number, which all that belongs to it carries; there is one at a time. That it is called off is no message: a shadow that is
 * needed ends its errands by itself, and of one that nobody waits for any more nothing is taken.
 *
 * Reading out: pages come as in the first copy, with the number of the errand in the place of the epoch, then pieces of the
 * device state, then `read`. Not more than `READ_AHEAD_PAGES` beyond what was asked for by `more`: acknowledgements of epochs
 * go the same way and must not wait behind a snapshot.
 */
export const READ_AHEAD_PAGES = 128;
export const STATE_PIECE_BYTES = 256 * 1024;

const count = z.int().nonnegative();

const wordsSchema = z.discriminatedUnion('kind', [
  z.object({
    kind: z.literal('test'),
    errand: count,
    /** The guest has been heard on its agent channel: the copy has to answer there. */
    expectsAgent: z.boolean(),
  }),
  z.object({ kind: z.literal('tested'), errand: count, report: failoverReportSchema }),
  z.object({ kind: z.literal('read-out'), errand: count }),
  /** So many more pages were dealt with. */
  z.object({ kind: z.literal('more'), errand: count, pages: count }),
  z.object({ kind: z.literal('share'), errand: count, share: z.number().min(0).max(1) }),
  /** All of it has been sent. */
  z.object({ kind: z.literal('read'), errand: count, epoch: count, heldMs: z.number() }),
  z.object({ kind: z.literal('failed'), errand: count, ...refusalShape }),
  /** Nobody waits for it any more. */
  z.object({ kind: z.literal('forget'), errand: count }),
]);

export type ErrandWords = z.output<typeof wordsSchema>;

export function encodeErrand(words: ErrandWords): Uint8Array {
  const said = words.kind === 'failed' ? { ...words, ...clipped(words) } : words;
  return Buffer.from(JSON.stringify(said), 'utf8');
}

/** @throws ReplicationError REPLICATION_PEER_GARBLED */
export function decodeErrand(body: Uint8Array): ErrandWords {
  try {
    return wordsSchema.parse(JSON.parse(Buffer.from(body).toString('utf8')));
  } catch (cause) {
    throw garbled('an errand that means nothing', cause);
  }
}
