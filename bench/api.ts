import { writeFileSync } from 'node:fs';
import { Agent, request as httpRequest } from 'node:http';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import type { Question, RouteId } from '../src/api/routes.ts';
import { seededRandom } from '../src/base/seeded-random.ts';
import { BareServer } from './bare-server.ts';
import { BenchHost, cpuShareDuring, rssAnonMiB } from './bench-host.ts';
import { EventReaders } from './event-readers.ts';
import type { Benchmark, BenchRun } from './harness.ts';
import { demoGuest } from './redis-vm.ts';

const SEED = 3;
const VMS = 1000;
const IDLE_VMS = 50;
const READERS = 2000;
const READS = 1000;
const QUICK_READS = 200;
const EVENTS = 50;
const QUICK_EVENTS = 10;
const IDLE_MS = 60_000;
const QUICK_IDLE_MS = 3000;
const SETTLE_MS = 1000;
const DECLARED_AT_ONCE = 8;
const KEEPER_WATCH_MS = 10_000;
const QUICK_KEEPER_WATCH_MS = 2000;
const PROTECTED_DEADLINE_MS = 120_000;
const ASK_AGAIN_MS = 100;

export const api: Benchmark = {
  name: 'api',
  summary:
    'The API of a host with 1,000 declared VMs and 2,000 readers of events, and what daemon and keeper take.',
  figures: {
    readP99Ms: {
      meaning: 'a read with 1,000 VMs declared, a connection for each as the CLI makes it, 99 of 100',
      target: { atMost: 20 },
    },
    readP50Ms: { meaning: 'the same, median' },
    readKeptP99Ms: {
      meaning: 'the same reads over one connection that is kept, 99 of 100',
      target: { atMost: 20 },
    },
    readKeptP50Ms: { meaning: 'the same, median' },
    bareP99Ms: {
      meaning: 'peer: node:http that answers a page of the same size, a connection for each, 99 of 100',
    },
    bareP50Ms: { meaning: 'the same, median' },
    readRatio: { meaning: 'readP50Ms / bareP50Ms' },
    virshListP50Ms: { meaning: 'peer: libvirt, `virsh list --all` with as many domains' },
    declarePerSecond: {
      meaning: 'VMs declared a second, 8 requests at once, each on disk before it is answered',
    },
    idleCpuShare: {
      meaning: 'share of a core that the daemon takes with 50 declared VMs when nobody asks for anything',
      target: { atMost: 0.01 },
    },
    daemonRssAnonMiB: { meaning: 'memory of that daemon, without what it maps', target: { atMost: 150 } },
    daemonRssAnon1000MiB: { meaning: 'memory of the daemon with 1,000 VMs, after the reads' },
    daemonRssAnonReadersMiB: { meaning: 'the same with 2,000 readers of events, after the last event' },
    keeperRssAnonMiB: {
      meaning: 'memory of the keeper of a protected VM, without the guest',
      target: { atMost: 80 },
    },
    sseClients: {
      meaning: 'readers of the live events that got every event once and in order',
      target: { atLeast: READERS },
    },
    sseLost: { meaning: 'events that a reader did not get, over all readers', target: { atMost: 0 } },
    sseDoubled: { meaning: 'events that a reader got twice', target: { atMost: 0 } },
    deliverAllP50Ms: { meaning: 'from the request that causes an event until all readers have it, median' },
  },
  run: async (run) => {
    await measureIdle(run);
    await measureInventory(run);
    run.missing(
      'virshListP50Ms',
      'libvirt is not installed here, and to install it would start daemons, bridges and firewall rules of its own',
    );
  },
};

/** A daemon with few VMs, and the keeper of one that runs. */
async function measureIdle(run: BenchRun): Promise<void> {
  const { quick, clock, signal } = run.options;
  await using host = new BenchHost(run);
  await host.startDaemon();
  run.progress(`declaring ${IDLE_VMS} VMs and watching the daemon do nothing`);
  await declare(run, host, IDLE_VMS);
  await clock.sleep(SETTLE_MS, signal);
  const idleMs = quick ? QUICK_IDLE_MS : IDLE_MS;
  const { pid } = host.daemon;
  run.figure('idleCpuShare', await cpuShareDuring(pid, () => clock.sleep(idleMs, signal)));
  run.figure('daemonRssAnonMiB', rssAnonMiB(pid));
  if (quick) run.note(`idleCpuShare: of ${idleMs / 1000} s, not ${IDLE_MS / 1000} s`);
  await measureKeeper(run, host);
}

