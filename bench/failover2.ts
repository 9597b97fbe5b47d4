import { seededRandom } from '../src/base/seeded-random.ts';
import { killToReplyMs } from '../src/demo/demo-report.ts';
import { eventMs } from '../src/demo/demo-vm.ts';
import { monotonicMs } from '../src/demo/monotonic-time.ts';
import type { HostName, TwoHosts } from '../test/kit/two-hosts.ts';
import type { Benchmark, BenchRun } from './harness.ts';
import { otherHost, startTwoHosts } from './two-host-vms.ts';

const CLIENTS = 4;
const KILLS = 20;
const QUICK_KILLS = 3;
const SILENCES = 10;
const QUICK_SILENCES = 1;
const STEPS = ['detectMs', 'fenceMs', 'promoteMs', 'replyMs'] as const;
const COLD_STARTS = 3;
const SEED = 1;
/** Events say when they happened in whole milliseconds. */
const EVENT_TIME_ERROR_MS = 1;
const SILENCE_AFTER_MS = 3000;
const KILL_AFTER_MS = { min: 300, max: 1500 };

export const failover2: Benchmark = {
  name: 'failover2',
  summary: 'From the loss of a host to the first reply from the other one, next to a cold start there.',
  figures: {
    promoteP50Ms: {
      meaning: 'from the right to act, which is on record by then, until the shadow runs',
      target: { atMost: 25 },
    },
    outageP50Ms: { meaning: 'from the last sign of life until the shadow runs' },
    killToReplyP50Ms: {
      meaning:
        'from the kill of keeper and QEMU to the first reply that needed the failover, to a request sent before it',
      target: { atMost: 250 },
    },
    killToReplyMaxMs: { meaning: 'the same, the longest' },
    ...stepFigures('kill', 'a kill of keeper and QEMU'),
    ...stepFigures('silence', 'all links of a host going silent, without a word'),
    silenceToReplyP50Ms: {
      meaning: 'from the silence of a host to the first reply that needed the failover',
    },
    silenceToReplyMaxMs: { meaning: 'the same, the longest' },
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
    await measureSilences(run);
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
  run.figure('promoteP50Ms', run.p50('killPromoteMs'));
  run.figure('outageP50Ms', run.p50('killOutageMs'));
  noteSteps(run, 'kill');
  run.figure('killToReplyP50Ms', run.p50('killToReplyMs'));
  run.figure('killToReplyMaxMs', run.quantile('killToReplyMs', 1));
}

async function killAndMeasure(run: BenchRun, hosts: TwoHosts, acting: HostName): Promise<void> {
  const killMs = monotonicMs();
  hosts.killHost(acting);
  const replyMs = await measureTakeover(run, hosts, {
    other: otherHost(acting),
    lostMs: killMs,
    how: 'kill',
  });
  if (replyMs !== null) run.sample('killToReplyMs', replyMs);
}

/** Nobody is told anything: the host runs on, and no frame of it arrives anywhere. */
async function measureSilences(run: BenchRun): Promise<void> {
  const { quick, clock, signal } = run.options;
  const silences = quick ? QUICK_SILENCES : SILENCES;
  await using hosts = await startTwoHosts(run, { protection: 'elsewhere', clients: CLIENTS });
  await hosts.load.begin();
  let acting: HostName = 'a';
  for (let silence = 1; silence <= silences; silence += 1) {
    run.progress(`silence ${silence} of ${silences}`);
    // Long enough for the gaps between heartbeats to be known.
    await clock.sleep(SILENCE_AFTER_MS, signal);
    await hosts.silence(acting);
    // Requests that are open now need the failover.
    const lostMs = monotonicMs();
    const other = otherHost(acting);
    const replyMs = await measureTakeover(run, hosts, {
      ...{ other, lostMs, how: 'silence' },
      beforeProtected: () => hosts.mend(),
    });
    if (replyMs !== null) run.sample('silenceToReplyMs', replyMs);
    acting = other;
  }
  await hosts.load.end();
  run.figure('silenceToReplyP50Ms', run.p50('silenceToReplyMs'));
  run.figure('silenceToReplyMaxMs', run.quantile('silenceToReplyMs', 1));
  noteSteps(run, 'silence');
}

interface Loss {
  readonly other: HostName;
  readonly lostMs: number;
  readonly how: 'kill' | 'silence';
  readonly beforeProtected?: () => Promise<void>;
}

/** From the loss to the first reply that needed the failover, or null when no request waited for it. */
async function measureTakeover(
  run: BenchRun,
  hosts: TwoHosts,
  { other, lostMs, how, beforeProtected }: Loss,
): Promise<number | null> {
  const promoted = await hosts.until(other, 'promoted');
  const { facts } = await hosts.until(other, 'replied', { after: promoted.seq });
  await beforeProtected?.();
  await hosts.until(other, 'protected', { after: promoted.seq });
  for (const step of STEPS) run.sample(nameOf(how, step), Number(facts[step]));
  run.sample(`${how}OutageMs`, Number(facts.outageMs));
  // Until the loss was noticed, what the dead host's last epochs held may still arrive.
  const sinceNoticedMs = Number(facts.fenceMs) + Number(facts.promoteMs);
  const discoveredMs = eventMs(promoted, run.options.clock) - sinceNoticedMs + EVENT_TIME_ERROR_MS;
  return killToReplyMs(await hosts.load.openAt(lostMs), { killMs: lostMs, discoveredMs });
}

function noteSteps(run: BenchRun, how: Loss['how']): void {
  for (const step of STEPS) {
    const name = nameOf(how, step);
    run.figure(`${name.slice(0, -2)}P50Ms`, run.p50(name));
    run.figure(`${name.slice(0, -2)}P99Ms`, run.quantile(name, 0.99));
  }
}

/** `killDetectMs` */
function nameOf(how: Loss['how'], step: (typeof STEPS)[number]): string {
  return `${how}${step.charAt(0).toUpperCase()}${step.slice(1)}`;
}

function stepFigures(how: Loss['how'], loss: string): Record<string, { meaning: string }> {
  const meanings = {
    detectMs: 'from the last sign of life until the other host takes it for lost',
    fenceMs: 'from then until the right to act is on record',
    promoteMs: 'from then until the guest runs',
    replyMs: 'from then until its first frame leaves',
  };
  return Object.fromEntries(
    STEPS.flatMap((step) => {
      const name = nameOf(how, step).slice(0, -2);
      return [
        [`${name}P50Ms`, { meaning: `after ${loss}: ${meanings[step]}; half within` }],
        [`${name}P99Ms`, { meaning: 'the same; 99 of 100 within' }],
      ];
    }),
  );
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
