import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { MIB } from '../src/base/units.ts';
import { EpochDisk } from '../src/block/epoch-disk.ts';
import { FileDevice } from '../src/block/file-device.ts';
import { openJournalFile } from '../src/block/journal-file.ts';
import { JournaledImage } from '../src/block/journaled-image.ts';
import { NbdServer } from '../src/block/nbd-server.ts';
import { epochId } from '../src/epoch/epoch-id.ts';
import { BenchError } from './bench-error.ts';
import type { Benchmark, BenchRun, FigureInfo } from './harness.ts';

const IMAGE_MIB = 512;
const HELD_BYTES_MAX = 128 * MIB;
const ROUNDS = 5;
const QUICK_ROUNDS = 2;
const WAIT_MS = 10;
const START_DEADLINE_MS = 10_000;

interface Load {
  readonly name: string;
  readonly meaning: string;
  readonly count: number;
  readonly words: readonly string[];
  readonly atLeast?: number;
}

/** Steps that are no multiple of what is read, so that requests are not next to each other. */
const SMALL = ['-s', '4096', '-S', '12288'];
const SERVED: readonly Load[] = (['read', 'write'] as const).flatMap((direction) => {
  const write = direction === 'write' ? ['-w'] : [];
  const name = (rest: string) => `${direction}${rest}`;
  return [
    {
      name: name('1MiB'),
      count: 2000,
      atLeast: 0.7,
      meaning: `${direction}s of 1 MiB, 32 in flight`,
      words: ['-d', '32', '-s', '1M', ...write],
    },
    {
      name: name('4KiB'),
      count: 60_000,
      atLeast: 0.7,
      meaning: `${direction}s of 4 KiB, 32 in flight`,
      words: ['-d', '32', ...SMALL, ...write],
    },
    {
      name: name('4KiBDepth1'),
      count: 20_000,
      atLeast: 0.4,
      meaning: `${direction}s of 4 KiB, one at a time`,
      words: ['-d', '1', ...SMALL, ...write],
    },
  ];
});

/** Here qemu-nbd syncs too. */
const FLUSHED: Load = {
  name: 'write1MiBFlushed',
  count: 1000,
  meaning: 'writes of 1 MiB, 32 in flight, a flush after each 64',
  words: ['-d', '32', '-s', '1M', '-w', '--flush-interval=64'],
};
const LOADS: readonly Load[] = [...SERVED, FLUSHED];

export const nbd: Benchmark = {
  name: 'nbd',
  summary: 'Throughput of a disk that commits with epochs, against qemu-nbd on the same file.',
  figures: Object.fromEntries(
    LOADS.map(({ name, meaning, atLeast }): [string, FigureInfo] => [
      `${name}Ratio`,
      {
        meaning: `${meaning}: requests a second / those of qemu-nbd; medians`,
        ...(atLeast !== undefined && { target: { atLeast } }),
      },
    ]),
  ),
  run: async (run) => {
    await using peers = await Peers.start();
    const rounds = run.options.quick ? QUICK_ROUNDS : ROUNDS;
    for (let round = 1; round <= rounds; round += 1) {
      run.progress(`round ${round} of ${rounds}`);
      for (const load of LOADS) {
        // In turn, and each first in every other round.
        for (const peer of round % 2 === 0
          ? (['ours', 'qemuNbd'] as const)
          : (['qemuNbd', 'ours'] as const)) {
          run.sample(
            `${load.name}PerS.${peer}`,
            load.count / (await secondsOf(load, peers.uriOf(peer), run)),
          );
        }
      }
    }
    for (const { name } of LOADS) {
      run.figure(`${name}Ratio`, run.p50(`${name}PerS.ours`) / run.p50(`${name}PerS.qemuNbd`));
    }
    run.note(
      `image of ${IMAGE_MIB} MiB in the page cache; the client is qemu-img bench in a process of its own`,
    );
    run.note(
      `ours: in sync, cut whenever ${HELD_BYTES_MAX / MIB / 2} MiB are held, so that all that is written goes through the journal into the image meanwhile, both synced; flushes answered at once; ${peers.epochs} epochs`,
    );
    run.note('qemu-nbd writes to the page cache, once, and syncs nothing unless a flush is sent');
  },
};

/** Both servers, on one file. */
class Peers implements AsyncDisposable {
  readonly #folder = mkdtempSync(join(tmpdir(), 'us-nbd-'));
  #disk: EpochDisk | undefined;
  #server: NbdServer | undefined;
  #qemuNbd: ChildProcess | undefined;
  epochs = 0;

  static async start(): Promise<Peers> {
    const peers = new Peers();
    try {
      const image = join(peers.#folder, 'image');
      writeFileSync(image, randomBytes(IMAGE_MIB * MIB));
      await peers.#startOurs(image);
      await peers.#startQemuNbd(image);
      return peers;
    } catch (thrown) {
      await peers[Symbol.asyncDispose]();
      throw thrown;
    }
  }

  uriOf(peer: 'ours' | 'qemuNbd'): string {
    return `nbd+unix:///?socket=${join(this.#folder, peer)}`;
  }

  async #startOurs(image: string): Promise<void> {
    const disk = new EpochDisk({
      image: await JournaledImage.open({
        device: await FileDevice.open(image),
        journal: await openJournalFile(`${image}.journal`),
      }),
      mode: 'in-sync',
      token: () => 1,
      heldBytesMax: HELD_BYTES_MAX,
      onFailed: (failure) => {
        throw failure;
      },
      onCutWanted: () => {
        // Asked for with every write until there is room: one epoch at a time.
        if (this.epochs > 0 && disk.isWriting) return;
        this.epochs += 1;
        disk.seal(epochId(this.epochs));
        disk.commit(epochId(this.epochs));
      },
    });
    this.#disk = disk;
    this.#server = await NbdServer.listen({
      socketPath: join(this.#folder, 'ours'),
      exports: [{ name: '', device: disk, readOnly: false }],
    });
  }

  async #startQemuNbd(image: string): Promise<void> {
    const socketPath = join(this.#folder, 'qemuNbd');
    const server = spawn('qemu-nbd', ['-f', 'raw', '-t', '-e', '4', '-k', socketPath, image], {
      stdio: 'inherit',
    });
    this.#qemuNbd = server;
    const missing = once(server, 'error').then(([cause]) => {
      throw new BenchError('BENCH_TOOL_MISSING', 'qemu-nbd cannot be started', {
        hint: 'Install it: apt-get install --no-install-recommends qemu-utils.',
        cause,
      });
    });
    missing.catch(() => {});
    for (let waitedMs = 0; !existsSync(socketPath); waitedMs += WAIT_MS) {
      if (server.exitCode !== null || waitedMs > START_DEADLINE_MS) {
        throw new BenchError('BENCH_PEER_FAILED', 'qemu-nbd does not serve', {
          hint: 'See what it said above.',
        });
      }
      await Promise.race([missing, new Promise((resolve) => setTimeout(resolve, WAIT_MS))]);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const server = this.#qemuNbd;
    if (server?.pid !== undefined && server.exitCode === null) {
      const ended = once(server, 'exit');
      server.kill('SIGKILL');
      await ended;
    }
    await this.#server?.close();
    await this.#disk?.close();
    rmSync(this.#folder, { recursive: true, force: true });
  }
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
