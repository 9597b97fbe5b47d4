import { MIB, PAGE_BYTES } from '../base/units.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { type PageRun, piecesOf } from '../memory/page-runs.ts';
import { EffortChoice } from '../wire/effort-choice.ts';
import { LinkRate } from '../wire/link-rate.ts';
import { type Effort, encodedBytesMax, PageEncoder } from '../wire/page-codec.ts';
import type { PeerLink } from './peer-link.ts';
import { encodePagesHead, MESSAGE, MESSAGE_PAGES_MAX } from './peer-messages.ts';
import { SentPages } from './sent-pages.ts';

/** Of last versions: more than a busy guest writes again and again. */
const SENT_BYTES_MAX = 64 * MIB;
/** The other side acknowledges in parts: so much of a copy, and so long, tells what the link lets through. */
const COPY_SPAN_BYTES = MIB / 2;
const COPY_SPAN_MS = 50;
/** What the other side does with an epoch: puts it together, holds it against its checksums, says so. */
const HOLDING_MS = 2;
const HOLDING_MS_PER_PAGE = 0.002;

export interface SentBytes {
  /** Of pages that changed. */
  readonly dirtyBytes: number;
  /** What they took on the wire. */
  readonly wireBytes: number;
}

export interface PageSenderOptions {
  readonly nowMs: () => number;
  /** To the other side and back, for what has to wait for nothing. */
  readonly roundTripMs?: () => number;
  /** Instead of the one that fits the link and this CPU, to compare with. */
  readonly fixedEffort?: Effort | undefined;
}

/** A part of a copy that is on its way. */
interface CopySpan {
  readonly startMs: number;
  readonly acknowledgedBytes: number;
  /** Of it, in which more could have been sent. */
  waitedMs: number;
}

/** What became of pages that were sent. */
export interface SentBatches {
  /** On the wire. */
  readonly bytes: number;
  readonly packMs: number;
}

/** An epoch that the other side has all of. */
export interface HeldEpoch extends SentBatches {
  readonly pages: number;
  /** Since it was begun with, after the one before it. */
  readonly elapsedMs: number;
}