async function measureKeeper(run: BenchRun, host: BenchHost): Promise<void> {
  const { quick, clock, signal } = run.options;
  const watchMs = quick ? QUICK_KEEPER_WATCH_MS : KEEPER_WATCH_MS;
  const { kernel, initrd, cmdline } = await demoGuest(run);
  run.progress('starting a VM with a shadow');
  const spec = `name: kept\nmemory: 256MiB\naccel: tcg\nboot: {kernel: ${kernel}, initrd: ${initrd}, cmdline: ${cmdline}}\n`;
  const { client } = host.daemon;
  await client.call('declareVm', { body: { spec, directory: '/' } }, signal);
  const endMs = clock.nowMs() + PROTECTED_DEADLINE_MS;
  for (;;) {
    const { observed } = await client.call('getVm', { params: { name: 'kept' } }, signal);
    if (observed.state === 'protected') {
      await clock.sleep(watchMs, signal);
      run.figure('keeperRssAnonMiB', rssAnonMiB(observed.keeperPid ?? 0));
      return;
    }
    if (observed.problem !== null) throw new Error(observed.problem.message);
    if (clock.nowMs() > endMs) throw new Error(`the VM is ${observed.state}, not protected`);
    await clock.sleep(ASK_AGAIN_MS, signal);
  }
}

/** A daemon with many VMs, none of which runs: reads and events. */
async function measureInventory(run: BenchRun): Promise<void> {
  const { clock } = run.options;
  await using host = new BenchHost(run);
  await host.startDaemon();
  run.progress(`declaring ${VMS} VMs`);
  const startMs = clock.nowMs();
  await declare(run, host, VMS);
  run.figure('declarePerSecond', VMS / ((clock.nowMs() - startMs) / 1000));
  await measureReads(run, host);
  run.figure('daemonRssAnon1000MiB', rssAnonMiB(host.daemon.pid));
  await measureReaders(run, host);
  run.note(`inventory of seed ${SEED}: specifications of 200 to 2,000 bytes, all VMs stopped`);
  run.note('daemon, benchmark and readers share the cores of this machine');
}

async function declare(run: BenchRun, host: BenchHost, count: number): Promise<void> {
  const { signal } = run.options;
  const random = seededRandom(SEED);
  const kernel = join(host.folder, 'kernel');
  writeFileSync(kernel, '');
  const bodies = Array.from({ length: count }, (_, index) => {
    const comment = '# '.padEnd(Math.floor(1800 * random()), 'x');
    const memory = 64 * (1 + Math.floor(16 * random()));
    const name = vmName(index);
    return {
      spec: `name: ${name}\nmemory: ${memory}MiB\nboot:\n  kernel: ${kernel}\n  cmdline: console=ttyS0\n${comment}\n`,
      directory: '/',
      desired: 'stopped' as const,
    };
  });
  const declareNext = async () => {
    for (let body = bodies.pop(); body !== undefined; body = bodies.pop())
      await host.daemon.client.call('declareVm', { body }, signal);
  };
  await Promise.all(Array.from({ length: DECLARED_AT_ONCE }, declareNext));
}

function vmName(index: number): string {
  return `vm-${String(index).padStart(4, '0')}`;
}

interface Read<Id extends RouteId = RouteId> {
  readonly id: Exclude<Id, 'streamEvents' | 'openConsole'>;
  readonly question: object;
  readonly path: string;
}

/** What people and programs ask for, in equal parts. */
function readAt(random: () => number): Read {
  const name = vmName(Math.floor(VMS * random()));
  const after = vmName(Math.floor((VMS - 100) * random()));
  const event = Math.floor(VMS * random());
  const reads: Read[] = [
    { id: 'getVm', question: { params: { name } }, path: `/v1/vms/${name}` },
    { id: 'listVms', question: { query: { after } }, path: `/v1/vms?after=${after}` },
    { id: 'listEvents', question: { query: { after: event } }, path: `/v1/events?after=${event}` },
    { id: 'getHealth', question: {}, path: '/v1/health' },
    { id: 'listHosts', question: {}, path: '/v1/hosts' },
  ];
  return reads[Math.floor(reads.length * random())] as Read;
}

