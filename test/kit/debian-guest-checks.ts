import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs, { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { join } from 'node:path';
import { systemClock } from '../../src/base/clock.ts';
import { CgroupTree } from '../../src/linux/cgroup.ts';
import { clearSoftDirty, Pagemap } from '../../src/linux/pagemap.ts';
import { openDirtyLog } from '../../src/memory/dirty-log-choice.ts';
import {
  type ContractOptions,
  DirtyLogBench,
  dirtyLogContract,
} from '../../src/memory/dirty-log-contract.ts';

/**
 * What is checked inside a guest that runs Debian's kernel, because the kernel of this machine may not have it.
 * Runs there as a script, `node debian-guest-checks.ts LIBRARY WRITER`, and writes one report a line.
 */
interface GuestCheck {
  readonly title: string;
  run(options: ContractOptions): Promise<void>;
}

export interface GuestReport {
  readonly title: string;
  /** Null when the check was passed. */
  readonly failure: string | null;
}

const THROTTLED_DEADLINE_MS = 60_000;
const POLL_MS = 20;

export const softDirtyChecks: readonly GuestCheck[] = [
  {
    title: 'is chosen where there is no pagemap scan',
    async run(options) {
      await using bench = await DirtyLogBench.open({ ...options, method: 'compare' });
      const { log, passedOver } = openDirtyLog({ ...bench, method: 'auto' });
      using _ = log;
      assert.equal(log.method, 'soft-dirty');
      assert.deepEqual(
        passedOver.map((error) => error.facts.method),
        ['pagemap-scan'],
      );
    },
  },
  {
    title: 'is refused for memory that may lie in huge pages, whose splitting drops bits',
    async run(options) {
      execFileSync('mount', ['-o', 'remount,huge=always', options.directory]);
      try {
        await assert.rejects(DirtyLogBench.open(options), {
          code: 'MEMORY_LOG_UNAVAILABLE',
          message: /huge=always/,
        });
      } finally {
        execFileSync('mount', ['-o', 'remount,huge=never', options.directory]);
      }
    },
  },
  {
    title: 'is refused where pages can be swapped out, which drops bits',
    async run(options) {
      const swaps = join(options.directory, 'swaps');
      writeFileSync(swaps, 'Filename\tType\tSize\tUsed\tPriority\n/dev/vda partition\t32764\t0\t-2\n');
      execFileSync('mount', ['-o', 'bind', swaps, '/proc/swaps']);
      try {
        await assert.rejects(DirtyLogBench.open(options), {
          code: 'MEMORY_LOG_UNAVAILABLE',
          message: /swap/,
        });
      } finally {
        execFileSync('umount', ['/proc/swaps']);
      }
    },
  },
  ...dirtyLogContract.map(({ title, run }) => ({
    title,
    async run(options: ContractOptions) {
      await using bench = await DirtyLogBench.open(options);
      await run(bench);
    },
  })),
];

/** How the contract takes logs that do it wrong. */
export const faultyLogChecks: readonly GuestCheck[] = [
  {
    title: 'bits that are never cleared',
    run: (options) => assertBroken(options, { fault: withoutClearing, reason: /reported untouched pages/ }),
  },
  {
    title: 'bits that are cleared before they are read',
    run: (options) => assertBroken(options, { fault: clearingFirst, reason: /missed pages/ }),
  },
];

export const cgroupChecks: readonly GuestCheck[] = [
  {
    title: 'a process is slowed down to its share, freed, and the group goes when the process has gone',
    async run() {
      const detected = CgroupTree.detect();
      assert(detected.kind === 'usable', JSON.stringify(detected));
      assert.equal(detected.tree.version, 2);
      const group = detected.tree.create('vm');
      const read = (file: string) => readFileSync(join(group.directory, file), 'utf8').trim();
      const timesThrottled = () => Number(/^nr_throttled (\d+)$/m.exec(read('cpu.stat'))?.[1]);

      const busy = spawn('sh', ['-c', 'while :; do :; done'], { stdio: 'ignore' });
      await group.addProcess(busy.pid ?? 0);
      assert.equal(readFileSync(`/proc/${busy.pid}/cgroup`, 'utf8'), '0::/understudy/vm\n');
      assert.equal(timesThrottled(), 0);
      group.setCpuShare(0.01);
      assert.equal(read('cpu.max'), '1000 100000');
      await until(() => timesThrottled() > 0);
      group.setCpuShare(0.001);
      assert.equal(read('cpu.max'), '1000 1000000');
      group.setCpuShare(1.5);
      assert.equal(read('cpu.max'), '15000 10000');
      assert.equal(group.cpuShare(), 1.5);
      assert(group.has(busy.pid ?? 0) && !group.has(process.pid));
      for (const [weight, written] of [
        [0.3, '30'],
        [1e-9, '1'],
        [1e9, '10000'],
        [null, '100'],
      ] as const) {
        group.setCpuWeight(weight);
        assert.equal(read('cpu.weight'), written);
      }
      group.setCpuShare(null);
      assert.equal(read('cpu.max'), 'max 100000');

      await assert.rejects(group.remove({ clock: systemClock, deadlineMs: POLL_MS }), {
        code: 'LINUX_CGROUP_BUSY',
      });
      busy.kill('SIGKILL');
      await once(busy, 'exit');
      await group.remove({ clock: systemClock });
      assert(!existsSync(join(group.directory, '..')), 'the parent goes with the last group');
    },
  },
];

interface Fault {
  /** Until it is disposed, soft-dirty bits are handled wrongly. */
  readonly fault: (bench: DirtyLogBench) => Disposable;
  /** What the contract says to it. */
  readonly reason: RegExp;
}

async function assertBroken(options: ContractOptions, { fault, reason }: Fault): Promise<void> {
  const history = dirtyLogContract.find(({ title }) => title.startsWith('never misses a change'));
  assert(history !== undefined);
  await using bench = await DirtyLogBench.open(options);
  using _ = fault(bench);
  await assert.rejects(history.run(bench), { name: 'AssertionError', message: reason });
}

function withoutClearing(bench: DirtyLogBench): Disposable {
  const { writeFileSync } = fs;
  fs.writeFileSync = (path, ...rest) => {
    if (path !== `/proc/${bench.writer.pid}/clear_refs`) writeFileSync(path, ...rest);
  };
  syncBuiltinESMExports();
  return restoring(() => {
    fs.writeFileSync = writeFileSync;
    syncBuiltinESMExports();
  });
}

function clearingFirst(bench: DirtyLogBench): Disposable {
  const { softDirty } = Pagemap.prototype;
  Pagemap.prototype.softDirty = function (range) {
    clearSoftDirty(bench.writer.pid);
    return softDirty.call(this, range);
  };
  return restoring(() => {
    Pagemap.prototype.softDirty = softDirty;
  });
}

function restoring(restore: () => void): Disposable {
  return { [Symbol.dispose]: restore };
}

async function until(condition: () => boolean): Promise<void> {
  const giveUpAtMs = systemClock.nowMs() + THROTTLED_DEADLINE_MS;
  while (!condition()) {
    assert(systemClock.nowMs() < giveUpAtMs, `not within ${THROTTLED_DEADLINE_MS} ms: ${condition}`);
    await systemClock.sleep(POLL_MS);
  }
}

if (import.meta.main) {
  const [libraryPath = '', writerPath = ''] = process.argv.slice(2);
  const options = { method: 'soft-dirty', libraryPath, writerPath, directory: '/dev/shm' } as const;
  for (const { title, run } of [...softDirtyChecks, ...faultyLogChecks, ...cgroupChecks]) {
    const failure = await run(options).then(
      () => null,
      (thrown) => String(thrown?.stack ?? thrown),
    );
    console.log(JSON.stringify({ title, failure } satisfies GuestReport));
  }
}
