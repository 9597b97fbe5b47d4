import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { systemClock as clock } from '../src/base/clock.ts';
import { MIB } from '../src/base/units.ts';
import type { BlockDevice } from '../src/block/block-device.ts';
import { HINT_BYTES_MAX } from '../src/block/read-hints.ts';
import { disksOf } from '../src/config/spec-disks.ts';
import { parseVmSpec } from '../src/config/vm-spec.ts';
import { openLower } from '../src/keeper/lower-device.ts';
import { CacheWarmer } from '../src/replication/cache-warmer.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';

const IMAGE_BYTES = 64 * MIB;
const ROUNDS = 7;
const QUICK_ROUNDS = 3;
const SMALL_BYTES = 4096;
const SMALL_READS = 500;
/** So that they are not next to each other, and all different. */
const STRIDE_BLOCKS = 7919;
const LARGE_BYTES = 64 * 1024;
const FORMATS = ['raw', 'qcow2'] as const;
const LOADS = ['Random', 'Sequential'] as const;

type Format = (typeof FORMATS)[number];
type Load = (typeof LOADS)[number];

const MEANINGS: Readonly<Record<Load, string>> = {
  Random: `${SMALL_READS} first reads of 4 KiB here and there, one at a time`,
  Sequential: 'the first read of all 64 MiB, in pieces of 64 KiB, one at a time',
};
const FORMAT_LOADS = FORMATS.flatMap((format) => LOADS.map((load) => ({ format, load })));

export const warming: Benchmark = {
  name: 'warming',
  summary: 'First reads from the copy of a disk after a takeover: cold, and where hints have warmed it.',
  figures: Object.fromEntries(
    FORMAT_LOADS.map(({ format, load }): [string, FigureInfo] => [
      `${format}${load}Ratio`,
      {
        meaning: `${format}: ${MEANINGS[load]}; time from a cold cache / from one that was hinted at; medians`,
        target: { atLeast: 1 },
      },
    ]),
  ),
  run: async (run) => {
    const folder = mkdtempSync(join(tmpdir(), 'us-warming-'));
    try {
      for (const format of FORMATS) await measure(run, { folder, format });
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
    for (const { format, load } of FORMAT_LOADS) {
      const name = `${format}${load}`;
      run.figure(`${name}Ratio`, run.p50(`${name}Ms.cold`) / run.p50(`${name}Ms.warmed`));
    }
    run.note('cold: POSIX_FADV_DONTNEED on the image; what the disk below it caches nobody here can empty');
    run.note(
      'warmed: the same, then a hint about each MiB, and all of them acted upon; takes 1 s for 64 MiB',
    );
  },
};

async function measure(
  run: BenchRun,
  { folder, format }: { readonly folder: string; readonly format: Format },
): Promise<void> {
  const path = join(folder, `image.${format}`);
  const raw = join(folder, 'image.raw');
  if (format === 'raw') writeFileSync(raw, randomBytes(IMAGE_BYTES), { flush: true });
  else execFileSync('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, path]);
  const yaml = `name: a\nmemory: 64M\nboot: {kernel: k}\ndisks: [{path: ${path}, format: ${format}}]\n`;
  const [disk] = disksOf(parseVmSpec(yaml, { source: 'a.yaml' }));
  if (disk === undefined) return;
  const device = await openLower({ disk, clock, runDirectory: folder, user: undefined });
  try {
    const rounds = run.options.quick ? QUICK_ROUNDS : ROUNDS;
    for (let round = 1; round <= rounds; round += 1) {
      run.progress(`${format}, round ${round} of ${rounds}`);
      for (const load of LOADS) {
        for (const state of ['cold', 'warmed'] as const) {
          makeCold(path);
          if (state === 'warmed') await warm(device);
          run.sample(`${format}${load}Ms.${state}`, await readMs(device, load));
        }
      }
    }
  } finally {
    await device.close();
  }
}

function makeCold(path: string): void {
  execFileSync('dd', [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0'], {
    stdio: 'ignore',
  });
}

async function warm(device: BlockDevice): Promise<void> {
  const warmer = new CacheWarmer({ devices: [device], idle: async () => {} });
  for (let offset = 0; offset < IMAGE_BYTES; offset += HINT_BYTES_MAX)
    warmer.want([{ disk: 0, offset, lengthBytes: HINT_BYTES_MAX }]);
  while (warmer.warmedBytes(0) < IMAGE_BYTES) await clock.sleep(10);
  await warmer.end();
}

async function readMs(device: BlockDevice, load: Load): Promise<number> {
  const startMs = clock.nowMs();
  if (load === 'Random') {
    const bytes = Buffer.alloc(SMALL_BYTES);
    const blocks = IMAGE_BYTES / SMALL_BYTES;
    for (let count = 0; count < SMALL_READS; count += 1)
      await device.read(((count * STRIDE_BLOCKS) % blocks) * SMALL_BYTES, bytes);
  } else {
    const bytes = Buffer.alloc(LARGE_BYTES);
    for (let offset = 0; offset < IMAGE_BYTES; offset += LARGE_BYTES) await device.read(offset, bytes);
  }
  return clock.nowMs() - startMs;
}
