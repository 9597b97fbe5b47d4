import { MIB, PAGE_BYTES } from '../base/units.ts';
import type { EpochId } from '../epoch/epoch-id.ts';
import { Mapping } from '../linux/mapping.ts';
import { type PageRun, piecesOf } from '../memory/page-runs.ts';
import { EffortChoice } from '../wire/effort-choice.ts';
import { encodedBytesMax, PageEncoder } from '../wire/page-codec.ts';
import type { PeerLink } from './peer-link.ts';
import { encodePagesHead, MESSAGE, MESSAGE_PAGES_MAX } from './peer-messages.ts';
import { SentPages } from './sent-pages.ts';

/** Of last versions: more than a busy guest writes again and again. */
const SENT_BYTES_MAX = 64 * MIB;
const RATE_SMOOTHING = 0.1;
/** What is sent in less says more about this process than about the link. */
const RATE_BYTES_MIN = 64 * 1024;

export interface SentBytes {
  /** Of pages that changed. */
  readonly dirtyBytes: number;
  /** What they took on the wire. */
  readonly wireBytes: number;
}

/** Sends pages to the shadow on another host, each in the way that brings it there soonest. */
export class PageSender implements Disposable {
  readonly #link: PeerLink;
  readonly #clockMs: () => number;
  readonly #encoder = new PageEncoder();
  readonly #sent = new SentPages({ capacityPages: SENT_BYTES_MAX / PAGE_BYTES });
  readonly #bases = Mapping.anonymous(MESSAGE_PAGES_MAX * PAGE_BYTES);
  readonly #basesKnown = new Uint8Array(MESSAGE_PAGES_MAX);
  readonly #out = Mapping.anonymous(encodedBytesMax(MESSAGE_PAGES_MAX));
  readonly #efforts = { [MESSAGE.copy]: new EffortChoice(), [MESSAGE.pages]: new EffortChoice() } as const;
  /** Until something is known of the link nothing is spared. */
  #bytesPerSecond = Number.POSITIVE_INFINITY;
  #dirtyBytes = 0;
  #wireBytes = 0;

  constructor(link: PeerLink, { nowMs }: { nowMs: () => number }) {
    this.#link = link;
    this.#clockMs = nowMs;
  }

  /** Of epochs, since the connection began. */
  get sentBytes(): SentBytes {
    return { dirtyBytes: this.#dirtyBytes, wireBytes: this.#wireBytes };
  }

  /** `pages`: contents of `runs`, one after the other; they may change when this has resolved. */
  async send(
    type: typeof MESSAGE.copy | typeof MESSAGE.pages,
    { epoch, runs, pages }: { epoch: EpochId; runs: readonly PageRun[]; pages: Uint8Array },
  ): Promise<void> {
    let offset = 0;
    for (const batch of batchesOf(runs)) {
      const lengthBytes = batch.pageCount * PAGE_BYTES;
      await this.#sendBatch(type, { epoch, ...batch, pages: pages.subarray(offset, offset + lengthBytes) });
      offset += lengthBytes;
    }
  }

  [Symbol.dispose](): void {
    for (const memory of [this.#sent, this.#bases, this.#out]) memory[Symbol.dispose]();
  }

  async #sendBatch(
    type: typeof MESSAGE.copy | typeof MESSAGE.pages,
    { epoch, runs, pages, pageCount, continues }: Batch & { epoch: EpochId; pages: Uint8Array },
  ): Promise<void> {
    const choice = this.#efforts[type];
    const isEpoch = type === MESSAGE.pages;
    const startMs = this.#clockMs();
    const effort = choice.choose({ linkBytesPerSecond: this.#bytesPerSecond });
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
    this.#noteRate(bytes, this.#clockMs() - packedMs);
    if (!isEpoch) return;
    this.#dirtyBytes += pages.length;
    this.#wireBytes += bytes;
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

  #noteRate(bytes: number, elapsedMs: number): void {
    if (bytes < RATE_BYTES_MIN || elapsedMs <= 0) return;
    const rate = (bytes * 1000) / elapsedMs;
    this.#bytesPerSecond = Number.isFinite(this.#bytesPerSecond)
      ? this.#bytesPerSecond + RATE_SMOOTHING * (rate - this.#bytesPerSecond)
      : rate;
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
