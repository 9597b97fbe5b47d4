import { seededRandom } from '../src/base/seeded-random.ts';
import { killToReplyMs } from '../src/demo/demo-report.ts';
import { eventMs } from '../src/demo/demo-vm.ts';
import { monotonicMs } from '../src/demo/monotonic-time.ts';
import { RedisLoad } from '../src/demo/redis-load.ts';
import type { Benchmark, BenchRun } from './harness.ts';
import { demoGuest, RedisVm } from './redis-vm.ts';

const CLIENTS = 4;
const KILLS = 20;
const QUICK_KILLS = 5;
/** A keeper gives a VM up that has to be restarted more often than this in five minutes. */
const COLD_RESTARTS = 3;
const SEED = 1;
/** The kill falls somewhere into this time after the load began. */
const KILL_AFTER_MS = { min: 300, max: 1500 };
/** Events say when they happened in whole milliseconds. */
const EVENT_TIME_ERROR_MS = 1;

export const failover: Benchmark = {
  name: 'failover',
  summary: 'From kill -9 under load to the first reply of a request that was open, next to a cold restart.',
  figures: {
    promoteP50Ms: {
      meaning: 'from the proof that the old QEMU is dead until the shadow runs',
      target: { atMost: 15 },
    },
    killToReplyP50Ms: {
      meaning: 'from the kill to the first reply that needed the failover, to a request sent before the kill',
      target: { atMost: 40 },
    },
    killToReplyMaxMs: { meaning: 'the same, the longest' },
    coldRestartMs: { meaning: 'median from the kill of the same VM without a shadow to its first reply' },
    coldRestartRatio: { meaning: 'coldRestartMs / killToReplyP50Ms' },
    kills: { meaning: 'how often the primary was killed' },
    lostWrites: { meaning: 'acknowledged writes that were not there afterwards', target: { atMost: 0 } },
    ackedWrites: { meaning: 'acknowledged writes, all of them read back by value' },
    brokenConnections: { meaning: `of ${CLIENTS}, each open all the time`, target: { atMost: 0 } },
  },
  run: async (run) => {
    const guest = await demoGuest(run);
    await using alone = await RedisVm.start(run, { guest, isProtected: false });
    await using shadowed = await RedisVm.start(run, { guest, isProtected: true });
    await measure(run, { alone, shadowed });
  },
};

async function measure(
  run: BenchRun,
  { alone, shadowed }: { alone: RedisVm; shadowed: RedisVm },
): Promise<void> {
  const { quick } = run.options;
  const kills = run.options.kills ?? (quick ? QUICK_KILLS : KILLS);
  const rounds = Math.min(kills, quick ? 1 : COLD_RESTARTS);
  const killer = new Killer(run, shadowed);
  await shadowed.wait(shadowed.load.connect(CLIENTS));
  let brokenConnections = 0;
  for (let round = 0; round < rounds; round += 1) {
    await shadowed.wait(shadowed.load.begin());
    // The kills are spread over the rounds.
    const upTo = Math.round(((round + 1) * kills) / rounds);
    while (killer.kills < upTo) await killer.kill();
    const { connections } = await shadowed.wait(shadowed.load.end());
    brokenConnections = connections.total - connections.survived;
    await restartCold(run, alone);
  }
  run.progress('reading every acknowledged write back');
  const { ackedWrites, lostWrites } = await shadowed.wait(shadowed.load.verify());
  run.figure('kills', kills);
  run.figure('ackedWrites', ackedWrites);
  run.figure('lostWrites', lostWrites);
  run.figure('brokenConnections', brokenConnections);
  if (run.hasSamples('promoteMs')) run.figure('promoteP50Ms', run.p50('promoteMs'));
  else run.missing('promoteP50Ms', 'no shadow was promoted');
  run.figure('coldRestartMs', run.p50('coldRestartMs'));
  setReplyFigures(run, killer);
  run.note(`moments of the kills: seed ${SEED}`);
  run.note('a cold restart begins at once, by the keeper; its end is seen to within about a second');
}

function setReplyFigures(run: BenchRun, { kills }: Killer): void {
  const series = 'killToReplyMs';
  if (!run.hasSamples(series)) {
    for (const name of ['killToReplyP50Ms', 'killToReplyMaxMs', 'coldRestartRatio'])
      run.missing(name, 'no kill met an open request that had to wait for the failover');
    return;
  }
  run.figure('killToReplyP50Ms', run.p50(series));
  run.figure('killToReplyMaxMs', run.quantile(series, 1));
  run.figure('coldRestartRatio', run.p50('coldRestartMs') / run.p50(series));
  const unmet = kills - run.count(series);
  if (unmet > 0) run.note(`${unmet} of ${kills} kills met no open request and give no killToReplyMs`);
}

/** Kills the primary of a VM under load, each time when it is protected again. */
class Killer {
  readonly #run: BenchRun;
  readonly #target: RedisVm;
  readonly #random = seededRandom(SEED);
  #seq: number;
  kills = 0;

  constructor(run: BenchRun, target: RedisVm) {
    this.#run = run;
    this.#target = target;
    this.#seq = target.protectedAt?.seq ?? 0;
  }

  async kill(): Promise<void> {
    const { clock, signal } = this.#run.options;
    const { vm, load } = this.#target;
    this.kills += 1;
    this.#run.progress(`kill ${this.kills}`);
    const { min, max } = KILL_AFTER_MS;
    await clock.sleep(min + this.#random() * (max - min), signal);
    const { killMs } = await vm.killPrimary();
    const lost = await vm.waitFor(['fencing'], { after: this.#seq });
    const back = await vm.waitFor(['promoted', 'restarted-cold'], { after: lost.seq });
    this.#seq = (await vm.untilProtected({ after: back.seq })).seq;
    const { promoteMs } = back.facts;
    if (typeof promoteMs === 'number') this.#run.sample('promoteMs', promoteMs);
    else this.#run.note(`kill ${this.kills}: the VM was restarted cold, not taken over`);
    const timings = await this.#target.wait(load.openAt(killMs));
    const discoveredMs = eventMs(lost, clock) + EVENT_TIME_ERROR_MS;
    const replyMs = killToReplyMs(timings, { killMs, discoveredMs });
    if (replyMs !== null) this.#run.sample('killToReplyMs', replyMs);
  }
}

/** The peer: nobody stands by, so the keeper starts the VM anew. */
async function restartCold(run: BenchRun, { vm, network }: RedisVm): Promise<void> {
  const { clock, signal } = run.options;
  run.progress('killing the VM without a shadow');
  const { killMs } = await vm.killPrimary();
  await using _client = await RedisLoad.start({ ...network.redis, clock, signal });
  run.sample('coldRestartMs', monotonicMs() - killMs);
}
