import { type DemoGuest, ensureDemoGuest } from '../guest/build.ts';
import { quantile } from '../src/base/sample-window.ts';
import { MIB } from '../src/base/units.ts';
import { tryColo } from './colo-peer.ts';
import { type Cut, EpochRig } from './epoch-rig.ts';
import { FullSnapshots } from './full-snapshot.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { freeMemoryBytes } from './machine-facts.ts';

const BASE_MIB = 256;
/** The largest first: while the small VM is still as it booted, the two are compared before memory is filled. */
const LARGE_SIZES_MIB = [4096, 2048, 1024] as const;
const EXTRA_2_GIB_STEPS = (4096 - BASE_MIB) / 2048;
/** The VM, its shadow, a snapshot in a file, and room to breathe. */
const ROOM_FACTOR = 3.25;

/** 64 MiB of which up to 32 pages are written each millisecond: how often it is cut decides how much is dirty. */
const WRITER = '16384:1';
const WRITER_INTERVALS_MS = [4, 12, 40, 130, 400];
/** Upper bounds of the classes in which pauses are reported, in dirty pages. */
const PAGE_CLASSES = [64, 256, 1024, 4096] as const;

/** Samples of one VM: its pauses, its scans, the full snapshots of it. */
const SERIES = {
  pause: (place: string) => `pause${place}Ms`,
  scan: (place: string) => `scan${place}Ms`,
  snapshot: (place: string) => `fullSnapshotPause${place}Ms`,
};
const sized = (memoryMiB: number) => `${memoryMiB}MiB`;
const below = (pages: number) => `Below${pages}Pages`;

export const checkpoint: Benchmark = {
  name: 'checkpoint',
  summary: 'How long a VM stands still for an epoch, next to full QEMU snapshots of the same VM and to COLO.',
  figures: figureTable(),
  run: async (run) => {
    const guest = await ensureDemoGuest({ onProgress: run.options.onProgress });
    run.describe({ versions: { guestKernel: guest.kernelRelease } });
    await using base = await bootRig(run, guest, { memoryMiB: BASE_MIB });
    run.describe({ machine: { accel: base.accel, dirtyLog: base.primary.dirtyLog.method } });
    await base.protect();
    await measureIdle(run, base);
    await measureSizes(run, base, guest);
    await measureDirtyPages(run, guest);
    await base.unprotect();
    await measureColo(run, base);
  },
};

function figureTable(): Record<string, FigureInfo> {
  const figures: Record<string, FigureInfo> = {
    pauseP50Ms: {
      meaning: 'pause of an epoch of the idle guest, 256 MiB, every 100 ms',
      target: { atMost: 2.5 },
    },
    pauseP99Ms: { meaning: 'the same, 99 of 100', target: { atMost: 10 } },
    pausePerExtra2GiBMs: {
      meaning: 'what 2 GiB more of idle memory, resident, add to the median pause',
      target: { atMost: 1 },
    },
    fullSnapshotPauseP50Ms: { meaning: 'QEMU: stop, migrate to a file in memory, cont; the same guest' },
    fullSnapshotPauseRatio: { meaning: 'fullSnapshotPauseP50Ms / pauseP50Ms' },
    coloPauseP50Ms: { meaning: "a checkpoint of QEMU's COLO, 256 MiB, from its STOP to its RESUME event" },
    scanP50Ms: { meaning: 'of the pause: finding and re-protecting written pages, 256 MiB' },
    pauseSparse4096MiBP50Ms: { meaning: 'idle guest of 4 GiB that uses little of it' },
  };
  for (const size of [BASE_MIB, ...LARGE_SIZES_MIB.toReversed()]) {
    const place = sized(size);
    figures[`pause${place}P50Ms`] = { meaning: `idle guest of ${size} MiB, all of it resident` };
    figures[`scan${place}P50Ms`] = { meaning: 'the scan in it' };
    figures[`fullSnapshotPause${place}P50Ms`] = { meaning: 'a full QEMU snapshot of that guest' };
  }
  let least = 0;
  for (const most of [...PAGE_CLASSES, Infinity]) {
    const name = most === Infinity ? `pauseFrom${least}PagesP50Ms` : `pause${below(most)}P50Ms`;
    const range = most === Infinity ? `${least} dirty pages or more` : `${least} to ${most - 1} dirty pages`;
    figures[name] = { meaning: `a guest that writes, 256 MiB: epochs of ${range}` };
    least = most;
  }
  return figures;
}

