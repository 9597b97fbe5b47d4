import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { addAbortSignal, type Duplex } from 'node:stream';
import { systemClock } from '../src/base/clock.ts';
import type { Histogram } from '../src/base/measurement.ts';
import { ControlClient } from '../src/control/control-client.ts';
import { controlSocketOf } from '../src/control/run-directory.ts';
import { orAborted } from '../src/demo/abortable-wait.ts';
import { monotonicMs } from '../src/demo/monotonic-time.ts';
import { BenchError } from './bench-error.ts';
import type { Benchmark, BenchRun } from './harness.ts';
import { demoGuest, RedisVm } from './redis-vm.ts';

const DISK = { format: 'raw', size: '128MiB', create: true };
const MOVED_MIB = 32;
/** What was moved is read so often: reading takes far less time than to start a command. */
const READS = 8;
const COMMITS = 1000;
const ROUNDS = 6;
const QUICK_ROUNDS = 2;
const LOAD_MS = 15_000;
const QUICK_LOAD_MS = 4000;
const DEADLINE_MS = 120_000;

const READ = `dd if=/dev/vda of=/dev/null bs=1M count=${MOVED_MIB} iflag=direct 2>/dev/null`;

const WAYS = ['epochs', 'qemu'] as const;
type Way = (typeof WAYS)[number];

/** What the guest does, and how often that is in one go: the time is the host's, as the guest's stands still in pauses. */
const WORK = {
  writeMiBPerS: {
    line: `dd if=/dev/zero of=/dev/vda bs=1M count=${MOVED_MIB} conv=fsync,notrunc 2>/dev/null`,
    figureOf: (ms: number) => (MOVED_MIB * 1000) / ms,
  },
  readMiBPerS: {
    line: `for i in $(seq ${READS}); do ${READ}; done`,
    figureOf: (ms: number) => (READS * MOVED_MIB * 1000) / ms,
  },
  syncedWriteMs: { line: `disk-writer /dev/vda ${COMMITS}`, figureOf: (ms: number) => ms / COMMITS },
} as const;
const NAMES = Object.keys(WORK) as (keyof typeof WORK)[];

