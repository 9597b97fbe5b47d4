import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { assert } from '../base/assert.ts';
import { messageOf } from '../base/errors.ts';
import { PAGE_BYTES } from '../base/units.ts';
import { addressOf, type Lz4, loadLz4 } from '../linux/lz4.ts';
import { WireError } from './wire-error.ts';

/**
 * A batch of pages on their way: u32 number of pages, then for each page a u16 with its kind (upper 3 bits) and the bytes
 * that it takes (lower 13), then those bytes, one page after the other; little endian. With the highest bit of the number set
 * all that follows it is one piece of zstd. Batches stand alone. They have no checksum: the message around them has one.
 */
const COUNT_BYTES = 4;
const IS_SQUEEZED = 0x8000_0000;
const ENTRY_BYTES = 2;
const LENGTH_BITS = 13;
const LENGTH_MASK = (1 << LENGTH_BITS) - 1;
const WORD_BYTES = 4;
const PAGE_WORDS = PAGE_BYTES / WORD_BYTES;
/** What saves less than this is not worth the work on the other side. */
const GAIN_BYTES_MIN = 64;
const PACKED_BYTES_MAX = PAGE_BYTES - GAIN_BYTES_MIN;

const KIND = { zero: 0, same: 1, raw: 2, lz4: 3, xorLz4: 4, patch: 5 } as const;

/**
 * How pages travelled: all zero, as the base, as they are, LZ4 of them, LZ4 of what they are XORed with the base, or the
 * words that differ. A patch is runs of such words: u16 words to leave, u16 words that follow, those words.
 */
export type PerKind = Record<keyof typeof KIND, number>;

/**
 * What a page may cost. 0: no LZ4, about 1 µs a page, for links that are faster than this CPU packs. 1: LZ4 once, of the
 * page or of what differs, for pages of which more than a little changed. 2 and 3: as 0, and then zstd over all pages of the
 * batch, which finds what they have in common; for slow links.
 */
export type Effort = 0 | 1 | 2 | 3;
const ZSTD_LEVEL: Partial<Record<Effort, number>> = { 2: 1, 3: 3 };

/** Above so many changed words, what differs packs worse than the page itself, nearly always. */
const CHANGED_WORDS_MAX = 512;
/** A patch of at most so much is not improved on: what LZ4 would save is not worth its time. */
const PATCH_BYTES_MAX: Readonly<Record<Effort, number>> = {
  ...{ 0: PACKED_BYTES_MAX, 1: 256, 2: PACKED_BYTES_MAX, 3: PACKED_BYTES_MAX },
};
/** A larger one made pages of a guest hardly quicker to pack, and 8 % larger. */
const ACCELERATION = 1;

/** Room that a batch needs at worst. */
export function encodedBytesMax(pageCount: number): number {
  return COUNT_BYTES + pageCount * (ENTRY_BYTES + PAGE_BYTES);
}

export interface PagesToEncode {
  /** Page after page. */
  readonly pages: Uint8Array;
  /** What the other side has in their places, page after page; undefined where that is not known of any. */
  readonly bases: Uint8Array | undefined;
  /** A byte for each page, 0 where its base is not known after all. */
  readonly basesKnown?: Uint8Array;
  /** Takes the batch; has room for `encodedBytesMax`. */
  readonly out: Uint8Array;
  readonly effort: Effort;
}

export interface EncodedPages {
  /** That many of `out`. */
  readonly bytes: number;
  readonly perKind: PerKind;
}

/** Packs pages. For one thread; does its work at once. */
export class PageEncoder {
  readonly #lz4: Lz4;
  /** What differs between a page and its base. */
  readonly #difference = new Int32Array(PAGE_WORDS);
  readonly #differenceAddress: number;
  /** Takes patches. */
  readonly #spare = new Uint8Array(PAGE_BYTES);
  readonly #spareWords = new Int32Array(this.#spare.buffer);

  /** @throws WireError WIRE_CODEC_MISSING */
  constructor() {
    this.#lz4 = usableLz4();
    this.#differenceAddress = addressOf(new Uint8Array(this.#difference.buffer));
  }

