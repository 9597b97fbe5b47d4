import { killToReplyMs } from '../src/demo/demo-report.ts';
import { eventMs } from '../src/demo/demo-vm.ts';
import { monotonicMs } from '../src/demo/monotonic-time.ts';
import { seededRandom } from '../src/demo/seeded-random.ts';
import type { HostName, TwoHosts } from '../test/kit/two-hosts.ts';
import type { Benchmark, BenchRun } from './harness.ts';
import { otherHost, startTwoHosts } from './two-host-vms.ts';

const CLIENTS = 4;
const KILLS = 20;
const QUICK_KILLS = 3;
const COLD_STARTS = 3;
const SEED = 1;
/** Events say when they happened in whole milliseconds. */
const EVENT_TIME_ERROR_MS = 1;
const KILL_AFTER_MS = { min: 300, max: 1500 };

export const failover2: Benchmark = {
  name: 'failover2',
  summary: 'From the loss of a host to the first reply from the other one, next to a cold start there.',
  figures: {
    promoteP50Ms: {
      meaning: 'from the right to act, which is on record by then, until the shadow runs',
      target: { atMost: 25 },
    },
    outageP50Ms: { meaning: 'from when the other host noticed until the shadow runs' },
    killToReplyP50Ms: {
      meaning:
        'from the kill of keeper and QEMU to the first reply that needed the failover, to a request sent before it',
      target: { atMost: 250 },
    },
    killToReplyMaxMs: { meaning: 'the same, the longest' },
    coldStartMs: {
      meaning:
        'median from the kill of a VM without a shadow, started on the other host at once, to its first reply',
    },
    coldStartRatio: { meaning: 'coldStartMs / killToReplyP50Ms' },
    kills: { meaning: 'how often the host that acted was lost' },
    lostWrites: { meaning: 'acknowledged writes that were not there afterwards', target: { atMost: 0 } },
    ackedWrites: { meaning: 'acknowledged writes, all of them read back by value' },
    brokenConnections: { meaning: `of ${CLIENTS}, each open all the time`, target: { atMost: 0 } },
  },
  run: async (run) => {
    await measureKills(run);
    const starts = run.options.quick ? 1 : COLD_STARTS;
    for (let start = 1; start <= starts; start += 1) await measureColdStart(run);
    run.figure('coldStartMs', run.p50('coldStartMs'));
    run.figure('coldStartRatio', run.p50('coldStartMs') / run.p50('killToReplyMs'));
    run.note(`moments of the kills: seed ${SEED}`);
    run.note('both hosts, etcd and the clients share the cores and the kernel of this machine');
    run.note('most replies wait for the first retransmission of TCP, 200 ms after the request');
  },
};

async function measureKills(run: BenchRun): Promise<void> {
  const { quick, clock, signal } = run.options;
  const kills = run.options.kills ?? (quick ? QUICK_KILLS : KILLS);
  const random = seededRandom(SEED);
  await using hosts = await startTwoHosts(run, { protection: 'elsewhere', clients: CLIENTS });
  await hosts.load.begin();
  let acting: HostName = 'a';
  for (let kill = 1; kill <= kills; kill += 1) {
    run.progress(`kill ${kill} of ${kills}`);
    await clock.sleep(KILL_AFTER_MS.min + random() * (KILL_AFTER_MS.max - KILL_AFTER_MS.min), signal);
    await killAndMeasure(run, hosts, acting);
    acting = otherHost(acting);
  }
  const { connections } = await hosts.load.end();
  run.progress('reading every acknowledged write back');
  const { ackedWrites, lostWrites } = await hosts.load.verify();
  run.figure('kills', kills);
  run.figure('ackedWrites', ackedWrites);
  run.figure('lostWrites', lostWrites);
  run.figure('brokenConnections', connections.total - connections.survived);
  run.figure('promoteP50Ms', run.p50('promoteMs'));
  run.figure('outageP50Ms', run.p50('outageMs'));
  run.figure('killToReplyP50Ms', run.p50('killToReplyMs'));
  run.figure('killToReplyMaxMs', run.quantile('killToReplyMs', 1));
}

async function killAndMeasure(run: BenchRun, hosts: TwoHosts, acting: HostName): Promise<void> {
  const other = otherHost(acting);
  const killMs = monotonicMs();
  hosts.killHost(acting);
  const promoted = await hosts.until(other, 'promoted');
  await hosts.until(other, 'protected', { after: promoted.seq });
  run.sample('promoteMs', Number(promoted.facts.promoteMs));
  run.sample('outageMs', Number(promoted.facts.outageMs));
  // Until the loss was noticed, what the dead host's last epochs held may still arrive.
  const outageMs = Number(promoted.facts.outageMs);
  const discoveredMs = eventMs(promoted, run.options.clock) - outageMs + EVENT_TIME_ERROR_MS;
  const replyMs = killToReplyMs(await hosts.load.openAt(killMs), { killMs, discoveredMs });
  if (replyMs !== null) run.sample('killToReplyMs', replyMs);
}

async function measureColdStart(run: BenchRun): Promise<void> {
  await using hosts = await startTwoHosts(run, { protection: 'none', clients: 1 });
  run.progress('a cold start on the other host');
  const killMs = monotonicMs();
  hosts.killHost('a');
  await hosts.start('b');
  await hosts.connect(1);
  run.sample('coldStartMs', monotonicMs() - killMs);
}