async function bootRig(
  run: BenchRun,
  guest: DemoGuest,
  { memoryMiB, writer }: { memoryMiB: number; writer?: string },
): Promise<EpochRig> {
  run.progress(`booting ${writer === undefined ? 'an idle guest' : 'a guest that writes'}, ${memoryMiB} MiB`);
  const { clock, signal } = run.options;
  const name = `bench-${process.pid}-${memoryMiB}${writer === undefined ? '' : '-writer'}`;
  const rig = await EpochRig.start({
    name,
    memoryMiB,
    guest,
    clock,
    signal,
    ...(writer !== undefined && { writer }),
  });
  // The first seconds after boot are not idle.
  await clock.sleep(run.options.quick ? 1000 : 5000, signal);
  return rig;
}

/** What the target is about: a VM as it is after boot. */
async function measureIdle(run: BenchRun, rig: EpochRig): Promise<void> {
  const { quick } = run.options;
  run.progress('idle guest: epochs and full snapshots in turn');
  await using snapshots = await snapshotsOf(run, rig);
  const rounds = quick ? 3 : 10;
  for (let round = 0; round < rounds; round++) {
    addCuts(run, '', await rig.epochs(quick ? 1500 : 4000));
    run.sample(SERIES.snapshot(''), (await snapshots.take()).pauseMs);
  }
  run.figure('pauseP50Ms', run.p50(SERIES.pause('')));
  run.figure('pauseP99Ms', run.quantile(SERIES.pause(''), 0.99));
  run.figure('scanP50Ms', run.p50(SERIES.scan('')));
  run.figure('fullSnapshotPauseP50Ms', run.p50(SERIES.snapshot('')));
  run.figure(
    'fullSnapshotPauseRatio',
    run.p50(SERIES.snapshot('')) / Math.max(run.p50(SERIES.pause('')), Number.EPSILON),
  );
}

async function measureSizes(run: BenchRun, base: EpochRig, guest: DemoGuest): Promise<void> {
  const perStepMs: number[] = [];
  for (const memoryMiB of LARGE_SIZES_MIB) {
    const unfit = whyNot(run, memoryMiB);
    if (unfit !== undefined) {
      for (const name of figuresOf(memoryMiB)) run.missing(name, unfit);
      continue;
    }
    await using rig = await bootRig(run, guest, { memoryMiB });
    const extraMs = await measureSize(run, { base, rig, memoryMiB });
    if (memoryMiB === LARGE_SIZES_MIB[0]) perStepMs.push(extraMs / EXTRA_2_GIB_STEPS);
  }
  if (run.hasSamples(SERIES.pause(sized(BASE_MIB)))) setSizeFigures(run, BASE_MIB);
  else for (const name of figuresOf(BASE_MIB)) run.missing(name, 'measured beside a larger guest only');
  for (const value of perStepMs) run.figure('pausePerExtra2GiBMs', value);
}

function whyNot({ options }: BenchRun, memoryMiB: number): string | undefined {
  if (options.quick && memoryMiB !== LARGE_SIZES_MIB[0]) return 'left out with --quick';
  const neededBytes = memoryMiB * ROOM_FACTOR * MIB;
  return freeMemoryBytes() < neededBytes
    ? `needs ${Math.ceil(neededBytes / MIB)} MiB of memory, which are not free here`
    : undefined;
}

function figuresOf(memoryMiB: number): string[] {
  const place = sized(memoryMiB);
  const figures = [`pause${place}P50Ms`, `scan${place}P50Ms`, `fullSnapshotPause${place}P50Ms`];
  return memoryMiB === LARGE_SIZES_MIB[0]
    ? [...figures, 'pauseSparse4096MiBP50Ms', 'pausePerExtra2GiBMs']
    : figures;
}