  encodePages({ pages, bases, basesKnown, out, effort }: PagesToEncode): EncodedPages {
    const pageCount = wholePages(pages);
    assert(bases === undefined || bases.length === pages.length, 'every page has its base');
    assert(basesKnown === undefined || basesKnown.length === pageCount, 'of every page it is said');
    assert(out.length >= encodedBytesMax(pageCount), `${out.length} bytes hold ${pageCount} pages at worst`);
    const words = wordsOf(pages);
    const baseWords = bases === undefined ? undefined : wordsOf(bases);
    const table = new DataView(out.buffer, out.byteOffset, COUNT_BYTES + pageCount * ENTRY_BYTES);
    table.setUint32(0, pageCount, true);
    const pagesAddress = addressOf(pages);
    const outAddress = addressOf(out);
    const perKind: PerKind = { zero: 0, same: 0, raw: 0, lz4: 0, xorLz4: 0, patch: 0 };
    let end = table.byteLength;
    for (let page = 0; page < pageCount; page += 1) {
      const isBaseKnown = basesKnown === undefined || basesKnown[page] !== 0;
      const { kind, bytes } = this.#pack({
        words,
        baseWords: isBaseKnown ? baseWords : undefined,
        at: page * PAGE_WORDS,
        pageAddress: pagesAddress + page * PAGE_BYTES,
        target: out,
        targetOffset: end,
        targetAddress: outAddress + end,
        effort,
      });
      if (kind === 'raw') out.set(pages.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES), end);
      table.setUint16(COUNT_BYTES + page * ENTRY_BYTES, (KIND[kind] << LENGTH_BITS) | bytes, true);
      perKind[kind] += 1;
      end += bytes;
    }
    return { bytes: squeezed(out, { bytes: end, level: ZSTD_LEVEL[effort] }), perKind };
  }

  #pack(work: PageWork): Packed {
    const { words, baseWords, at, effort } = work;
    if (isZero(words, at)) return ZERO;
    if (baseWords !== undefined) {
      const limitBytes = PATCH_BYTES_MAX[effort];
      const bytes = writePatch(words, baseWords, { at, into: this.#spareWords, limitBytes });
      if (bytes === 0) return SAME;
      if (bytes <= limitBytes) return this.#takeSpare(work, { kind: 'patch', bytes });
    }
    if (effort !== 1) return RAW;
    const { kind, address } = this.#source(work);
    const { targetAddress } = work;
    const bytes = this.#compress(address, { targetAddress, targetBytes: PACKED_BYTES_MAX });
    return bytes === 0 ? RAW : { kind, bytes };
  }

  /** What LZ4 is tried on: what promises more. */
  #source({ words, baseWords, at, pageAddress }: PageWork): Source {
    const page: Source = { kind: 'lz4', address: pageAddress };
    if (baseWords === undefined) return page;
    const changedWords = subtract(words, baseWords, { at, into: this.#difference });
    return changedWords <= CHANGED_WORDS_MAX ? { kind: 'xorLz4', address: this.#differenceAddress } : page;
  }

  #takeSpare({ target, targetOffset }: PageWork, packed: Packed): Packed {
    target.set(this.#spare.subarray(0, packed.bytes), targetOffset);
    return packed;
  }

  #compress(
    sourceAddress: number,
    { targetAddress, targetBytes }: { targetAddress: number; targetBytes: number },
  ): number {
    const block = { sourceAddress, sourceBytes: PAGE_BYTES, targetAddress, targetBytes };
    return this.#lz4.compress(block, ACCELERATION);
  }
}

export interface PagesToDecode {
  /** A batch, and nothing behind it. */
  readonly input: Uint8Array;
  /** Holds the bases, and becomes the pages. */
  readonly target: Uint8Array;
}

/** The reverse of `PageEncoder`. Trusts nothing that it is given. */
export class PageDecoder {
  readonly #lz4: Lz4;
  readonly #difference = new Int32Array(PAGE_WORDS);
  readonly #differenceAddress: number;

  /** @throws WireError WIRE_CODEC_MISSING */
  constructor() {
    this.#lz4 = usableLz4();
    this.#differenceAddress = addressOf(new Uint8Array(this.#difference.buffer));
  }

  /**
   * Writes nothing outside of `target`, whatever `input` says. After an error `target` may hold some of the pages and is no
   * base any more. @throws WireError WIRE_PAGES_INVALID
   */
  decodePages({ input: given, target }: PagesToDecode): { readonly perKind: PerKind } {
    const pageCount = wholePages(target);
    const input = unsqueezed(given, pageCount);
    const entries = readEntries(input, pageCount);
    const words = wordsOf(target);
    const inputAddress = addressOf(input);
    const targetAddress = addressOf(target);
    const perKind: PerKind = { zero: 0, same: 0, raw: 0, lz4: 0, xorLz4: 0, patch: 0 };
    let from = COUNT_BYTES + pageCount * ENTRY_BYTES;
    for (const [page, { kind, bytes }] of entries.entries()) {
      const offset = page * PAGE_BYTES;
      if (kind === 'zero') target.fill(0, offset, offset + PAGE_BYTES);
      else if (kind === 'raw') target.set(input.subarray(from, from + PAGE_BYTES), offset);
      else if (kind === 'patch') applyPatch(input.subarray(from, from + bytes), words, page);
      else if (kind !== 'same') {
        const into = kind === 'lz4' ? targetAddress + offset : this.#differenceAddress;
        this.#decompress({
          sourceAddress: inputAddress + from,
          sourceBytes: bytes,
          targetAddress: into,
          page,
        });
        if (kind === 'xorLz4') add(this.#difference, words, page * PAGE_WORDS);
      }
      perKind[kind] += 1;
      from += bytes;
    }
    return { perKind };
  }

  #decompress({ page, ...block }: Omit<Parameters<Lz4['decompress']>[0], 'targetBytes'> & { page: number }) {
    const written = this.#lz4.decompress({ ...block, targetBytes: PAGE_BYTES });
    if (written !== PAGE_BYTES) throw invalid(`page ${page} unpacks to ${written} bytes`);
  }
}