export const disk: Benchmark = {
  name: 'disk',
  summary:
    "A guest's disk that commits with epochs, next to the same guest with a file that QEMU opens itself.",
  figures: {
    pauseP50Ms: {
      meaning: 'pause of an epoch while the guest reads and writes its disk all the time, from a histogram',
    },
    pauseP99Ms: { meaning: 'the same, 99 of 100' },
    epochs: { meaning: 'how many these were' },
    writeMiBPerS: {
      meaning: `${MOVED_MIB} MiB in requests of the guest's kernel, then an fsync; with a shadow`,
    },
    writeRatio: { meaning: "writeMiBPerS / that of QEMU's own file without a shadow; medians" },
    readMiBPerS: {
      meaning: `${MOVED_MIB} MiB past the guest's page cache, by 1 MiB, ${READS} times; with a shadow`,
    },
    readRatio: { meaning: "readMiBPerS / that of QEMU's own file without a shadow; medians" },
    syncedWriteMs: {
      meaning: `a write of 4 KiB and its fdatasync, mean of ${COMMITS} in a row; with a shadow`,
    },
    syncedWriteRatio: { meaning: "syncedWriteMs / that of QEMU's own file without a shadow; medians" },
  },
  run: async (run) => {
    const folder = mkdtempSync(join(tmpdir(), 'us-bench-disk-'));
    try {
      await measure(run, folder);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
};

async function measure(run: BenchRun, folder: string): Promise<void> {
  const { quick } = run.options;
  const guest = await demoGuest(run);
  const start = (way: Way) => {
    const disks = [{ ...DISK, path: join(folder, way) }];
    return RedisVm.start(run, { guest, isProtected: way === 'epochs', disks });
  };
  await using epochs = await start('epochs');
  await using qemu = await start('qemu');
  using ours = await Shell.of(epochs, run);
  using theirs = await Shell.of(qemu, run);
  const shells = { epochs: ours, qemu: theirs };
  const rounds = quick ? QUICK_ROUNDS : ROUNDS;
  for (let round = 1; round <= rounds; round += 1) {
    run.progress(`round ${round} of ${rounds}`);
    // In turn, and each first in every other round.
    for (const way of round % 2 === 0 ? WAYS : WAYS.toReversed()) {
      for (const name of NAMES) {
        const { line, figureOf } = WORK[name];
        run.sample(`${name}.${way}`, figureOf(await shells[way].run(line)));
      }
    }
  }
  for (const name of NAMES) {
    run.figure(name, run.p50(`${name}.epochs`));
    run.figure(name.replace(/(?:MiBPerS|Ms)$/, 'Ratio'), run.p50(`${name}.epochs`) / run.p50(`${name}.qemu`));
  }
  await measurePauses(run, { vm: epochs, shell: ours });
  run.note('both VMs live all the time, one has something to do at a time; shadow.commit: memory');
  run.note('images on the same file system; cache=writeback for the one that QEMU opens');
}

/** A reader and a writer at once, neither of which waits for the other. */
async function measurePauses(run: BenchRun, { vm, shell }: { vm: RedisVm; shell: Shell }): Promise<void> {
  const { quick, clock, signal } = run.options;
  run.progress('pauses, reads and writes under way');
  const again = (line: string) => `(while [ ! -e /tmp/enough ]; do ${line}; done) &`;
  await shell.run(`${again(READ)} ${again(WORK.writeMiBPerS.line)} sleep 1`);
  const before = await pausesOf(vm);
  await clock.sleep(quick ? QUICK_LOAD_MS : LOAD_MS, signal);
  const after = await pausesOf(vm);
  await shell.run(': > /tmp/enough');
  const counts = after.counts.map((count, index) => count - (before.counts[index] ?? 0));
  run.figure('pauseP50Ms', quantileOf({ ...after, counts }, 0.5));
  run.figure('pauseP99Ms', quantileOf({ ...after, counts }, 0.99));
  run.figure('epochs', totalOf(counts));
}

async function pausesOf({ vm }: RedisVm): Promise<Histogram> {
  using control = await ControlClient.connect(controlSocketOf(vm.name), { vm: vm.name, clock: systemClock });
  const metrics = await control.metrics();
  if (metrics === undefined) throw guestFailed('its keeper does not say what it measures');
  return metrics.epochs.pauseMs.histogram;
}

/** Between the bounds of its bucket as if samples lay there evenly. */
function quantileOf({ bounds, counts }: Histogram, q: number): number {
  let below = 0;
  for (const [index, count] of counts.entries()) {
    const rank = q * totalOf(counts) - below;
    const [from, to] = [bounds[index - 1] ?? 0, bounds[index] ?? Number.POSITIVE_INFINITY];
    if (count > 0 && rank <= count)
      return to === Number.POSITIVE_INFINITY ? from : from + ((to - from) * rank) / count;
    below += count;
  }
  throw guestFailed('there was no epoch');
}

function totalOf(counts: readonly number[]): number {
  return counts.reduce((sum, count) => sum + count, 0);
}

/** The shell on the serial console of a VM. */
class Shell implements Disposable {
  readonly #console: Duplex;
  #said = '';
  #heard = Promise.withResolvers<void>();
  #lines = 0;

  static async of({ vm }: RedisVm, { options: { signal } }: BenchRun): Promise<Shell> {
    const control = await ControlClient.connect(controlSocketOf(vm.name), {
      vm: vm.name,
      clock: systemClock,
    });
    const shell = new Shell(addAbortSignal(signal, await control.console()));
    // What is typed while the shell starts it may throw away, and the console shows what was said before.
    await shell.#until(/understudy-guest: ready[\s\S]*# /);
    return shell;
  }

  private constructor(console: Duplex) {
    this.#console = console;
    console.on('error', () => {});
    console.on('data', (bytes: Buffer) => {
      this.#said += bytes.toString('latin1');
      this.#heard.resolve();
      this.#heard = Promise.withResolvers();
    });
    console.on('close', () => this.#heard.reject(guestFailed('its console was closed')));
  }

  /** Milliseconds until it was done. @throws BenchError BENCH_GUEST_FAILED */
  async run(line: string): Promise<number> {
    this.#lines += 1;
    const startMs = monotonicMs();
    // The echo of the line looks different.
    this.#console.write(`${line}; echo en""ded:$?:${this.#lines}\n`);
    const [, exitCode] = await this.#until(new RegExp(`ended:(\\d+):${this.#lines}\r`));
    if (exitCode !== '0') throw guestFailed(`${line} ended with exit code ${exitCode}`);
    return monotonicMs() - startMs;
  }

  [Symbol.dispose](): void {
    this.#heard.promise.catch(() => {});
    this.#console.destroy();
  }

  async #until(pattern: RegExp): Promise<RegExpExecArray> {
    const late = AbortSignal.timeout(DEADLINE_MS);
    for (;;) {
      const found = pattern.exec(this.#said);
      if (found !== null) return found;
      await orAborted(this.#heard.promise, late);
    }
  }
}

function guestFailed(why: string): BenchError {
  return new BenchError('BENCH_GUEST_FAILED', `the guest of the benchmark failed: ${why}`, {
    hint: 'Try it by hand with `understudy console`.',
  });
}
