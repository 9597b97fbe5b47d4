import type { TwoHosts } from '../test/kit/two-hosts.ts';
import type { Benchmark, BenchRun } from './harness.ts';
import { type Protection, startTwoHosts } from './two-host-vms.ts';

const GAP_MS = 20;
const REQUESTS = 300;
const CLIENTS = 50;
const LOAD_MS = 10_000;
const RESETS = 20;
const WAYS: readonly Protection[] = ['none', 'here', 'elsewhere'];
const NAMES: Readonly<Record<Protection, string>> = { none: 'Unprotected', here: 'Here', elsewhere: '' };

export const replication: Benchmark = {
  name: 'replication',
  summary: 'What a shadow on another host costs a Redis VM, next to one on the same host and none.',
  figures: {
    roundTripP50Ms: {
      meaning: `a SET ${GAP_MS} ms after the reply to the one before, the shadow on another host`,
      target: { atMost: 6 },
    },
    roundTripP99Ms: { meaning: 'the same, 99 of 100' },
    roundTripHereP50Ms: { meaning: 'the same with the shadow on the same host' },
    roundTripUnprotectedP50Ms: { meaning: 'the same without a shadow' },
    roundTripRatio: { meaning: 'roundTripP50Ms / roundTripHereP50Ms' },
    setPerSecond: { meaning: `SET requests a second by ${CLIENTS} clients, the shadow on another host` },
    setPerSecondHere: { meaning: 'the same with the shadow on the same host' },
    setPerSecondUnprotected: { meaning: 'the same without a shadow' },
    throughputRatio: { meaning: 'setPerSecond / setPerSecondHere' },
    wireBytesPerDirtyByte: {
      meaning: 'bytes that pages took on the wire, for each byte of pages that were written, under that load',
      target: { atMost: 0.5 },
    },
    commitP50Ms: { meaning: 'from the cut of an epoch until what it held has left, under that load' },
    pauseP50Ms: { meaning: 'how long the guest stood still for it' },
    resumeP50Ms: {
      meaning: 'from a reset of the connection under that load until epochs go on where they were',
    },
    resumeBytes: { meaning: 'what was sent again for it, at most' },
    resyncDeltaMs: {
      meaning:
        'from the loss of the shadow under that load until another one is in sync, its host having older memory',
    },
    resyncDeltaBytes: { meaning: 'pages that were sent for it before the first epoch, not packed' },
    resyncFullMs: { meaning: 'resyncDeltaMs where that host has nothing' },
    resyncFullBytes: { meaning: 'resyncDeltaBytes where that host has nothing' },
  },
  run: async (run) => {
    for (const protection of WAYS) await measureWay(run, protection);
    run.figure('roundTripRatio', run.p50('roundTripMs') / run.p50('roundTripHereMs'));
    run.figure('throughputRatio', run.p50('setPerSecond') / run.p50('setPerSecondHere'));
    run.note('both hosts, etcd and the clients share the cores and the kernel of this machine');
  },
};

async function measureWay(run: BenchRun, protection: Protection): Promise<void> {
  const { clock, quick, signal } = run.options;
  const name = NAMES[protection];
  await using hosts = await startTwoHosts(run, { protection, clients: CLIENTS });
  run.progress('one request at a time');
  const timings = await hosts.load.paced({ requests: quick ? REQUESTS / 6 : REQUESTS, gapMs: GAP_MS });
  run.sample(`roundTrip${name}Ms`, ...timings.map(({ sentMs, repliedMs }) => repliedMs - sentMs));
  run.progress(`${CLIENTS} clients`);
  const before = protection === 'elsewhere' ? (await hosts.status('a')).shadow?.sent : undefined;
  await hosts.load.begin();
  const loadMs = quick ? LOAD_MS / 5 : LOAD_MS;
  await clock.sleep(loadMs, signal);
  if (protection === 'elsewhere') {
    const { shadow, epochs } = await hosts.status('a');
    const { dirtyBytes = 0, wireBytes = 0 } = shadow?.sent ?? {};
    const sinceBytes = dirtyBytes - (before?.dirtyBytes ?? 0);
    run.figure('wireBytesPerDirtyByte', (wireBytes - (before?.wireBytes ?? 0)) / sinceBytes);
    run.figure('commitP50Ms', epochs.commitMs.p50 ?? 0);
    run.figure('pauseP50Ms', epochs.pauseMs.p50 ?? 0);
  }
  const { ackedWrites } = await hosts.load.end();
  run.sample(`setPerSecond${name}`, (ackedWrites * 1000) / loadMs);
  run.figure(`setPerSecond${name}`, run.p50(`setPerSecond${name}`));
  run.figure(`roundTrip${name}P50Ms`, run.p50(`roundTrip${name}Ms`));
  if (protection !== 'elsewhere') return;
  run.figure('roundTripP99Ms', run.quantile('roundTripMs', 0.99));
  await hosts.load.begin();
  await measureResumes(run, hosts);
  for (const kind of ['Delta', 'Full'] as const) await measureResync(run, hosts, kind);
  await hosts.load.end();
}

/** The connection breaks, and both keepers live. */
async function measureResumes(run: BenchRun, hosts: TwoHosts): Promise<void> {
  const { clock, quick, signal } = run.options;
  run.progress('the connection breaks');
  let after = (await hosts.events('a')).at(-1)?.seq ?? 0;
  for (let reset = 0; reset < (quick ? RESETS / 4 : RESETS); reset += 1) {
    await hosts.resetPeers();
    const { facts, seq } = await hosts.until('a', 'shadow-reconnected', { after });
    run.sample('resumeMs', Number(facts.outageMs));
    run.sample('resumeBytes', Number(facts.resentBytes));
    after = seq;
    await clock.sleep(GAP_MS, signal);
  }
  run.figure('resumeP50Ms', run.p50('resumeMs'));
  run.figure('resumeBytes', run.quantile('resumeBytes', 1));
}

/** The shadow's keeper and QEMU die; its memory is left, or not. */
async function measureResync(run: BenchRun, hosts: TwoHosts, kind: 'Delta' | 'Full'): Promise<void> {
  const { clock } = run.options;
  run.progress(`the shadow dies, and its memory is ${kind === 'Full' ? 'gone' : 'left'}`);
  const after = (await hosts.events('a')).at(-1)?.seq ?? 0;
  const startMs = clock.nowMs();
  hosts.killHost('b');
  if (kind === 'Full') hosts.loseMemory('b');
  const lost = await hosts.until('a', 'shadow-lost', { after });
  await hosts.until('a', 'protected', { after: lost.seq });
  run.figure(`resync${kind}Ms`, clock.nowMs() - startMs);
  const { facts } = await hosts.until('a', 'shadow-filled', { after: lost.seq });
  if (facts.kind !== kind.toLowerCase()) run.note(`the resynchronisation was not ${kind.toLowerCase()}`);
  run.figure(`resync${kind}Bytes`, Number(facts.copiedBytes));
}
