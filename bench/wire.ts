import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import { assert } from '../src/base/assert.ts';
import { MIB, PAGE_BYTES } from '../src/base/units.ts';
import { addressOf, loadLz4 } from '../src/linux/lz4.ts';
import {
  type Effort,
  encodedBytesMax,
  PageDecoder,
  PageEncoder,
  type PerKind,
} from '../src/wire/page-codec.ts';
import { type WrittenPages, writtenPagesOfRedis } from './guest-pages.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { linkFigures, measureLinks } from './slow-links.ts';

const EFFORTS: readonly Effort[] = [0, 1, 2, 3];
const SAMPLES = 40;
const QUICK_SAMPLES = 10;
/** Every way packs every sample so often, in turn. */
const ROUNDS = 9;
/** The first ones warm the compiler up. */
const WARM_UP_ROUNDS = 3;

export const wire: Benchmark = {
  name: 'wire',
  summary: 'Pages of a loaded Redis guest packed for another host, next to plain LZ4 and zstd -1.',
  figures: figureTable(),
  run: async (run) => {
    const samples = await writtenPagesOfRedis(run, run.options.quick ? QUICK_SAMPLES : SAMPLES);
    const used = samples.filter(({ pages }) => pages.length > 0);
    const count = used.reduce((sum, { pages }) => sum + pages.length / PAGE_BYTES, 0);
    run.progress(`packing ${count} pages in ${used.length} samples`);
    const total = new Map<string, Total>();
    for (let round = 0; round < ROUNDS; round += 1)
      for (const sample of used)
        for (const way of WAYS) measure(run, { way, sample, total, counts: round >= WARM_UP_ROUNDS });
    setFigures(run, total);
    await measureLinks(run, used);
    run.note(
      `${count} pages that changed within a moment under redis-benchmark, with what they were before as bases`,
    );
    run.note('written and unchanged pages cannot be seen from outside, so that none is among them');
    run.note('LZ4 and zstd get each sample in one piece, which suits them better than page by page');
    run.note(`kinds with effort 1: ${kindsText(total.get('packEffort1')?.perKind)}`);
  },
};

function figureTable(): Record<string, FigureInfo> {
  const figures: Record<string, FigureInfo> = {};
  for (const effort of EFFORTS) {
    figures[`packEffort${effort}Ratio`] = {
      meaning: `packed bytes / bytes of the pages, effort ${effort}`,
      ...(effort === 1 && { target: { atMost: 0.5 } }),
    };
    figures[`packEffort${effort}MiBPerSecond`] = { meaning: `pages packed per second, effort ${effort}` };
  }
  return {
    ...figures,
    unpackEffort1MiBPerSecond: { meaning: 'pages unpacked per second, of those packed with effort 1' },
    packNoBaseRatio: { meaning: 'packed bytes / bytes of the pages, effort 1, as for a full copy: no bases' },
    packNoBaseMiBPerSecond: { meaning: 'pages packed per second in this way' },
    packNoBaseEffort2Ratio: { meaning: 'the same with effort 2' },
    packNoBaseEffort2MiBPerSecond: { meaning: 'pages packed per second in this way' },
    lz4Ratio: { meaning: 'the same for LZ4' },
    lz4MiBPerSecond: { meaning: 'pages packed per second by LZ4' },
    zstd1Ratio: { meaning: 'the same for zstd -1' },
    zstd1MiBPerSecond: { meaning: 'pages packed per second by zstd -1' },
    bytesAgainstLz4Ratio: { meaning: 'packEffort1Ratio / lz4Ratio', target: { atMost: 1 } },
    bytesAgainstZstd1Ratio: { meaning: 'packEffort1Ratio / zstd1Ratio' },
    ...linkFigures(),
  };
}

interface Outcome {
  readonly bytes: number;
  readonly packMs: number;
  readonly unpackMs?: number;
  readonly perKind?: PerKind;
}

interface Way {
  readonly name: string;
  pack(sample: WrittenPages, nowMs: () => number): Outcome;
}

interface Total {
  packedBytes: number;
  pageBytes: number;
  perKind?: PerKind;
}

const WAYS: readonly Way[] = [
  ...EFFORTS.map((effort) => ours(`packEffort${effort}`, { effort, hasBases: true })),
  ours('packNoBase', { effort: 1, hasBases: false }),
  ours('packNoBaseEffort2', { effort: 2, hasBases: false }),
  { name: 'lz4', pack: packWithLz4 },
  { name: 'zstd1', pack: packWithZstd },
];

