import { PAGE_BYTES } from '../base/units.ts';
import { Mapping } from '../linux/mapping.ts';
import type { GuestMemory } from '../memory/guest-memory.ts';
import { type PageRun, piecesOf } from '../memory/page-runs.ts';

/** Read, compressed and written in one go: a megabyte. */
const CHUNK_PAGES = 256;
const RUN_HEADER_BYTES = 8;
const ZERO_PAGE = Buffer.alloc(PAGE_BYTES);

/**
 * Guest memory as a stream: runs of pages that are not zero, each as first page and count (u32, little endian) and the
 * pages themselves, and at the end a run of no pages. Holes and pages of zeros take no room.
 */
export async function* memoryStream(
  memory: GuestMemory,
  { signal, onProgress }: { signal: AbortSignal; onProgress: (share: number) => void },
): AsyncGenerator<Buffer> {
  using chunk = Mapping.anonymous(CHUNK_PAGES * PAGE_BYTES);
  const pieces = [...piecesOf(memory.dataRuns(), CHUNK_PAGES)];
  for (const [index, piece] of pieces.entries()) {
    signal.throwIfAborted();
    memory.readRuns([piece], chunk);
    for (const { from, pageCount } of runsOfContent(chunk, piece.pageCount)) {
      yield headerOf({ firstPage: piece.firstPage + from, pageCount });
      // A copy: the stream takes its time, and the chunk is used again.
      yield Buffer.from(chunk.bytes.subarray(from * PAGE_BYTES, (from + pageCount) * PAGE_BYTES));
    }
    onProgress((index + 1) / pieces.length);
  }
  yield headerOf({ firstPage: 0, pageCount: 0 });
}

function* runsOfContent(
  { bytes }: Mapping,
  pageCount: number,
): Generator<{ readonly from: number; readonly pageCount: number }> {
  let from: number | undefined;
  for (let page = 0; page <= pageCount; page += 1) {
    const isContent = page < pageCount && !isZero(bytes, page);
    if (isContent) from ??= page;
    else if (from !== undefined) {
      yield { from, pageCount: page - from };
      from = undefined;
    }
  }
}

function isZero(bytes: Uint8Array, page: number): boolean {
  return ZERO_PAGE.equals(bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES));
}

function headerOf({ firstPage, pageCount }: PageRun): Buffer {
  const header = Buffer.allocUnsafe(RUN_HEADER_BYTES);
  header.writeUInt32LE(firstPage, 0);
  header.writeUInt32LE(pageCount, 4);
  return header;
}

/**
 * Fills memory, all holes before, from what `memoryStream` gave. Returns false when that is no such stream or one of
 * another memory; what the memory holds is of no use then.
 */
export async function fillMemory(memory: GuestMemory, stream: AsyncIterable<Uint8Array>): Promise<boolean> {
  using buffer = Mapping.anonymous(CHUNK_PAGES * PAGE_BYTES);
  const reader = new StreamReader(stream);
  for (;;) {
    const header = await reader.take(RUN_HEADER_BYTES);
    if (header === undefined) return false;
    const run = { firstPage: header.readUInt32LE(0), pageCount: header.readUInt32LE(4) };
    if (run.pageCount === 0) return reader.isAtEnd();
    if (run.pageCount > CHUNK_PAGES || run.firstPage + run.pageCount > memory.pageCount) return false;
    const content = await reader.take(run.pageCount * PAGE_BYTES);
    if (content === undefined) return false;
    buffer.bytes.set(content);
    memory.writeRuns([run], buffer);
  }
}

/** Gives a stream out in the pieces that are asked for, whatever pieces it comes in. */
class StreamReader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(stream: AsyncIterable<Uint8Array>) {
    this.#chunks = stream[Symbol.asyncIterator]();
  }

  /** Undefined when the stream ends before. */
  async take(lengthBytes: number): Promise<Buffer | undefined> {
    const parts = [this.#rest];
    let bytes = this.#rest.length;
    while (bytes < lengthBytes) {
      const next = await this.#chunks.next();
      if (next.done) return undefined;
      parts.push(Buffer.from(next.value));
      bytes += next.value.length;
    }
    const all = parts.length === 1 ? this.#rest : Buffer.concat(parts);
    this.#rest = all.subarray(lengthBytes);
    return all.subarray(0, lengthBytes);
  }

  async isAtEnd(): Promise<boolean> {
    if (this.#rest.length > 0) return false;
    const next = await this.#chunks.next();
    return next.done === true;
  }
}
