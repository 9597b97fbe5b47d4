import { zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PAGE_BYTES } from '../base/units.ts';
import { type Effort, encodedBytesMax, PageDecoder, PageEncoder, type PerKind } from './page-codec.ts';
import { WireError } from './wire-error.ts';

const encoder = new PageEncoder();
const decoder = new PageDecoder();
const effort = fc.constantFrom<Effort>(0, 1, 2, 3);

/** A page as guests have them: empty, text, noise, counters, or some of it changed since. */
const page = fc
  .record({
    like: fc.constantFrom('zero', 'text', 'noise', 'counters'),
    seed: fc.nat(),
    changes: fc.array(fc.record({ at: fc.nat(PAGE_BYTES - 1), to: fc.nat(255) }), { maxLength: 40 }),
    becomes: fc.constantFrom('changed', 'changed', 'same', 'zero', 'noise'),
  })
  .map(({ like, seed, changes, becomes }) => {
    const base = pageLike(like, seed);
    if (becomes === 'zero' || becomes === 'noise') return { base, now: pageLike(becomes, seed + 1) };
    const now = base.slice();
    if (becomes === 'changed') for (const { at, to } of changes) now[at] = to;
    return { base, now };
  });
const batch = fc.array(page, { maxLength: 6 }).map((list) => ({
  bases: joined(list.map(({ base }) => base)),
  pages: joined(list.map(({ now }) => now)),
}));

function pageLike(kind: string, seed: number): Uint8Array {
  let state = seed | 1;
  const next = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) | 0;
    return state >>> 16;
  };
  const bytes = new Uint8Array(PAGE_BYTES);
  if (kind === 'noise') for (let at = 0; at < PAGE_BYTES; at += 1) bytes[at] = next();
  if (kind === 'text') bytes.set(Buffer.from(`key:${seed} value `.repeat(500)).subarray(0, PAGE_BYTES));
  if (kind === 'counters') for (let at = 0; at < PAGE_BYTES; at += 16) bytes[at] = next();
  return bytes;
}

function joined(list: readonly Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(list.length * PAGE_BYTES);
  for (const [index, bytes] of list.entries()) whole.set(bytes, index * PAGE_BYTES);
  return whole;
}

interface Encoding {
  readonly pages: Uint8Array;
  readonly bases?: Uint8Array | undefined;
  readonly basesKnown?: Uint8Array;
  readonly effort?: Effort;
}

function encode({ pages, bases, basesKnown, effort = 1 }: Encoding): { input: Uint8Array; perKind: PerKind } {
  const out = new Uint8Array(encodedBytesMax(pages.length / PAGE_BYTES));
  const { bytes, perKind } = encoder.encodePages({
    pages,
    bases,
    ...(basesKnown && { basesKnown }),
    out,
    effort,
  });
  return { input: out.slice(0, bytes), perKind };
}

