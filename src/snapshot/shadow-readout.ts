import { assert } from '../base/assert.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { countPages, mergeRuns, type PageRun, piecesOf } from '../memory/page-runs.ts';
import type { ShadowImage, StillImage } from '../replication/shadow-image.ts';

/** Pages that are handed over at once. */
export const PIECE_PAGES = 32;
/** Passes over what was applied meanwhile, before the image is held for the rest. */
const PASSES_MAX = 4;
/** Copied while the image is held: about a millisecond. */
const REST_PAGES_MAX = 1024;
/** So much is put aside in the hold, to be handed over afterwards; more than that is handed over in the hold. */
const ASIDE_PAGES_MAX = (32 * MIB) / PAGE_BYTES;

/** Where the pages of a memory go. Of a page that comes twice the later content counts. */
export interface PageSink {
  /** Takes a copy. */
  writePages(firstPage: number, pages: Uint8Array): Promise<void>;
}

export interface ReadOutOptions {
  readonly sink: PageSink;
  readonly signal: AbortSignal;
  /** Share of the memory that was handed over, 0 … 1. */
  readonly onProgress: (share: number) => void;
  readonly nowMs: () => number;
  /** The image stands still. */
  readonly onHeld?: (() => Promise<void> | void) | undefined;
}

/** Lends an image. It is given back before all of it is handed over: a takeover waits for `work`. */
export type LendImage = <Result>(work: (image: ShadowImage) => Promise<Result>) => Promise<Result>;

/** What was read out of a shadow beside its pages. */
export interface ReadOut {
  readonly epoch: number;
  readonly deviceState: Buffer;
  /** How long epochs were not applied meanwhile. */
  readonly heldMs: number;
}

/**
 * Hands over all pages of a shadow as of one committed epoch, while epochs go on being committed and applied. For the last
 * pages the image is held, as in a test of the failover, and they are put aside.
 * @throws ReplicationError; the signal's reason; what the sink throws
 */
export async function readOutShadow(use: LendImage, options: ReadOutOptions): Promise<ReadOut> {
  using aside = new PagesAside();
  const out = await use((image) => copyShadow(image, { ...options, aside }));
  await aside.writeTo(options.sink);
  options.signal.throwIfAborted();
  return out;
}

async function copyShadow(
  image: ShadowImage,
  { sink, aside, signal, onProgress, nowMs, onHeld }: ReadOutOptions & { readonly aside: PagesAside },
): Promise<ReadOut> {
  let applied: PageRun[] = [];
  const takeApplied = () => {
    const taken = applied;
    applied = [];
    return taken;
  };
  using watching = new DisposableStack();
  watching.defer(
    image.onApplied((runs) => {
      applied = mergeRuns(applied, runs);
    }),
  );
  using copying = new PageCopy(sink, { memory: image.memory, signal });
  await copying.copy(image.memory.dataRuns(), onProgress);
  let rest: readonly PageRun[] = takeApplied();
  for (let pass = 2; pass <= PASSES_MAX && countPages(rest) > REST_PAGES_MAX; pass += 1) {
    await copying.copy(rest, () => {});
    rest = takeApplied();
  }
  return await image.whileStill(async (still) => {
    const heldAtMs = nowMs();
    await onHeld?.();
    await copyRest(mergeRuns(rest, takeApplied()), { still, image, aside, sink });
    const { epoch, deviceState } = still.staged;
    return { epoch, deviceState: Buffer.from(deviceState), heldMs: nowMs() - heldAtMs };
  });
}

/** Hands pages of a memory over; other work gets its turn between two chunks. */
export class PageCopy implements Disposable {
  readonly #sink: PageSink;
  readonly #memory: GuestMemory;
  readonly #signal: AbortSignal;
  readonly #buffer = Mapping.anonymous(PIECE_PAGES * PAGE_BYTES);

  constructor(sink: PageSink, { memory, signal }: { memory: GuestMemory; signal: AbortSignal }) {
    this.#sink = sink;
    this.#memory = memory;
    this.#signal = signal;
  }

  async copy(runs: readonly PageRun[], onProgress: (share: number) => void): Promise<void> {
    const pages = countPages(runs);
    let done = 0;
    for (const piece of piecesOf(runs, PIECE_PAGES)) {
      this.#signal.throwIfAborted();
      const bytes = this.#memory.readRuns([piece], this.#buffer);
      await this.#sink.writePages(piece.firstPage, this.#buffer.bytes.subarray(0, bytes));
      await new Promise<void>((resolve) => setImmediate(resolve));
      done += piece.pageCount;
      onProgress(done / pages);
    }
  }

  [Symbol.dispose](): void {
    this.#buffer[Symbol.dispose]();
  }
}

/** The last pages, taken while the image is held and written when it is not held any more. */
class PagesAside implements Disposable {
  #buffer: Mapping | undefined;
  #pages: number[] = [];

  /** Before the first `take`. */
  reserve(pageCount: number): void {
    if (pageCount > 0) this.#buffer = Mapping.anonymous(pageCount * PAGE_BYTES);
  }

  /** Has `fill` put one page at this offset. */
  take(page: number, fill: (target: Mapping, offset: number) => void): void {
    assert(this.#buffer !== undefined, 'room was reserved');
    fill(this.#buffer, this.#pages.length * PAGE_BYTES);
    this.#pages.push(page);
  }

  async writeTo(sink: PageSink): Promise<void> {
    const pages = this.#pages;
    this.#pages = [];
    for (const [index, page] of pages.entries())
      await sink.writePages(
        page,
        this.#buffer?.bytes.subarray(index * PAGE_BYTES, (index + 1) * PAGE_BYTES) ?? new Uint8Array(),
      );
  }

  [Symbol.dispose](): void {
    this.#buffer?.[Symbol.dispose]();
  }
}

interface RestContext {
  readonly still: StillImage;
  readonly image: ShadowImage;
  readonly aside: PagesAside;
  readonly sink: PageSink;
}

/**
 * While the image is held: what is missing of its memory, and the epochs that the memory itself lacks. Of a page that
 * stands in several of these the last one counts, in the order in which they were captured.
 */
async function copyRest(
  missing: readonly PageRun[],
  { still, image, aside, sink }: RestContext,
): Promise<void> {
  const latest = new Map<number, { readonly mapping: Mapping; readonly offset: number } | undefined>();
  for (const { firstPage } of piecesOf(missing, 1)) latest.set(firstPage, undefined);
  for (const { staged, mapping } of still.backlog) {
    let offset = staged.pagesOffset;
    for (const { firstPage } of piecesOf(staged.runs, 1)) {
      latest.set(firstPage, { mapping, offset });
      offset += PAGE_BYTES;
    }
  }
  aside.reserve(Math.min(latest.size, ASIDE_PAGES_MAX));
  let taken = 0;
  for (const [page, found] of latest) {
    aside.take(page, (target, targetOffset) => {
      if (found === undefined)
        image.memory.readRuns([{ firstPage: page, pageCount: 1 }], target, targetOffset);
      else
        target.bytes.set(found.mapping.bytes.subarray(found.offset, found.offset + PAGE_BYTES), targetOffset);
    });
    taken += 1;
    // More than may be put aside: written now, and the epochs wait a little longer.
    if (taken % ASIDE_PAGES_MAX === 0) await aside.writeTo(sink);
  }
}