interface PageWork {
  readonly words: Int32Array;
  /** Undefined where the base is not known. */
  readonly baseWords: Int32Array | undefined;
  /** First word of the page. */
  readonly at: number;
  readonly pageAddress: number;
  readonly target: Uint8Array;
  readonly targetOffset: number;
  readonly targetAddress: number;
  readonly effort: Effort;
}

interface Packed {
  readonly kind: keyof typeof KIND;
  /** What it takes behind the table. */
  readonly bytes: number;
}

interface Source {
  readonly kind: 'lz4' | 'xorLz4';
  readonly address: number;
}

const ZERO: Packed = { kind: 'zero', bytes: 0 };
const SAME: Packed = { kind: 'same', bytes: 0 };
const RAW: Packed = { kind: 'raw', bytes: PAGE_BYTES };
const KINDS = Object.keys(KIND) as (keyof typeof KIND)[];

/** Puts zstd of what is behind the number of pages in its place, where that takes less. Returns what the batch takes then. */
function squeezed(out: Uint8Array, { bytes, level }: { bytes: number; level: number | undefined }): number {
  if (level === undefined) return bytes;
  const params = { [constants.ZSTD_c_compressionLevel]: level };
  const piece = zstdCompressSync(out.subarray(COUNT_BYTES, bytes), { params });
  if (COUNT_BYTES + piece.length >= bytes) return bytes;
  out.set(piece, COUNT_BYTES);
  const head = new DataView(out.buffer, out.byteOffset, COUNT_BYTES);
  head.setUint32(0, (head.getUint32(0, true) | IS_SQUEEZED) >>> 0, true);
  return COUNT_BYTES + piece.length;
}

function unsqueezed(input: Uint8Array, pageCount: number): Uint8Array {
  if (input.length < COUNT_BYTES) return input;
  const count = new DataView(input.buffer, input.byteOffset, COUNT_BYTES).getUint32(0, true);
  if (count < IS_SQUEEZED) return input;
  const head = Buffer.alloc(COUNT_BYTES);
  head.writeUInt32LE(count - IS_SQUEEZED);
  const maxOutputLength = encodedBytesMax(Math.max(1, pageCount));
  // Memory is taken for the window that the other side asks for, whatever comes of it: none is larger than what it packed.
  const params = { [constants.ZSTD_d_windowLogMax]: Math.ceil(Math.log2(maxOutputLength)) };
  try {
    const piece = zstdDecompressSync(input.subarray(COUNT_BYTES), { maxOutputLength, params });
    return Buffer.concat([head, piece]);
  } catch (thrown) {
    throw invalid(`zstd says: ${messageOf(thrown)}`);
  }
}

/** Each entry is possible in itself, and together they are exactly as long as the input. */
function readEntries(input: Uint8Array, pageCount: number): Packed[] {
  const tableBytes = COUNT_BYTES + pageCount * ENTRY_BYTES;
  if (input.length < tableBytes) throw invalid(`its ${input.length} bytes end before its table does`);
  const table = new DataView(input.buffer, input.byteOffset, tableBytes);
  const said = table.getUint32(0, true);
  if (said !== pageCount) throw invalid(`it has ${said} pages, not ${pageCount}`);
  let end = tableBytes;
  const entries = Array.from({ length: pageCount }, (_, page) => {
    const entry = table.getUint16(COUNT_BYTES + page * ENTRY_BYTES, true);
    const kind = KINDS[entry >> LENGTH_BITS];
    const bytes = entry & LENGTH_MASK;
    if (kind === undefined || !isPossible(kind, bytes))
      throw invalid(`page ${page} has the entry 0x${entry.toString(16)}`);
    end += bytes;
    return { kind, bytes };
  });
  if (end !== input.length) throw invalid(`its table speaks of ${end} bytes, and it has ${input.length}`);
  return entries;
}

