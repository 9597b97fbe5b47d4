import { assert } from '../base/assert.ts';
import { MIB, PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { countPages, mergeRuns, type PageRun, piecesOf } from '../memory/page-runs.ts';
import type { ShadowImage, StillImage } from '../replication/shadow-image.ts';
import { ChunkWriter } from './chunk-writer.ts';
import { CHUNK_PAGES, type SnapshotFacts } from './snapshot-format.ts';

/** Passes over what was applied meanwhile, before the image is held for the rest. */
const PASSES_MAX = 4;
/** Copied while the image is held: about a millisecond. */
const REST_PAGES_MAX = 1024;
/** So much is put aside in the hold, to be written afterwards; more than that is written in the hold. */
const ASIDE_PAGES_MAX = (32 * MIB) / PAGE_BYTES;

interface CommonOptions {
  /** Where the file is to be. */
  readonly path: string;
  readonly key: Uint8Array | undefined;
  /** The text of the specification. */
  readonly spec: Uint8Array;
  readonly firmware: Uint8Array;
  readonly signal: AbortSignal;
  /** Share of the memory that is written, 0 … 1. */
  readonly onProgress: (share: number) => void;
}

interface StillOptions extends CommonOptions {
  readonly facts: SnapshotFacts;
  readonly memory: GuestMemory;
  readonly deviceState: Uint8Array;
}

interface ShadowOptions extends CommonOptions {
  readonly facts: Omit<SnapshotFacts, 'epoch'>;
  /** Lends the image. It is given back before the file is brought to disk: a takeover waits for `work`. */
  readonly use: <Result>(work: (image: ShadowImage) => Promise<Result>) => Promise<Result>;
  readonly nowMs: () => number;
  /** The image stands still. */
  readonly onHeld?: () => Promise<void> | void;
}

export interface WrittenSnapshot {
  readonly epoch: number;
  readonly sizeBytes: number;
  /** How long epochs were not applied meanwhile; 0 for a VM that stood still anyway. */
  readonly heldMs: number;
}

/** Of a VM that stands still, and goes on doing so until this resolves. @throws SnapshotError; the signal's reason */
export async function snapshotStill(options: StillOptions): Promise<WrittenSnapshot> {
  const { path, facts, key, memory, onProgress, signal } = options;
  await using writer = await ChunkWriter.create(path, { memoryBytes: facts.memoryBytes, key });
  using copying = new PageCopy(writer, { memory, signal });
  await copying.copy(memory.dataRuns(), onProgress);
  return { epoch: facts.epoch, sizeBytes: await finish(writer, options), heldMs: 0 };
}

/**
 * Of a VM that runs, from its shadow, as of one committed epoch. The VM does not notice: epochs go on being committed
 * and applied, and for the last pages the image is held, as in a test of the failover.
 * @throws SnapshotError; ReplicationError; the signal's reason
 */
export async function snapshotShadow(options: ShadowOptions): Promise<WrittenSnapshot> {
  const { use, key, path, signal, facts } = options;
  await using writer = await ChunkWriter.create(path, { memoryBytes: facts.memoryBytes, key });
  using aside = new PagesAside();
  const { epoch, deviceState, heldMs } = await use((image) =>
    copyShadow(image, { ...options, writer, aside }),
  );
  await aside.writeTo(writer);
  signal.throwIfAborted();
  const sizeBytes = await finish(writer, { ...options, facts: { ...facts, epoch }, deviceState });
  return { epoch, sizeBytes, heldMs };
}

interface CopyOptions extends Pick<ShadowOptions, 'signal' | 'onProgress' | 'nowMs' | 'onHeld'> {
  readonly writer: ChunkWriter;
  readonly aside: PagesAside;
}

async function copyShadow(
  image: ShadowImage,
  { writer, aside, signal, onProgress, nowMs, onHeld }: CopyOptions,
): Promise<{ readonly epoch: number; readonly deviceState: Buffer; readonly heldMs: number }> {
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
  using copying = new PageCopy(writer, { memory: image.memory, signal });
  await copying.copy(image.memory.dataRuns(), onProgress);
  let rest: readonly PageRun[] = takeApplied();
  for (let pass = 2; pass <= PASSES_MAX && countPages(rest) > REST_PAGES_MAX; pass += 1) {
    await copying.copy(rest, () => {});
    rest = takeApplied();
  }
  return await image.whileStill(async (still) => {
    const heldAtMs = nowMs();
    await onHeld?.();
    await copyRest(mergeRuns(rest, takeApplied()), { still, image, aside, writer });
    const { epoch, deviceState } = still.staged;
    return { epoch, deviceState: Buffer.from(deviceState), heldMs: nowMs() - heldAtMs };
  });
}

async function finish(
  writer: ChunkWriter,
  { facts, deviceState, firmware, spec }: Pick<StillOptions, 'facts' | 'deviceState' | 'firmware' | 'spec'>,
): Promise<number> {
  await writer.writeBlob('deviceState', deviceState);
  await writer.writeBlob('firmware', firmware);
  await writer.writeBlob('spec', spec);
  return await writer.finish(facts);
}

/** Copies pages of a memory into a file; other work gets its turn between two chunks. */
class PageCopy implements Disposable {
  readonly #writer: ChunkWriter;
  readonly #memory: GuestMemory;
  readonly #signal: AbortSignal;
  readonly #buffer = Mapping.anonymous(CHUNK_PAGES * PAGE_BYTES);

  constructor(writer: ChunkWriter, { memory, signal }: { memory: GuestMemory; signal: AbortSignal }) {
    this.#writer = writer;
    this.#memory = memory;
    this.#signal = signal;
  }

  async copy(runs: readonly PageRun[], onProgress: (share: number) => void): Promise<void> {
    const pages = countPages(runs);
    let done = 0;
    for (const piece of piecesOf(runs, CHUNK_PAGES)) {
      this.#signal.throwIfAborted();
      const bytes = this.#memory.readRuns([piece], this.#buffer);
      await this.#writer.writePages(piece.firstPage, this.#buffer.bytes.subarray(0, bytes));
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

  async writeTo(writer: ChunkWriter): Promise<void> {
    const pages = this.#pages;
    this.#pages = [];
    for (const [index, page] of pages.entries())
      await writer.writePages(
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
  readonly writer: ChunkWriter;
}

/**
 * While the image is held: what is missing of its memory, and the epochs that the memory itself lacks. Of a page that
 * stands in several of these the last one counts, in the order in which they were captured.
 */
async function copyRest(
  missing: readonly PageRun[],
  { still, image, aside, writer }: RestContext,
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
    if (taken % ASIDE_PAGES_MAX === 0) await aside.writeTo(writer);
  }
}