/** Sends pages to the shadow on another host, each in the way that brings it there soonest. */
export class PageSender implements Disposable {
  readonly #link: PeerLink;
  readonly #clockMs: () => number;
  readonly #roundTripMs: () => number;
  readonly #fixedEffort: Effort | undefined;
  readonly #encoder = new PageEncoder();
  readonly #sent = new SentPages({ capacityPages: SENT_BYTES_MAX / PAGE_BYTES });
  readonly #bases = Mapping.anonymous(MESSAGE_PAGES_MAX * PAGE_BYTES);
  readonly #basesKnown = new Uint8Array(MESSAGE_PAGES_MAX);
  readonly #out = Mapping.anonymous(encodedBytesMax(MESSAGE_PAGES_MAX));
  readonly #efforts = {
    [MESSAGE.copy]: new EffortChoice('copy'),
    [MESSAGE.pages]: new EffortChoice('epochs'),
  } as const;
  readonly #rate = new LinkRate();
  #copiedBytes = 0;
  #copySpan: CopySpan | undefined;
  #dirtyBytes = 0;
  #wireBytes = 0;

  constructor(link: PeerLink, { nowMs, roundTripMs = () => 0, fixedEffort }: PageSenderOptions) {
    this.#link = link;
    this.#clockMs = nowMs;
    this.#roundTripMs = roundTripMs;
    this.#fixedEffort = fixedEffort;
  }

  nowMs(): number {
    return this.#clockMs();
  }

  /** What the link lets through, by what the other side has acknowledged; Infinity while that is not known. */
  get linkBytesPerSecond(): number {
    return this.#rate.bytesPerSecond;
  }

  /** What was not done in between, nor by the other side, was the link. */
  noteHeld({ bytes, pages, packMs, elapsedMs }: HeldEpoch): void {
    const carriedMs = elapsedMs - this.#roundTripMs() - packMs - HOLDING_MS - pages * HOLDING_MS_PER_PAGE;
    this.#rate.note({ bytes, elapsedMs: carriedMs, isLimited: carriedMs > elapsedMs / 2 });
  }

  /** Of epochs, since the connection began. */
  get sentBytes(): SentBytes {
    return { dirtyBytes: this.#dirtyBytes, wireBytes: this.#wireBytes };
  }

  /** `pages`: contents of `runs`, one after the other; they may change when this has resolved. */
  async send(
    type: typeof MESSAGE.copy | typeof MESSAGE.pages,
    { epoch, runs, pages }: { epoch: EpochId; runs: readonly PageRun[]; pages: Uint8Array },
  ): Promise<SentBatches> {
    let offset = 0;
    let sent: SentBatches = { bytes: 0, packMs: 0 };
    for (const batch of batchesOf(runs)) {
      const lengthBytes = batch.pageCount * PAGE_BYTES;
      const content = pages.subarray(offset, offset + lengthBytes);
      const { bytes, packMs } = await this.#sendBatch(type, { epoch, ...batch, pages: content });
      sent = { bytes: sent.bytes + bytes, packMs: sent.packMs + packMs };
      offset += lengthBytes;
    }
    return sent;
  }

  [Symbol.dispose](): void {
    for (const memory of [this.#sent, this.#bases, this.#out]) memory[Symbol.dispose]();
  }

  async #sendBatch(
    type: typeof MESSAGE.copy | typeof MESSAGE.pages,
    { epoch, runs, pages, pageCount, continues }: Batch & { epoch: EpochId; pages: Uint8Array },
  ): Promise<SentBatches> {
    const choice = this.#efforts[type];
    const isEpoch = type === MESSAGE.pages;
    const startMs = this.#clockMs();
    const effort = this.#fixedEffort ?? choice.choose({ linkBytesPerSecond: this.#rate.bytesPerSecond });
    if (isEpoch) this.#gatherBases(runs);
    const { bytes } = this.#encoder.encodePages({
      pages,
      // In a copy each page is sent once, and the other side has nothing of it.
      bases: isEpoch ? this.#bases.bytes.subarray(0, pages.length) : undefined,
      basesKnown: this.#basesKnown.subarray(0, pageCount),
      out: this.#out.bytes,
      effort,
    });
    if (isEpoch) this.#noteSent(runs, pages);
    const packedMs = this.#clockMs();
    choice.note({ effort, pages: pageCount, bytes, elapsedMs: packedMs - startMs });
    await this.#link.send(type, [
      encodePagesHead(epoch, { runs, continues }),
      this.#out.bytes.subarray(0, bytes),
    ]);
    if (isEpoch) {
      this.#dirtyBytes += pages.length;
      this.#wireBytes += bytes;
    } else this.#noteCopied(bytes, { waitedMs: this.#clockMs() - packedMs });
    return { bytes, packMs: packedMs - startMs };
  }

  /** Nobody says of a copy that it is held: only how much of it is on its way is known. */
  #noteCopied(bytes: number, { waitedMs }: { waitedMs: number }): void {
    this.#copiedBytes += bytes;
    const acknowledgedBytes = Math.max(0, this.#copiedBytes - this.#link.unacknowledgedBytes);
    const nowMs = this.#clockMs();
    const span = this.#copySpan ?? { startMs: nowMs - waitedMs, acknowledgedBytes: 0, waitedMs: 0 };
    this.#copySpan = span;
    span.waitedMs += waitedMs;
    const spanBytes = acknowledgedBytes - span.acknowledgedBytes;
    const elapsedMs = nowMs - span.startMs;
    if (spanBytes < COPY_SPAN_BYTES || elapsedMs < COPY_SPAN_MS) return;
    this.#rate.note({ bytes: spanBytes, elapsedMs, isLimited: span.waitedMs > elapsedMs / 2 });
    this.#copySpan = { startMs: nowMs, acknowledgedBytes, waitedMs: 0 };
  }

  #gatherBases(runs: readonly PageRun[]): void {
    let index = 0;
    for (const page of pagesOf(runs)) {
      this.#basesKnown[index] = this.#sent.read(page, this.#bases.bytes, index * PAGE_BYTES) ? 1 : 0;
      index += 1;
    }
  }

  #noteSent(runs: readonly PageRun[], pages: Uint8Array): void {
    let offset = 0;
    for (const page of pagesOf(runs)) {
      this.#sent.note(page, pages.subarray(offset, offset + PAGE_BYTES));
      offset += PAGE_BYTES;
    }
  }
}

interface Batch {
  readonly runs: readonly PageRun[];
  readonly pageCount: number;
  /** The first of `runs` is the rest of the last one in the batch before. */
  readonly continues: boolean;
}

/** Runs in their order, as many as fit into one message. One that has to be divided fills the batches before its last. */
function* batchesOf(runs: Iterable<PageRun>): Generator<Batch> {
  let batch: PageRun[] = [];
  let pageCount = 0;
  let continues = false;
  for (const run of runs) {
    for (const piece of piecesOf([run], MESSAGE_PAGES_MAX)) {
      if (pageCount + piece.pageCount > MESSAGE_PAGES_MAX) {
        yield { runs: batch, pageCount, continues };
        batch = [];
        pageCount = 0;
        continues = piece.firstPage !== run.firstPage;
      }
      batch.push(piece);
      pageCount += piece.pageCount;
    }
  }
  if (batch.length > 0) yield { runs: batch, pageCount, continues };
}

export function* pagesOf(runs: readonly PageRun[]): Generator<number> {
  for (const { firstPage, pageCount } of runs)
    for (let page = firstPage; page < firstPage + pageCount; page += 1) yield page;
}