function isPossible(kind: keyof typeof KIND, bytes: number): boolean {
  if (kind === 'zero' || kind === 'same') return bytes === 0;
  if (kind === 'raw') return bytes === PAGE_BYTES;
  return bytes > 0 && bytes <= PACKED_BYTES_MAX && (kind !== 'patch' || bytes % WORD_BYTES === 0);
}

function isZero(words: Int32Array, at: number): boolean {
  for (let word = at; word < at + PAGE_WORDS; word += 1) if (words[word] !== 0) return false;
  return true;
}

/** Leaves what differs in `into`, and returns how many words do. */
function subtract(
  words: Int32Array,
  baseWords: Int32Array,
  { at, into }: { at: number; into: Int32Array },
): number {
  let changed = 0;
  for (let word = 0; word < PAGE_WORDS; word += 1) {
    const difference = (words[at + word] as number) ^ (baseWords[at + word] as number);
    into[word] = difference;
    changed += difference === 0 ? 0 : 1;
  }
  return changed;
}

function add(difference: Int32Array, words: Int32Array, at: number): void {
  for (let word = 0; word < PAGE_WORDS; word += 1)
    words[at + word] = (words[at + word] as number) ^ (difference[word] as number);
}

/**
 * Leaves the words that differ in `into`, and returns how many bytes that takes: 0 when none does, more than `limitBytes`
 * as soon as that is known.
 */
function writePatch(
  words: Int32Array,
  baseWords: Int32Array,
  { at, into, limitBytes }: { at: number; into: Int32Array; limitBytes: number },
): number {
  const end = at + PAGE_WORDS;
  let length = 0;
  for (let word = at; ; ) {
    const leftFrom = word;
    while (word < end && words[word] === baseWords[word]) word += 1;
    if (word === end) return length * WORD_BYTES;
    const first = word;
    const header = length;
    length += 1;
    do {
      into[length] = words[word] as number;
      length += 1;
      word += 1;
      if (length * WORD_BYTES > limitBytes) return length * WORD_BYTES;
      // A single word that is equal costs no more than the header of another run.
    } while (
      word < end &&
      (words[word] !== baseWords[word] || (word + 1 < end && words[word + 1] !== baseWords[word + 1]))
    );
    into[header] = (first - leftFrom) | ((word - first) << 16);
  }
}

function applyPatch(patch: Uint8Array, words: Int32Array, page: number): void {
  const view = new DataView(patch.buffer, patch.byteOffset, patch.length);
  const end = (page + 1) * PAGE_WORDS;
  let word = page * PAGE_WORDS;
  for (let from = 0; from < patch.length; ) {
    word += view.getUint16(from, true);
    const runWords = view.getUint16(from + 2, true);
    from += WORD_BYTES;
    if (runWords === 0 || word + runWords > end || from + runWords * WORD_BYTES > patch.length)
      throw invalid(`page ${page} has a patch that does not fit`);
    for (const runEnd = word + runWords; word < runEnd; word += 1, from += WORD_BYTES)
      words[word] = view.getInt32(from, true);
  }
}

function wholePages(pages: Uint8Array): number {
  assert(pages.length % PAGE_BYTES === 0, `${pages.length} bytes are whole pages`);
  return pages.length / PAGE_BYTES;
}

function wordsOf(pages: Uint8Array): Int32Array {
  assert(pages.byteOffset % WORD_BYTES === 0, 'pages begin at a word');
  return new Int32Array(pages.buffer, pages.byteOffset, pages.length / WORD_BYTES);
}

function usableLz4(): Lz4 {
  try {
    return loadLz4();
  } catch (cause) {
    throw new WireError('WIRE_CODEC_MISSING', `LZ4 cannot be used: ${messageOf(cause)}`, {
      hint: 'Install it on both hosts: apt-get install liblz4-1',
      cause,
    });
  }
}

function invalid(reason: string): WireError {
  return new WireError('WIRE_PAGES_INVALID', `pages from the other host cannot be unpacked: ${reason}`, {
    hint: 'The shadow gets all of its memory anew. Bring both hosts to the same release of Understudy.',
    facts: { reason },
  });
}
