import type { DemoGuest } from '../guest/build.ts';
import type { VmStatus } from '../src/control/vm-status.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { redisBenchmark } from './redis-benchmark.ts';
import { demoGuest, RedisVm } from './redis-vm.ts';

const ROUND_TRIP_GAP_MS = 20;
const WARM_UP_ROUND_TRIPS = 25;
/** Clients that load the guest while its clock is watched. */
const CLOCK_CLIENTS = 50;
const CLOCK_LOAD_MS = 60_000;
const QUICK_CLOCK_LOAD_MS = 8_000;

type Which = 'Protected' | 'Unprotected';

/** Enough for some seconds each: a single client of a protected VM waits for an epoch at every request. */
const REQUESTS: Readonly<Record<Which, Readonly<Record<1 | 50, number>>>> = {
  Unprotected: { 1: 6000, 50: 30_000 },
  Protected: { 1: 1000, 50: 15_000 },
};

export const overhead: Benchmark = {
  name: 'overhead',
  summary: 'Redis SET throughput and latency with 1 and 50 clients, protected and not.',
  figures: figureTable(),
  run: async (run) => {
    const { quick } = run.options;
    const guest = await demoGuest(run);
    const rounds = quick ? 1 : 4;
    for (let round = 1; round <= rounds; round += 1) {
      await measureVm(run, { guest, which: 'Unprotected', isLast: false });
      await measureVm(run, { guest, which: 'Protected', isLast: round === rounds });
    }
    setFigures(run);
    run.note('one VM at a time, freshly booted, protected and not in turn');
  },
};

function figureTable(): Record<string, FigureInfo> {
  const figures: Record<string, FigureInfo> = {};
  for (const clients of [1, 50]) {
    for (const which of ['Unprotected', 'Protected']) {
      const whose = `${which.toLowerCase()}, ${clients} client${clients === 1 ? '' : 's'}`;
      figures[`setPerSecond${which}${clients}`] = { meaning: `SET requests per second, ${whose}` };
      figures[`set${which}${clients}P50Ms`] = { meaning: `median latency of these, ${whose}` };
    }
  }
  return {
    ...figures,
    throughputRatio1: { meaning: 'setPerSecondProtected1 / setPerSecondUnprotected1' },
    throughputRatio50: {
      meaning: 'setPerSecondProtected50 / setPerSecondUnprotected50',
      target: { atLeast: 0.6 },
    },
    roundTripProtectedP50Ms: {
      meaning: `a SET ${ROUND_TRIP_GAP_MS} ms after the reply to the one before, protected`,
      target: { atMost: 4 },
    },
    roundTripProtectedP99Ms: { meaning: 'the same, 99 of 100' },
    roundTripUnprotectedP50Ms: { meaning: 'the same without a shadow' },
    pauseShare50: {
      meaning: 'share of time that the protected guest stood still with 50 clients',
      target: { atMost: 0.3 },
    },
    guestClockErrorMs: {
      meaning: "guest's wall clock against the host's, without sign, after a minute of load by 50 clients",
      target: { atMost: 100 },
    },
  };
}

interface Turn {
  readonly guest: DemoGuest;
  readonly which: Which;
  /** The clock is watched in the last turn only. */
  readonly isLast: boolean;
}

async function measureVm(run: BenchRun, { guest, which, isLast }: Turn): Promise<void> {
  const { quick } = run.options;
  await using redis = await RedisVm.start(run, { guest, isProtected: which === 'Protected' });
  await redis.wait(redis.load.connect(1));
  await measureRoundTrips(run, redis, which);
  for (const clients of [1, 50] as const) {
    run.progress(`${which.toLowerCase()}: SET by ${clients} client${clients === 1 ? '' : 's'}`);
    const before = await redis.vm.status();
    const { signal } = run.options;
    const requests = Math.ceil(REQUESTS[which][clients] / (quick ? 2 : 1));
    const rates = await redisBenchmark(redis.network.redis, { clients, requests, signal });
    run.sample(`setPerSecond${which}${clients}`, rates.perSecond);
    run.sample(`set${which}${clients}P50Ms`, rates.p50Ms);
    if (which === 'Protected' && clients === 50)
      run.sample('pauseShare50', pauseShareBetween(redis, before, await redis.vm.status()));
  }
  if (isLast) await measureClock(run, redis);
}

async function measureRoundTrips(run: BenchRun, redis: RedisVm, which: Which): Promise<void> {
  run.progress(`${which.toLowerCase()}: round trips, ${ROUND_TRIP_GAP_MS} ms apart`);
  const requests = WARM_UP_ROUND_TRIPS + (run.options.quick ? 100 : 250);
  const timings = await redis.wait(redis.load.paced({ requests, gapMs: ROUND_TRIP_GAP_MS }));
  run.sample(
    `roundTrip${which}Ms`,
    ...timings.slice(WARM_UP_ROUND_TRIPS).map(({ sentMs, repliedMs }) => repliedMs - sentMs),
  );
}

/** A status tells the share since protection began; what lies between two of them is their difference. */
function pauseShareBetween({ protectedAt }: RedisVm, before: VmStatus, after: VmStatus): number {
  const elapsedMs = after.upMs - before.upMs;
  const afterMs = Date.now() - (protectedAt?.wallMs ?? 0);
  const pausedMs = after.epochs.pauseShare * afterMs - before.epochs.pauseShare * (afterMs - elapsedMs);
  return pausedMs / elapsedMs;
}

async function measureClock(run: BenchRun, redis: RedisVm): Promise<void> {
  const { clock, signal, quick } = run.options;
  const loadMs = quick ? QUICK_CLOCK_LOAD_MS : CLOCK_LOAD_MS;
  if (quick) run.note(`guestClockErrorMs: after ${loadMs / 1000} s of load, not a minute`);
  run.progress(`protected: the guest's clock after ${loadMs / 1000} s of load`);
  await redis.wait(redis.load.connect(CLOCK_CLIENTS - 1));
  await redis.wait(redis.load.begin());
  await clock.sleep(loadMs, signal);
  run.figure('guestClockErrorMs', Math.abs(await redis.wait(redis.load.guestClockErrorMs())));
  await redis.wait(redis.load.end());
}

function setFigures(run: BenchRun): void {
  for (const clients of [1, 50]) {
    for (const which of ['Unprotected', 'Protected']) {
      const rate = `setPerSecond${which}${clients}`;
      run.figure(rate, run.p50(rate));
      run.figure(`set${which}${clients}P50Ms`, run.p50(`set${which}${clients}P50Ms`));
    }
    run.figure(
      `throughputRatio${clients}`,
      run.p50(`setPerSecondProtected${clients}`) / run.p50(`setPerSecondUnprotected${clients}`),
    );
  }
  run.figure('roundTripProtectedP50Ms', run.p50('roundTripProtectedMs'));
  run.figure('roundTripProtectedP99Ms', run.quantile('roundTripProtectedMs', 0.99));
  run.figure('roundTripUnprotectedP50Ms', run.p50('roundTripUnprotectedMs'));
  run.figure('pauseShare50', run.p50('pauseShare50'));
}
