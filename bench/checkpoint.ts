import { type DemoGuest, ensureDemoGuest } from '../guest/build.ts';
import { quantile } from '../src/base/sample-window.ts';
import { MIB } from '../src/base/units.ts';
import { BenchError } from './bench-error.ts';
import { tryColo } from './colo-peer.ts';
import { type Cut, EpochRig } from './epoch-rig.ts';
import { FullSnapshots } from './full-snapshot.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { freeMemoryBytes } from './machine-facts.ts';

const BASE_MIB = 256;
const LARGE_SIZES_MIB = [4096, 2048, 1024] as const;
const QUICK_SIZE_MIB = 2048;
const LEFT_OUT = 'left out with --quick';
/** The VM, a snapshot in a file, and room to breathe. */
const ROOM_FACTOR = 2.5;

/** 64 MiB of which up to 32 pages are written each millisecond: how often it is cut decides how much is dirty. */
const WRITER = '16384:1';
const WRITER_INTERVALS_MS = [4, 12, 40, 130, 400];
/** Else the bound on the share of time paused would decide, and every epoch would be a long one. */
const UNBOUNDED = { pauseShare: 0.9, pauseBurstMs: 10_000 };
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
      meaning:
        'what 2 GiB more of idle memory add to the median pause; all resident, largest size against 256 MiB',
      target: { atMost: 1 },
    },
    fullSnapshotPauseP50Ms: { meaning: 'QEMU: stop, migrate to a file in memory, cont; the same guest' },
    fullSnapshotPauseRatio: { meaning: 'fullSnapshotPauseP50Ms / pauseP50Ms' },
    coloPauseP50Ms: { meaning: "a checkpoint of QEMU's COLO, 256 MiB, from its STOP to its RESUME event" },
    scanP50Ms: { meaning: 'of the pause: finding and re-protecting written pages, 256 MiB' },
    pauseSparseP50Ms: { meaning: 'idle guest of the largest size, most of its memory never touched' },
  };
  for (const size of [BASE_MIB, ...LARGE_SIZES_MIB.toReversed()]) {
    const place = sized(size);
    figures[`pause${place}P50Ms`] = { meaning: `idle guest of ${size} MiB, all of it resident` };
    figures[`scan${place}P50Ms`] = { meaning: 'the scan in it' };
    if (size !== BASE_MIB)
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
  await clock.sleep(run.options.quick ? 500 : 5000, signal);
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
    run.sample(SERIES.snapshot(''), ...(await takeSnapshot(run, snapshots)));
  }
  run.figure('pauseP50Ms', run.p50(SERIES.pause('')));
  run.figure('pauseP99Ms', run.quantile(SERIES.pause(''), 0.99));
  run.figure('scanP50Ms', run.p50(SERIES.scan('')));
  setSnapshotFigure(run, '');
  if (run.hasSamples(SERIES.snapshot('')))
    run.figure('fullSnapshotPauseRatio', run.p50(SERIES.snapshot('')) / run.p50(SERIES.pause('')));
  else run.missing('fullSnapshotPauseRatio', 'there was no full snapshot');
}

/** The pause, or none: a peer that fails is no reason to measure nothing. */
async function takeSnapshot(run: BenchRun, snapshots: FullSnapshots): Promise<number[]> {
  try {
    return [await snapshots.take()];
  } catch (thrown) {
    if (!(thrown instanceof BenchError && thrown.code === 'BENCH_PEER_FAILED')) throw thrown;
    run.note(thrown.message);
    return [];
  }
}

function setSnapshotFigure(run: BenchRun, place: string): void {
  const series = SERIES.snapshot(place);
  const figure = `fullSnapshotPause${place}P50Ms`;
  if (run.hasSamples(series)) run.figure(figure, run.p50(series));
  else run.missing(figure, run.options.quick ? LEFT_OUT : 'every full snapshot failed');
}

async function measureSizes(run: BenchRun, base: EpochRig, guest: DemoGuest): Promise<void> {
  let isFirst = true;
  for (const memoryMiB of LARGE_SIZES_MIB) {
    const unfit = whyNot(run, memoryMiB);
    if (unfit !== undefined) {
      for (const name of figuresOf(memoryMiB)) run.missing(name, unfit);
      continue;
    }
    await using rig = await bootRig(run, guest, { memoryMiB });
    run.progress(`${memoryMiB} MiB: making its shadow`);
    await rig.protect();
    if (isFirst) await measureSparse(run, rig);
    run.progress(`${memoryMiB} MiB: making all memory resident`);
    await rig.makeResident();
    const extraMs = await measureResident(run, { base, rig, memoryMiB });
    if (isFirst) run.figure('pausePerExtra2GiBMs', extraMs / ((memoryMiB - BASE_MIB) / 2048));
    isFirst = false;
  }
  if (!isFirst) return setSizeFigures(run, BASE_MIB);
  for (const name of [...figuresOf(BASE_MIB), 'pauseSparseP50Ms', 'pausePerExtra2GiBMs'])
    run.missing(name, 'needs a guest with more memory beside it');
}

