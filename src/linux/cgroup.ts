import { mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { assert } from '../base/assert.ts';
import type { Clock } from '../base/clock.ts';
import { errnoNameOf, fromNodeError, LinuxError } from './linux-error.ts';

/** All groups of ours lie below this one, next to what others make at the top of the tree. */
const PARENT = 'understudy';

/** Periods of the CPU bandwidth controller: shares so small that the kernel refuses them get the long one. */
const PERIOD_US = 100_000;
const LONG_PERIOD_US = 1_000_000;
const SHORTEST_QUOTA_US = 1000;
/** Of shares that are large enough for it: who is held back, and has to answer `stop`, waits no longer than that. */
const SHORT_PERIOD_US = 10_000;

const REMOVE_RETRY_MS = 5;

/** How the two generations of cgroups write the limit of CPU time. Quota `null` stands for none. */
interface Dialect {
  readonly version: 1 | 2;
  /** Makes the controller available in groups below `directory`. */
  enableBelow(directory: string): void;
  writeLimit(directory: string, limit: CpuLimit): void;
  readLimit(directory: string): CpuLimit;
  /** What a group gets of processors that others want as well: file, what is usual, and the kernel's bounds. */
  readonly weight: {
    readonly file: string;
    readonly usual: number;
    readonly min: number;
    readonly max: number;
  };
}

interface CpuLimit {
  readonly quotaUs: number | null;
  readonly periodUs: number;
}

/** Documentation/scheduler/sched-bwc.rst */
const v1: Dialect = {
  version: 1,
  weight: { file: 'cpu.shares', usual: 1024, min: 2, max: 262_144 },
  enableBelow() {},
  writeLimit(directory, { quotaUs, periodUs }) {
    // Free first: quota and period are checked against each other at each of the two writes.
    writeValue(join(directory, 'cpu.cfs_quota_us'), '-1');
    writeValue(join(directory, 'cpu.cfs_period_us'), String(periodUs));
    if (quotaUs !== null) writeValue(join(directory, 'cpu.cfs_quota_us'), String(quotaUs));
  },
  readLimit(directory) {
    const quotaUs = Number(readValue(join(directory, 'cpu.cfs_quota_us')));
    const periodUs = Number(readValue(join(directory, 'cpu.cfs_period_us')));
    return { quotaUs: quotaUs < 0 ? null : quotaUs, periodUs };
  },
};

/** Documentation/admin-guide/cgroup-v2.rst */
const v2: Dialect = {
  version: 2,
  weight: { file: 'cpu.weight', usual: 100, min: 1, max: 10_000 },
  enableBelow(directory) {
    writeValue(join(directory, 'cgroup.subtree_control'), '+cpu');
  },
  writeLimit(directory, { quotaUs, periodUs }) {
    writeValue(join(directory, 'cpu.max'), `${quotaUs ?? 'max'} ${periodUs}`);
  },
  readLimit(directory) {
    const [quota, period] = readValue(join(directory, 'cpu.max')).split(' ');
    return { quotaUs: quota === 'max' ? null : Number(quota), periodUs: Number(period) };
  },
};

type Detected =
  | { readonly kind: 'usable'; readonly tree: CgroupTree }
  | { readonly kind: 'unusable'; readonly reason: string };

/** The machine's CPU controller, version 1 or 2, and the groups that Understudy makes in it. */
export class CgroupTree {
  readonly #dialect: Dialect;
  readonly #root: string;

  private constructor(dialect: Dialect, root: string) {
    this.#dialect = dialect;
    this.#root = root;
  }

  /** Finds a CPU controller that this process may use; version 2 is preferred. `mountinfoPath` is for tests. */
  static detect(options: { mountinfoPath?: string } = {}): Detected {
    const mounts = cgroupMounts(options.mountinfoPath ?? '/proc/self/mountinfo');
    const unified = mounts.find(
      (mount) => mount.type === 'cgroup2' && controllersOf(mount.directory).includes('cpu'),
    );
    const legacy = mounts.find((mount) => mount.type === 'cgroup' && mount.options.includes('cpu'));
    const mount = unified ?? legacy;
    if (mount === undefined)
      return { kind: 'unusable', reason: 'no cgroup file system with the cpu controller is mounted' };
    const tree = new CgroupTree(mount === unified ? v2 : v1, mount.directory);
    try {
      tree.#ensureParent();
      tree.removeParentIfEmpty();
      return { kind: 'usable', tree };
    } catch (thrown) {
      if (!(thrown instanceof LinuxError)) throw thrown;
      return { kind: 'unusable', reason: `no group can be made in ${mount.directory}: ${thrown.message}` };
    }
  }

  get version(): 1 | 2 {
    return this.#dialect.version;
  }

  /** Makes the group `name`, or takes it over if it is there. @throws LinuxError. */
  create(name: string): Cgroup {
    assert(/^[A-Za-z0-9_-][A-Za-z0-9_.-]*$/.test(name), `a cgroup cannot be called ${name}`);
    const directory = join(this.#root, PARENT, name);
    // Another keeper may take the parent away, empty as it looks, between our two steps.
    for (let attemptsLeft = 10; ; attemptsLeft--) {
      try {
        this.#ensureParent();
        makeDirectory(directory);
        return new Cgroup(this, this.#dialect, directory);
      } catch (thrown) {
        const raced = thrown instanceof LinuxError && thrown.errnoName === 'ENOENT';
        if (!raced || attemptsLeft === 0) throw thrown;
      }
    }
  }

  #ensureParent(): void {
    const parent = join(this.#root, PARENT);
    this.#dialect.enableBelow(this.#root);
    makeDirectory(parent);
    this.#dialect.enableBelow(parent);
  }

  /** The last group to go takes the parent with it. */
  removeParentIfEmpty(): void {
    removeDirectory(join(this.#root, PARENT));
  }
}

/** One group of processes with a limit of its own. Lives until `remove`, also beyond this process. */
export class Cgroup {
  readonly directory: string;
  readonly #tree: CgroupTree;
  readonly #dialect: Dialect;

  constructor(tree: CgroupTree, dialect: Dialect, directory: string) {
    this.#tree = tree;
    this.#dialect = dialect;
    this.directory = directory;
  }

  /**
   * Moves a process with all its threads into the group; its later children are born in it. On another thread:
   * the kernel waits until every CPU has taken note, which takes up to 20 ms.
   */
  async addProcess(pid: number): Promise<void> {
    const path = join(this.directory, 'cgroup.procs');
    try {
      await writeFile(path, String(pid));
    } catch (thrown) {
      throw fromNodeError(`write ${path}`, thrown, { facts: { pid } });
    }
  }

  /**
   * Limits the whole group to this fraction of one CPU (0.001 and up, above 1 for several CPUs), at once;
   * null for no limit. Read back, so that it holds when this returns.
   */
  setCpuShare(fraction: number | null): void {
    assert(fraction === null || fraction >= 0.001, `a CPU share is at least 0.001, not ${fraction}`);
    const limit = limitOf(fraction);
    this.#dialect.writeLimit(this.directory, limit);
    const actual = this.#dialect.readLimit(this.directory);
    if (actual.quotaUs === limit.quotaUs && actual.periodUs === limit.periodUs) return;
    throw refused(this.directory, { asked: limit, actual });
  }

  /** The limit that holds, as a fraction of one CPU; null: none. @throws LinuxError */
  cpuShare(): number | null {
    const { quotaUs, periodUs } = this.#dialect.readLimit(this.directory);
    return quotaUs === null ? null : quotaUs / periodUs;
  }

  /** What it gets beside other groups when there is not enough, in proportion to theirs; null: as much as is usual. @throws LinuxError */
  setCpuWeight(weight: number | null): void {
    const { file, usual, min, max } = this.#dialect.weight;
    const path = join(this.directory, file);
    const asked = Math.min(max, Math.max(min, Math.round(usual * (weight ?? 1))));
    writeValue(path, String(asked));
    const actual = Number(readValue(path));
    if (actual !== asked) throw refused(this.directory, { asked, actual });
  }

  /** Whether this process lives in the group. False where the group is gone. */
  has(pid: number): boolean {
    try {
      return readValue(join(this.directory, 'cgroup.procs')).split('\n').includes(String(pid));
    } catch (thrown) {
      if (thrown instanceof LinuxError) return false;
      throw thrown;
    }
  }

  /**
   * Removes the group, waiting while the kernel still takes ended processes out of it. Removing it again is
   * no error.
   * @throws LinuxError LINUX_CGROUP_BUSY when processes live in it after `deadlineMs` from now.
   */
  async remove(options: { clock: Clock; deadlineMs?: number }): Promise<void> {
    const { clock, deadlineMs = 2000 } = options;
    const giveUpAtMs = clock.nowMs() + deadlineMs;
    while (!removeDirectory(this.directory)) {
      if (clock.nowMs() >= giveUpAtMs) {
        throw new LinuxError('LINUX_CGROUP_BUSY', `${this.directory} still has processes`, {
          call: 'rmdir cgroup',
          facts: {
            directory: this.directory,
            pids: readValue(join(this.directory, 'cgroup.procs')).split('\n'),
          },
          hint: 'End the processes listed in its cgroup.procs, then stop the VM again.',
        });
      }
      await clock.sleep(REMOVE_RETRY_MS);
    }
    this.#tree.removeParentIfEmpty();
  }
}

function refused(directory: string, { asked, actual }: { asked: unknown; actual: unknown }): LinuxError {
  return new LinuxError(
    'LINUX_CGROUP_LIMIT_REFUSED',
    `the kernel took ${JSON.stringify(actual)} as CPU limit`,
    {
      call: 'write cgroup',
      facts: { directory, asked, actual },
      hint: 'Something else manages this cgroup: keep it away from the group named understudy.',
    },
  );
}

function limitOf(fraction: number | null): CpuLimit {
  if (fraction === null) return { quotaUs: null, periodUs: PERIOD_US };
  const periodUs =
    [SHORT_PERIOD_US, PERIOD_US].find((period) => fraction * period >= SHORTEST_QUOTA_US) ?? LONG_PERIOD_US;
  return { quotaUs: Math.round(fraction * periodUs), periodUs };
}

/** Lines of mountinfo: `36 35 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu`, see proc(5). */
function cgroupMounts(mountinfoPath: string) {
  const mounts: { directory: string; type: string; options: string[] }[] = [];
  for (const line of readValue(mountinfoPath).split('\n')) {
    const [place, system] = line.split(' - ');
    const directory = place?.split(' ')[4];
    const [type, , options] = system?.split(' ') ?? [];
    if (directory === undefined || (type !== 'cgroup' && type !== 'cgroup2')) continue;
    mounts.push({ directory, type, options: options?.split(',') ?? [] });
  }
  return mounts;
}

function controllersOf(directory: string): string[] {
  return readValue(join(directory, 'cgroup.controllers')).split(' ');
}

function readValue(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch (thrown) {
    throw fromNodeError('read', thrown, { facts: { path } });
  }
}

function writeValue(path: string, value: string): void {
  try {
    writeFileSync(path, value);
  } catch (thrown) {
    throw fromNodeError(`write ${path}`, thrown, { facts: { value } });
  }
}

function makeDirectory(path: string): void {
  try {
    mkdirSync(path);
  } catch (thrown) {
    if (errnoNameOf(thrown) !== 'EEXIST') throw fromNodeError(`mkdir ${path}`, thrown);
  }
}

/** False while there is something in it. */
function removeDirectory(path: string): boolean {
  try {
    rmdirSync(path);
    return true;
  } catch (thrown) {
    const errno = errnoNameOf(thrown);
    if (errno === 'ENOENT') return true;
    if (errno === 'EBUSY' || errno === 'ENOTEMPTY') return false;
    throw fromNodeError(`rmdir ${path}`, thrown);
  }
}
