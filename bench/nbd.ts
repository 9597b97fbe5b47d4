import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { promisify } from 'node:util';
import { MIB } from '../src/base/units.ts';
import { HELD_BYTES_MAX } from '../src/keeper/vm-disk.ts';
import { BenchError } from './bench-error.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';
import { NbdServers, type ServerName } from './nbd-servers.ts';

const IMAGE_MIB = 512;
const ROUNDS = 5;
const QUICK_ROUNDS = 2;
/** With --quick so many times fewer requests. */
const QUICK_DIVISOR = 4;

interface Load {
  readonly name: string;
  readonly meaning: string;
  readonly count: number;
  readonly requestBytes: number;
  readonly words: readonly string[];
  readonly atLeast?: number;
}

/** Steps that are no multiple of what is read, so that requests are not next to each other. */
const SMALL = { requestBytes: 4096, words: ['-s', '4096', '-S', '12288'] };
const SERVED: readonly Load[] = (['read', 'write'] as const).flatMap((direction) => {
  const write = direction === 'write' ? ['-w'] : [];
  return [
    {
      name: `${direction}1m`,
      count: 2000,
      atLeast: 0.7,
      meaning: `${direction}s of 1 MiB, 32 in flight`,
      requestBytes: MIB,
      words: ['-d', '32', '-s', '1M', ...write],
    },
    {
      name: `${direction}4kDepth32`,
      count: 30_000,
      atLeast: 0.7,
      meaning: `${direction}s of 4 KiB, 32 in flight`,
      ...{ ...SMALL, words: ['-d', '32', ...SMALL.words, ...write] },
    },
    {
      name: `${direction}4kDepth1`,
      count: 10_000,
      atLeast: 0.4,
      meaning: `${direction}s of 4 KiB, one at a time`,
      ...{ ...SMALL, words: ['-d', '1', ...SMALL.words, ...write] },
    },
  ];
});

/** Here qemu-nbd syncs too. */
const FLUSHED: Load = {
  name: 'write1mFlushed',
  count: 1000,
  meaning: 'writes of 1 MiB, 32 in flight, a flush after each 64',
  requestBytes: MIB,
  words: ['-d', '32', '-s', '1M', '-w', '--flush-interval=64'],
};
const LOADS: readonly Load[] = [...SERVED, FLUSHED];
/** Where the least that Node can do is looked at too. */
const BARE_LOAD = 'write1m';

const PER_SECOND = 'requests a second / those of qemu-nbd; medians';
const OURS = [
  { server: 'protected', suffix: '', who: 'a VM with a shadow' },
  { server: 'alone', suffix: 'Alone', who: 'a VM without one' },
] as const;

function figures(): Record<string, FigureInfo> {
  const found: [string, FigureInfo][] = OURS.flatMap(({ suffix, who }) =>
    LOADS.map(({ name, meaning, atLeast }): [string, FigureInfo] => [
      `${name}${suffix}Ratio`,
      {
        meaning: `${who}: ${meaning}: ${PER_SECOND}`,
        ...(atLeast !== undefined && suffix === '' && { target: { atLeast } }),
      },
    ]),
  );
  for (const { suffix, who } of OURS) {
    const meaning = `${who}: CPU time of the server for writes of 1 MiB, 32 in flight / that of qemu-nbd; medians`;
    found.push([`${BARE_LOAD}${suffix}CpuRatio`, { meaning }]);
  }
  const bare = 'a server that only reads from a stream of Node, writes to the page cache and answers';
  found.push([`${BARE_LOAD}BareRatio`, { meaning: `${bare}: writes of 1 MiB, 32 in flight: ${PER_SECOND}` }]);
  return Object.fromEntries(found);
}

export const nbd: Benchmark = {
  name: 'nbd',
  summary: 'Throughput of a disk that commits with epochs, against qemu-nbd on the same file.',
  figures: figures(),
  run: async (run) => {
    await using servers = await NbdServers.start((image) =>
      writeFileSync(image, randomBytes(IMAGE_MIB * MIB)),
    );
    const rounds = run.options.quick ? QUICK_ROUNDS : ROUNDS;
    for (let round = 1; round <= rounds; round += 1) {
      run.progress(`round ${round} of ${rounds}`);
      for (const load of LOADS) {
        // In turn, and in the other direction in every other round.
        const names: ServerName[] = ['qemuNbd', 'protected', 'alone'];
        if (load.name === BARE_LOAD) names.push('bare');
        if (round % 2 === 0) names.reverse();
        for (const server of names) await measure(load, { server, servers, run });
      }
    }
    summarise(run);
    run.note(
      `image of ${IMAGE_MIB} MiB in the page cache, synced before each load; the client is qemu-img bench in a process of its own`,
    );
    run.note(
      `protected: in sync, ${HELD_BYTES_MAX / MIB} MiB held at most as in a VM, cut at once whenever half of that is held, so that all that is written goes through the journal into the image meanwhile, both synced; flushes answered at once; ${servers.epochs} epochs; what the shadow receives is not part of it`,
    );
    run.note('alone: each write is in the page cache of the image before it is answered; a flush syncs it');
    run.note('qemu-nbd writes to the page cache, once, and syncs nothing unless a flush is sent');
  },
};

function summarise(run: BenchRun): void {
  const ratio = (series: string, server: ServerName) =>
    run.p50(`${series}.${server}`) / run.p50(`${series}.qemuNbd`);
  for (const { server, suffix } of OURS) {
    for (const { name } of LOADS) run.figure(`${name}${suffix}Ratio`, ratio(`${name}PerS`, server));
    run.figure(`${BARE_LOAD}${suffix}CpuRatio`, ratio(`${BARE_LOAD}CpuMsPerMiB`, server));
  }
  run.figure(`${BARE_LOAD}BareRatio`, ratio(`${BARE_LOAD}PerS`, 'bare'));
}

interface Measured {
  readonly server: ServerName;
  readonly servers: NbdServers;
  readonly run: BenchRun;
}

async function measure(load: Load, { server, servers, run }: Measured): Promise<void> {
  await servers.settle();
  const count = load.count / (run.options.quick ? QUICK_DIVISOR : 1);
  const beforeMs = servers.cpuMsOf(server);
  const seconds = await secondsOf({ ...load, count }, servers.uriOf(server), run);
  run.sample(`${load.name}PerS.${server}`, count / seconds);
  const cpuMs = servers.cpuMsOf(server) - beforeMs;
  run.sample(`${load.name}CpuMsPerMiB.${server}`, cpuMs / ((count * load.requestBytes) / MIB));
}

async function secondsOf({ words, count }: Load, uri: string, run: BenchRun): Promise<number> {
  const all = ['bench', '-f', 'raw', '-c', String(count), ...words, uri];
  const { stdout } = await promisify(execFile)('qemu-img', all, { signal: run.options.signal });
  const seconds = Number(/completed in ([\d.]+) seconds/.exec(stdout)?.[1]);
  if (seconds > 0) return seconds;
  throw new BenchError('BENCH_PEER_FAILED', `qemu-img bench says '${stdout.trim()}'`, {
    hint: 'Try it by hand.',
  });
}