function whyNot({ options }: BenchRun, memoryMiB: number): string | undefined {
  if (options.quick && memoryMiB !== QUICK_SIZE_MIB) return LEFT_OUT;
  const neededBytes = memoryMiB * ROOM_FACTOR * MIB;
  return freeMemoryBytes() < neededBytes
    ? `needs ${Math.ceil(neededBytes / MIB)} MiB of memory, which are not free here`
    : undefined;
}

function figuresOf(memoryMiB: number): string[] {
  const place = sized(memoryMiB);
  const ours = [`pause${place}P50Ms`, `scan${place}P50Ms`];
  return memoryMiB === BASE_MIB ? ours : [...ours, `fullSnapshotPause${place}P50Ms`];
}

/** The larger guest as it is after boot: most of its memory has never been touched. */
async function measureSparse(run: BenchRun, rig: EpochRig): Promise<void> {
  addCuts(run, 'Sparse', await rig.epochs(run.options.quick ? 2000 : 10_000));
  run.figure('pauseSparseP50Ms', run.p50(SERIES.pause('Sparse')));
}

/**
 * Returns by how much the median pause of the larger VM is longer. All memory of the small one is resident too:
 * full snapshots have read it.
 */
async function measureResident(
  run: BenchRun,
  { base, rig, memoryMiB }: { base: EpochRig; rig: EpochRig; memoryMiB: number },
): Promise<number> {
  const { quick } = run.options;
  run.progress(`${memoryMiB} MiB: epochs and full snapshots, in turn with the epochs of ${BASE_MIB} MiB`);
  await using snapshots = quick ? undefined : await snapshotsOf(run, rig);
  const turns = [
    { vm: base, size: BASE_MIB, pausesMs: [] as number[] },
    { vm: rig, size: memoryMiB, pausesMs: [] as number[] },
  ] as const;
  for (let round = 0; round < (quick ? 2 : 5); round++) {
    for (const { vm, size, pausesMs } of turns) {
      const cuts = await vm.epochs(quick ? 1000 : 3000);
      addCuts(run, sized(size), cuts);
      pausesMs.push(...cuts.map((cut) => cut.pauseMs));
    }
    if (snapshots === undefined || round % 2 === 1) continue;
    run.sample(SERIES.snapshot(sized(memoryMiB)), ...(await takeSnapshot(run, snapshots)));
  }
  setSizeFigures(run, memoryMiB);
  return median(turns[1].pausesMs) - median(turns[0].pausesMs);
}

function setSizeFigures(run: BenchRun, memoryMiB: number): void {
  const place = sized(memoryMiB);
  run.figure(`pause${place}P50Ms`, run.p50(SERIES.pause(place)));
  run.figure(`scan${place}P50Ms`, run.p50(SERIES.scan(place)));
  if (memoryMiB !== BASE_MIB) setSnapshotFigure(run, place);
}

async function measureDirtyPages(run: BenchRun, guest: DemoGuest): Promise<void> {
  const { quick } = run.options;
  await using rig = await bootRig(run, guest, { memoryMiB: BASE_MIB, writer: WRITER });
  await rig.protect();
  run.progress('a guest that writes: epochs of different length');
  const rounds = quick ? 1 : 4;
  for (let round = 0; round < rounds; round++) {
    for (const maxIntervalMs of WRITER_INTERVALS_MS) {
      const cuts = await rig.epochs(quick ? 1000 : 3000, { maxIntervalMs, ...UNBOUNDED });
      for (const cut of cuts) run.sample(classOf(cut.dirtyPages), cut.pauseMs);
    }
  }
  for (const pages of [...PAGE_CLASSES.map((most) => most - 1), Infinity]) {
    const series = classOf(pages);
    const name = series.replace(/Ms$/, 'P50Ms');
    if (run.hasSamples(series)) run.figure(name, run.p50(series));
    else run.missing(name, 'no epoch of this guest fell into this class');
  }
}

function classOf(dirtyPages: number): string {
  const most = PAGE_CLASSES.find((bound) => dirtyPages < bound);
  return SERIES.pause(most === undefined ? `From${PAGE_CLASSES.at(-1)}Pages` : below(most));
}

async function measureColo(run: BenchRun, rig: EpochRig): Promise<void> {
  const { clock, signal, quick } = run.options;
  run.progress("trying QEMU's COLO");
  const checkpoints = quick ? 5 : 50;
  const forMs = quick ? 6000 : 30_000;
  const { pausesMs, story } = await tryColo(rig, { clock, signal, forMs, checkpoints });
  if (pausesMs.length < checkpoints) return run.missing('coloPauseP50Ms', story);
  run.sample('coloPauseMs', ...pausesMs);
  run.figure('coloPauseP50Ms', median(pausesMs));
}

async function snapshotsOf(run: BenchRun, rig: EpochRig): Promise<FullSnapshots> {
  const { path, memoryPath } = rig.directory;
  const places = { clock: run.options.clock, runDirectory: path, memoryDirectory: memoryPath };
  await using opening = new AsyncDisposableStack();
  const snapshots = opening.use(await FullSnapshots.of(rig.machine, places));
  // Not counted: it fetches memory for the file, which those after it write over.
  await takeSnapshot(run, snapshots);
  opening.move();
  return snapshots;
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