function ours(name: string, { effort, hasBases }: { effort: Effort; hasBases: boolean }): Way {
  const encoder = new PageEncoder();
  const decoder = new PageDecoder();
  return {
    name,
    pack: ({ pages, bases }, nowMs) => {
      const out = new Uint8Array(encodedBytesMax(pages.length / PAGE_BYTES));
      const startMs = nowMs();
      const { bytes, perKind } = encoder.encodePages({
        pages,
        bases: hasBases ? bases : undefined,
        out,
        effort,
      });
      const packMs = nowMs() - startMs;
      const target = bases.slice();
      const unpackStartMs = nowMs();
      decoder.decodePages({ input: out.subarray(0, bytes), target });
      const unpackMs = nowMs() - unpackStartMs;
      assertSame(target, pages);
      return { bytes, packMs, unpackMs, perKind };
    },
  };
}

function packWithLz4({ pages }: WrittenPages, nowMs: () => number): Outcome {
  const lz4 = loadLz4();
  const out = new Uint8Array(pages.length + pages.length / 128 + 64);
  const again = new Uint8Array(pages.length);
  const place = { sourceAddress: addressOf(pages), sourceBytes: pages.length };
  const startMs = nowMs();
  const bytes = lz4.compress({ ...place, targetAddress: addressOf(out), targetBytes: out.length }, 1);
  const packMs = nowMs() - startMs;
  const packed = { sourceAddress: addressOf(out), sourceBytes: bytes };
  lz4.decompress({ ...packed, targetAddress: addressOf(again), targetBytes: again.length });
  assertSame(again, pages);
  return { bytes, packMs };
}

function packWithZstd({ pages }: WrittenPages, nowMs: () => number): Outcome {
  const startMs = nowMs();
  const packed = zstdCompressSync(pages, { params: { [constants.ZSTD_c_compressionLevel]: 1 } });
  const packMs = nowMs() - startMs;
  assertSame(zstdDecompressSync(packed), pages);
  return { bytes: packed.length, packMs };
}

interface Turn {
  readonly way: Way;
  readonly sample: WrittenPages;
  readonly total: Map<string, Total>;
  readonly counts: boolean;
}

function measure(run: BenchRun, { way, sample, total, counts }: Turn): void {
  run.options.signal.throwIfAborted();
  const outcome = way.pack(sample, () => run.options.clock.nowMs());
  if (!counts) return;
  const perSecond = (ms: number) => sample.pages.length / MIB / (ms / 1000);
  run.sample(`${way.name}MiBPerSecond`, perSecond(outcome.packMs));
  if (outcome.unpackMs !== undefined) run.sample(`un${way.name}MiBPerSecond`, perSecond(outcome.unpackMs));
  const sum = total.get(way.name) ?? { packedBytes: 0, pageBytes: 0 };
  sum.packedBytes += outcome.bytes;
  sum.pageBytes += sample.pages.length;
  if (outcome.perKind !== undefined) sum.perKind = added(sum.perKind, outcome.perKind);
  total.set(way.name, sum);
}

function setFigures(run: BenchRun, total: ReadonlyMap<string, Total>): void {
  const ratio = (name: string) => {
    const sum = total.get(name);
    assert(sum !== undefined, `there are pages that ${name} has packed`);
    return sum.packedBytes / sum.pageBytes;
  };
  for (const { name } of WAYS) {
    run.figure(`${name}Ratio`, ratio(name));
    run.figure(`${name}MiBPerSecond`, run.p50(`${name}MiBPerSecond`));
  }
  run.figure('unpackEffort1MiBPerSecond', run.p50('unpackEffort1MiBPerSecond'));
  run.figure('bytesAgainstLz4Ratio', ratio('packEffort1') / ratio('lz4'));
  run.figure('bytesAgainstZstd1Ratio', ratio('packEffort1') / ratio('zstd1'));
}

function added(a: PerKind | undefined, b: PerKind): PerKind {
  if (a === undefined) return { ...b };
  const sum = { ...a };
  for (const kind of Object.keys(sum) as (keyof PerKind)[]) sum[kind] += b[kind];
  return sum;
}

function kindsText(perKind: PerKind | undefined): string {
  const counts = Object.entries(perKind ?? {});
  const all = counts.reduce((sum, [, count]) => sum + count, 0);
  return counts.map(([kind, count]) => `${kind} ${((100 * count) / all).toFixed(1)} %`).join(', ');
}

/** What cannot be unpacked is no compression. */
function assertSame(unpacked: Uint8Array, pages: Uint8Array): void {
  assert(Buffer.compare(unpacked, pages) === 0, 'pages come out as they went in');
}