describe('pages on their way', () => {
  it('come out as they went in, on top of their bases, with any effort', () => {
    fc.assert(
      fc.property(batch, effort, ({ pages, bases }, effort) => {
        const { input, perKind } = encode({ pages, bases, effort });
        expect(input.length).toBeLessThanOrEqual(encodedBytesMax(pages.length / PAGE_BYTES));
        const target = bases.slice();
        expect(decoder.decodePages({ input, target })).toEqual({ perKind });
        expect(Buffer.compare(target, pages)).toBe(0);
      }),
    );
  });

  it('come out as they went in where no base is known, or of some only, whatever the target held', () => {
    fc.assert(
      fc.property(batch, effort, fc.array(fc.boolean()), ({ pages, bases }, effort, known) => {
        const basesKnown = Uint8Array.from({ length: pages.length / PAGE_BYTES }, (_, index) =>
          known[index] ? 1 : 0,
        );
        const target = bases.slice();
        for (const [index, isKnown] of basesKnown.entries())
          if (!isKnown) target.fill(0xaa, index * PAGE_BYTES, (index + 1) * PAGE_BYTES);
        decoder.decodePages({ input: encode({ pages, bases, basesKnown, effort }).input, target });
        expect(Buffer.compare(target, pages)).toBe(0);
        const other = new Uint8Array(pages.length).fill(0x55);
        decoder.decodePages({ input: encode({ pages, effort }).input, target: other });
        expect(Buffer.compare(other, pages)).toBe(0);
      }),
    );
  });

  it('come out wrong on top of another base (control: bases do count)', () => {
    const bases = joined([pageLike('noise', 1)]);
    const pages = bases.slice();
    pages[100] = (pages[100] ?? 0) ^ 1;
    const { input, perKind } = encode({ pages, bases });
    expect(perKind.patch).toBe(1);
    const target = joined([pageLike('noise', 2)]);
    decoder.decodePages({ input, target });
    expect(Buffer.compare(target, pages)).not.toBe(0);
  });

  it('travel in the way that suits each of them', () => {
    const noise = pageLike('noise', 1);
    const touched = noise.slice();
    touched[9] = (touched[9] ?? 0) ^ 1;
    // Every third word of it is another, and always in the same way.
    const shifted = noise.map((byte, at) => (at % 12 === 0 ? byte ^ 1 : byte));
    const text = pageLike('text', 7);
    const bases = joined([noise, text, text, noise, noise, noise]);
    const pages = joined([pageLike('zero', 1), text, pageLike('noise', 5), text, touched, shifted]);
    const { input, perKind } = encode({ pages, bases });
    expect(perKind).toEqual({ zero: 1, same: 1, raw: 1, lz4: 1, patch: 1, xorLz4: 1 });
    expect(input.length).toBeLessThan(PAGE_BYTES + 400);
    const { perKind: quickest } = encode({ pages, bases, effort: 0 });
    expect(quickest).toEqual({ zero: 1, same: 1, raw: 2, lz4: 0, patch: 2, xorLz4: 0 });
  });

  it('never take more with the most effort than with the least', () => {
    fc.assert(
      fc.property(batch, fc.constantFrom<Effort>(2, 3), ({ pages, bases }, most) => {
        const [little, much] = ([0, most] as const).map(
          (effort) => encode({ pages, bases, effort }).input.length,
        );
        expect(much).toBeLessThanOrEqual(little ?? 0);
      }),
    );
  });

  it('take much less together where they have much in common, which LZ4 of each cannot find', () => {
    const noise = pageLike('noise', 1);
    const pages = joined(Array.from({ length: 16 }, () => noise));
    const alone = encode({ pages, effort: 1 }).input.length;
    expect(alone).toBeGreaterThan(16 * PAGE_BYTES);
    expect(encode({ pages, effort: 2 }).input.length).toBeLessThan(alone / 10);
  });

  it('that were damaged are refused, or come out wrong, and nothing beside them is touched', () => {
    const GUARD = 0x77;
    let refused = 0;
    fc.assert(
      fc.property(
        batch,
        fc.array(fc.record({ at: fc.nat(), to: fc.nat(255) }), { minLength: 1, maxLength: 8 }),
        fc.integer({ min: -20, max: 20 }),
        effort,
        ({ pages, bases }, changes, growBytes, effort) => {
          const { input } = encode({ pages, bases, effort });
          const mutated = new Uint8Array(Math.max(0, input.length + growBytes));
          mutated.set(input.subarray(0, mutated.length));
          for (const { at, to } of changes) if (mutated.length > 0) mutated[at % mutated.length] = to;
          const room = new Uint8Array(bases.length + 2 * PAGE_BYTES).fill(GUARD);
          const target = room.subarray(PAGE_BYTES, PAGE_BYTES + bases.length);
          target.set(bases);
          try {
            decoder.decodePages({ input: mutated, target });
          } catch (thrown) {
            refused += 1;
            expect(thrown).toBeInstanceOf(WireError);
            expect(thrown).toMatchObject({ code: 'WIRE_PAGES_INVALID' });
          }
          const beside = Buffer.concat([
            room.subarray(0, PAGE_BYTES),
            room.subarray(target.length + PAGE_BYTES),
          ]);
          expect(beside.every((byte) => byte === GUARD)).toBe(true);
        },
      ),
      { numRuns: 2000 },
    );
    expect(refused).toBeGreaterThan(500);
  });

  it.each<[string, (input: Uint8Array) => Uint8Array]>([
    ['end within their table', (input) => input.subarray(0, 5)],
    ['are for another number of pages', (input) => input.with(0, 3)],
    ['are of a kind that does not exist', (input) => input.with(5, 0xe0)],
    ['say that a zero page takes bytes', (input) => input.with(4, 1)],
    ['are fewer bytes than they say', (input) => input.subarray(0, input.length - 1)],
    ['are more bytes than they say', (input) => Buffer.concat([input, input.subarray(0, 1)])],
    ['are a patch of half a word', (input) => input.with(6, 0x42).with(7, 0xa0)],
    ['are packed into nothing', (input) => input.with(7, 0x60).with(6, 0).subarray(0, 8)],
  ])('that %s are refused before anything is written', (_, damage) => {
    const pages = joined([pageLike('zero', 1), pageLike('text', 1)]);
    const { input } = encode({ pages });
    const target = new Uint8Array(pages.length).fill(9);
    expect(() => decoder.decodePages({ input: damage(input), target })).toThrow(
      expect.objectContaining({ code: 'WIRE_PAGES_INVALID' }),
    );
    expect(target.every((byte) => byte === 9)).toBe(true);
    // What was not damaged is taken (control).
    decoder.decodePages({ input, target });
    expect(Buffer.compare(target, pages)).toBe(0);
  });

  it('that unpack to more than pages can take are refused, and no more than that is unpacked', () => {
    const bomb = zstdCompressSync(new Uint8Array(64 * 2 ** 20));
    const input = Buffer.concat([Buffer.of(1, 0, 0, 0x80), bomb]);
    const target = new Uint8Array(PAGE_BYTES).fill(9);
    expect(() => decoder.decodePages({ input, target })).toThrow(
      expect.objectContaining({ code: 'WIRE_PAGES_INVALID' }),
    );
    expect(target.every((byte) => byte === 9)).toBe(true);
  });

  it('that ask for more memory to be unpacked than a batch takes are refused before it is taken', () => {
    // A frame of zstd with one block as it is, of the entry of a zero page.
    const frame = (windowLog: number) =>
      Buffer.of(0x28, 0xb5, 0x2f, 0xfd, 0, (windowLog - 10) << 3, 1 | (2 << 3), 0, 0, 0, 0);
    const decode = (windowLog: number) => {
      const target = new Uint8Array(PAGE_BYTES).fill(9);
      decoder.decodePages({ input: Buffer.concat([Buffer.of(1, 0, 0, 0x80), frame(windowLog)]), target });
      return target.every((byte) => byte === 0);
    };
    expect(() => decode(26)).toThrow(expect.objectContaining({ code: 'WIRE_PAGES_INVALID' }));
    expect([decode(12), [...zstdDecompressSync(frame(26))]]).toEqual([true, [0, 0]]);
  });

  it.each<Effort>([2, 3])(
    'unpack in the memory that a batch takes, however many they are, with effort %d',
    (effort) => {
      for (const pageCount of [1, 2, 3, 5, 9, 64, 65, 255, 256]) {
        const list = Array.from({ length: pageCount }, (_, seed) =>
          pageLike(seed % 3 ? 'noise' : 'text', seed),
        );
        const pages = joined(list);
        const { input } = encode({ pages, effort });
        const target = new Uint8Array(pages.length);
        decoder.decodePages({ input, target });
        expect(Buffer.compare(target, pages)).toBe(0);
      }
    },
  );

  it.each<[string, number, readonly number[]]>([
    ['a patch reaches beyond its page', 0xa00c, [0xff, 3, 2, 0, 1, 1, 1, 1, 1, 1, 1, 1]],
    ['a patch has a run of nothing', 0xa004, [0, 0, 0, 0]],
    ['a patch has a run that is cut short', 0xa008, [0, 0, 2, 0, 1, 1, 1, 1]],
    ['a block of LZ4 unpacks to less than a page', 0x6003, [0x20, 1, 1]],
    ['a block of LZ4 is none', 0x6003, [0xff, 0xff, 0xff]],
    ['a difference unpacks to less than a page', 0x8003, [0x20, 1, 1]],
  ])('of which %s are refused, and the page behind is not touched', (_, entry, body) => {
    const input = Uint8Array.from([2, 0, 0, 0, entry & 255, entry >> 8, 0, 0x20, ...body]);
    const target = new Uint8Array(2 * PAGE_BYTES).fill(9);
    expect(() => decoder.decodePages({ input, target })).toThrow(
      expect.objectContaining({ code: 'WIRE_PAGES_INVALID' }),
    );
    expect(target.subarray(PAGE_BYTES).every((byte) => byte === 9)).toBe(true);
  });
});