/** Returns by how much the median pause of the larger VM is longer, both with all memory resident. */
async function measureSize(
  run: BenchRun,
  { base, rig, memoryMiB }: { base: EpochRig; rig: EpochRig; memoryMiB: number },
): Promise<number> {
  const { quick } = run.options;
  const rounds = quick ? 2 : 5;
  const roundMs = quick ? 1000 : 3000;
  run.progress(`${memoryMiB} MiB: making its shadow`);
  await rig.protect();
  if (memoryMiB === LARGE_SIZES_MIB[0]) {
    for (let round = 0; round < rounds; round++) addCuts(run, 'Sparse4096MiB', await rig.epochs(roundMs));
    run.figure('pauseSparse4096MiBP50Ms', run.p50(SERIES.pause('Sparse4096MiB')));
    await base.fillMemory();
  }
  run.progress(`${memoryMiB} MiB: filling its memory`);
  await rig.fillMemory();
  await using baseSnapshots = await snapshotsOf(run, base);
  await using snapshots = await snapshotsOf(run, rig);
  run.progress(`${memoryMiB} MiB: full snapshot`);
  // The first one also brings all memory into QEMU's page tables, as if the guest had used it.
  run.sample(SERIES.snapshot(sized(memoryMiB)), (await snapshots.take()).pauseMs);
  run.sample(SERIES.snapshot(sized(BASE_MIB)), (await baseSnapshots.take()).pauseMs);
  const pauses: Record<'base' | 'rig', number[]> = { base: [], rig: [] };
  run.progress(`${memoryMiB} MiB: epochs, in turn with those of ${BASE_MIB} MiB`);
  for (let round = 0; round < rounds; round++) {
    for (const [which, vm, size] of [['base', base, BASE_MIB] as const, ['rig', rig, memoryMiB] as const]) {
      const cuts = await vm.epochs(roundMs);
      addCuts(run, sized(size), cuts);
      pauses[which].push(...cuts.map((cut) => cut.pauseMs));
    }
    if (quick) continue;
    run.sample(SERIES.snapshot(sized(memoryMiB)), (await snapshots.take()).pauseMs);
    run.sample(SERIES.snapshot(sized(BASE_MIB)), (await baseSnapshots.take()).pauseMs);
  }
  setSizeFigures(run, memoryMiB);
  return median(pauses.rig) - median(pauses.base);
}

function setSizeFigures(run: BenchRun, memoryMiB: number): void {
  const place = sized(memoryMiB);
  run.figure(`pause${place}P50Ms`, run.p50(SERIES.pause(place)));
  run.figure(`scan${place}P50Ms`, run.p50(SERIES.scan(place)));
  run.figure(`fullSnapshotPause${place}P50Ms`, run.p50(SERIES.snapshot(place)));
}

async function measureDirtyPages(run: BenchRun, guest: DemoGuest): Promise<void> {
  const { quick } = run.options;
  await using rig = await bootRig(run, guest, { memoryMiB: BASE_MIB, writer: WRITER });
  await rig.protect();
  run.progress('a guest that writes: epochs of different length');
  const rounds = quick ? 1 : 4;
  for (let round = 0; round < rounds; round++) {
    for (const maxIntervalMs of WRITER_INTERVALS_MS) {
      const cuts = await rig.epochs(quick ? 1200 : 3000, { maxIntervalMs });
      for (const cut of cuts) run.sample(classOf(cut.dirtyPages), cut.pauseMs);
    }
  }
  for (const pages of [...PAGE_CLASSES.map((most) => most - 1), Infinity]) {
    const series = classOf(pages);
    const name = series.replace(/Ms$/, 'P50Ms');
    if (run.hasSamples(series)) run.figure(name, run.p50(series));
    else run.missing(name, 'no epoch of this guest had so many dirty pages');
  }
}

function classOf(dirtyPages: number): string {
  const most = PAGE_CLASSES.find((bound) => dirtyPages < bound);
  return SERIES.pause(most === undefined ? `From${PAGE_CLASSES.at(-1)}Pages` : below(most));
}

async function measureColo(run: BenchRun, rig: EpochRig): Promise<void> {
  const { clock, signal, quick } = run.options;
  run.progress("trying QEMU's COLO");
  const enough = quick ? 5 : 50;
  const { pausesMs, story } = await tryColo(rig, { clock, signal, forMs: quick ? 8000 : 30_000, enough });
  if (pausesMs.length > 0) run.sample('coloPauseMs', ...pausesMs);
  if (pausesMs.length >= enough) run.figure('coloPauseP50Ms', median(pausesMs));
  else {
    run.missing(
      'coloPauseP50Ms',
      `QEMU's COLO made ${pausesMs.length} of ${enough} checkpoints (${pausesMs.map((ms) => `${Math.round(ms)} ms`).join(', ')}); ${story}`,
    );
  }
}

function snapshotsOf({ options }: BenchRun, rig: EpochRig): Promise<FullSnapshots> {
  const { path, memoryPath } = rig.directory;
  return FullSnapshots.of(rig.machine, {
    clock: options.clock,
    runDirectory: path,
    memoryDirectory: memoryPath,
  });
}

function addCuts(run: BenchRun, place: string, cuts: readonly Cut[]): void {
  run.sample(SERIES.pause(place), ...cuts.map((cut) => cut.pauseMs));
  run.sample(SERIES.scan(place), ...cuts.map((cut) => cut.scanMs));
}

function median(values: readonly number[]): number {
  return quantile(
    values.toSorted((a, b) => a - b),
    0.5,
  );
}