/** In turn: as the CLI reads, over a connection that is kept, and from the peer. */
async function measureReads(run: BenchRun, host: BenchHost): Promise<void> {
  const { quick, clock, signal } = run.options;
  const { client, socketPath } = host.daemon;
  const random = seededRandom(SEED);
  const page = JSON.stringify(await client.call('listVms', {}, signal));
  await using bare = await BareServer.start({ folder: host.folder, answer: page });
  const kept = new Agent({ keepAlive: true, maxSockets: 1 });
  const reads = quick ? QUICK_READS : READS;
  const timed = async (series: string, work: () => Promise<unknown>) => {
    const startMs = clock.nowMs();
    await work();
    run.sample(series, clock.nowMs() - startMs);
  };
  try {
    run.progress(`reading ${reads} times`);
    for (let count = 0; count < reads; count += 1) {
      signal.throwIfAborted();
      const { id, question, path } = readAt(random);
      const asked = question as Question<typeof id>;
      await timed(id, () => timed('readMs', () => client.call(id, asked, signal)));
      await timed('readKeptMs', () => get(socketPath, { path, agent: kept }));
      await timed('bareMs', () => get(bare.socketPath, { path: '/', agent: false }));
    }
  } finally {
    kept.destroy();
  }
  run.figure('readP99Ms', run.quantile('readMs', 0.99));
  run.figure('readP50Ms', run.p50('readMs'));
  run.figure('readKeptP99Ms', run.quantile('readKeptMs', 0.99));
  run.figure('readKeptP50Ms', run.p50('readKeptMs'));
  run.figure('bareP99Ms', run.quantile('bareMs', 0.99));
  run.figure('bareP50Ms', run.p50('bareMs'));
  run.figure('readRatio', run.p50('readMs') / run.p50('bareMs'));
}

/** The whole answer, read as JSON like the client of the API does. */
async function get(
  socketPath: string,
  { path, agent }: { path: string; agent: Agent | false },
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const request = httpRequest({ socketPath, path, agent }, (response) =>
    text(response).then(resolve, reject),
  );
  request.on('error', reject).end();
  JSON.parse(await promise);
}

async function measureReaders(run: BenchRun, host: BenchHost): Promise<void> {
  const { quick, clock, signal } = run.options;
  const { client, socketPath, pid } = host.daemon;
  run.progress(`connecting ${READERS} readers of events`);
  await using readers = await EventReaders.open(socketPath, { count: READERS, signal });
  const before = await newestEvent(host);
  run.progress('causing events, one after the other');
  const params = { name: vmName(0) };
  for (let count = 0; count < (quick ? QUICK_EVENTS : EVENTS); count += 1) {
    const { version, spec, directory } = await client.call('getVm', { params }, signal);
    const all = readers.nextEvent(signal);
    const startMs = clock.nowMs();
    const headers = { 'if-match': `"${version}"` };
    await Promise.all([all, client.call('changeVm', { params, headers, body: { spec, directory } }, signal)]);
    run.sample('deliverAllMs', clock.nowMs() - startMs);
  }
  const expected = await eventsAfter(host, before);
  // A stream is one connection: a second copy of an event would have come before the event after it.
  const { served, lost, doubled } = readers.compare(expected);
  run.figure('sseClients', served);
  run.figure('sseLost', lost);
  run.figure('sseDoubled', doubled);
  run.figure('deliverAllP50Ms', run.p50('deliverAllMs'));
  run.figure('daemonRssAnonReadersMiB', rssAnonMiB(pid));
}

async function newestEvent({ daemon }: BenchHost): Promise<number> {
  for (let after = 0; ; ) {
    const { events, next } = await daemon.client.call('listEvents', { query: { after, limit: 1000 } });
    after = events.at(-1)?.id ?? after;
    if (next === null) return after;
  }
}

async function eventsAfter({ daemon }: BenchHost, after: number): Promise<number[]> {
  const { events } = await daemon.client.call('listEvents', { query: { after, limit: 1000 } });
  return events.map(({ id }) => id);
}
