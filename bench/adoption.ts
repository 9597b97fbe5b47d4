import { join } from 'node:path';
import type { Vm } from '../src/api/resources.ts';
import { BenchHost, cpuShareDuring, rssAnonMiB } from './bench-host.ts';
import { writeHaltingKernel } from './halting-guest.ts';
import type { Benchmark, BenchRun } from './harness.ts';

const VMS = 20;
const QUICK_VMS = 5;
const ROUNDS = 10;
const QUICK_ROUNDS = 3;
const START_DEADLINE_MS = 300_000;
const ASK_AGAIN_MS = 5;
const WAIT_MS = 250;
/** Between two kills: what the last start of the daemon left to do is done then. */
const REST_MS = 2000;
const IDLE_MS = 20_000;
const QUICK_IDLE_MS = 4000;

export const adoption: Benchmark = {
  name: 'adoption',
  summary: 'How long a host that was killed takes until it has all its VMs back.',
  figures: {
    adoptAllMs: {
      meaning:
        'from the start of the daemon until it shows every VM in the phase that its keeper reports; median',
      target: { atMost: 1000 },
    },
    adoptAllMaxMs: { meaning: 'the slowest of these' },
    answerMs: { meaning: 'of these, until it answers at all; median' },
    vms: { meaning: 'VMs, each with a keeper, a QEMU and a shadow in sync', target: { atLeast: VMS } },
    lostVms: { meaning: 'VMs with another keeper or QEMU than before the kills', target: { atMost: 0 } },
    idleCpuShare: { meaning: 'share of a core that the daemon takes with these VMs running' },
    daemonRssAnonMiB: { meaning: 'memory of the daemon with these VMs running, without what it maps' },
    coldRestartMs: { meaning: 'the alternative: to stop all VMs with the daemon and to start them anew' },
  },
  run: async (run) => {
    const { quick } = run.options;
    await using host = new BenchHost(run);
    await host.startDaemon();
    const count = quick ? QUICK_VMS : VMS;
    const startMs = await startVms(run, host, count);
    const before = await listVms(host);
    for (let round = 1; round <= (quick ? QUICK_ROUNDS : ROUNDS); round += 1) {
      run.progress(`killing the daemon, round ${round}`);
      await measureRound(run, host, before);
    }
    run.progress('watching the daemon do nothing');
    const idle = () => run.options.clock.sleep(quick ? QUICK_IDLE_MS : IDLE_MS, run.options.signal);
    run.figure('idleCpuShare', await cpuShareDuring(host.daemon.pid, idle));
    run.figure('daemonRssAnonMiB', rssAnonMiB(host.daemon.pid));
    run.figure('adoptAllMs', run.p50('adoptAllMs'));
    run.figure('adoptAllMaxMs', run.quantile('adoptAllMs', 1));
    run.figure('answerMs', run.p50('answerMs'));
    run.figure('vms', count);
    run.figure('lostVms', await lostVms(host, before));
    run.figure('coldRestartMs', startMs);
    run.note('guests of 32 MiB that halt their processor; shadows in sync, an epoch a second');
    run.note('coldRestartMs: all VMs were started at once, once, and without the time to stop them');
    if (quick) run.note(`--quick: ${QUICK_VMS} VMs, not ${VMS}`);
  },
};

/** Resolves with the time that it took until all were protected. */
async function startVms(run: BenchRun, host: BenchHost, count: number): Promise<number> {
  const { clock, signal } = run.options;
  const kernel = join(host.folder, 'halting-kernel');
  writeHaltingKernel(kernel);
  const startMs = clock.nowMs();
  for (let index = 1; index <= count; index += 1) {
    const name = `adopted-${index}`;
    const spec = `name: ${name}\nmemory: 32MiB\naccel: tcg\nboot: {kernel: ${kernel}}\nshadow: {maxIntervalMs: 1000, hangTimeoutMs: 10000}\n`;
    await host.daemon.client.call('declareVm', { body: { spec, directory: '/' } }, signal);
  }
  for (let protectedBefore = -1; ; ) {
    const vms = await listVms(host);
    const failed = vms.find(({ observed }) => observed.problem !== null);
    if (failed !== undefined) throw new Error(`${failed.name}: ${failed.observed.problem?.message}`);
    const isProtected = vms.filter(({ observed }) => observed.state === 'protected').length;
    if (isProtected !== protectedBefore) run.progress(`${isProtected} of ${count} VMs are protected`);
    protectedBefore = isProtected;
    if (isProtected === count) return clock.nowMs() - startMs;
    if (clock.nowMs() - startMs > START_DEADLINE_MS) throw new Error('the VMs are not protected in time');
    await clock.sleep(WAIT_MS, signal);
  }
}

async function measureRound(run: BenchRun, host: BenchHost, before: readonly Vm[]): Promise<void> {
  const { clock, signal } = run.options;
  await clock.sleep(REST_MS, signal);
  await host.killDaemon();
  const startMs = clock.nowMs();
  await host.startDaemon();
  run.sample('answerMs', clock.nowMs() - startMs);
  for (;;) {
    const vms = await listVms(host);
    if (vms.length === before.length && vms.every(({ observed }) => observed.state === 'protected')) break;
    await clock.sleep(ASK_AGAIN_MS, signal);
  }
  run.sample('adoptAllMs', clock.nowMs() - startMs);
}

async function lostVms(host: BenchHost, before: readonly Vm[]): Promise<number> {
  const keepers = new Map((await listVms(host)).map(({ name, observed }) => [name, observed.keeperPid]));
  const { events } = await host.daemon.client.call('listEvents', { query: { limit: 1000 } });
  const acted = new Map<string | null, number>();
  for (const { vm, token } of events) acted.set(vm, Math.max(acted.get(vm) ?? 0, token ?? 0));
  return before.filter(
    ({ name, observed }) => keepers.get(name) !== observed.keeperPid || acted.get(name) !== 1,
  ).length;
}

async function listVms(host: BenchHost): Promise<readonly Vm[]> {
  return (await host.daemon.client.call('listVms', { query: { limit: 1000 } })).vms;
}
