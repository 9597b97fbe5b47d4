import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest';
import { systemClock } from '../base/clock.ts';
import { CgroupTree } from './cgroup.ts';

const clock = systemClock;

function usable(options: { mountinfoPath?: string } = {}): CgroupTree {
  const detected = CgroupTree.detect(options);
  if (detected.kind === 'unusable') throw new Error(detected.reason);
  return detected.tree;
}

const real = CgroupTree.detect();

describe.skipIf(real.kind === 'unusable')('on the cgroups of this machine', () => {
  const name = `test-${process.pid}`;

  test('a process is limited to its share, freed, and the group goes when the process has gone', async () => {
    const group = usable().create(name);
    onTestFinished(() => group.remove({ clock }));
    const child = spawn('sleep', ['1000'], { stdio: 'ignore' });
    onTestFinished(() => void child.kill('SIGKILL'));

    await group.addProcess(child.pid ?? 0);
    expect(readFileSync(`/proc/${child.pid}/cgroup`, 'utf8')).toContain(`understudy/${name}`);
    for (const fraction of [0.01, 0.001, 0.3, 1.5, null]) {
      group.setCpuShare(fraction);
      expect(group.cpuShare()).toBe(fraction);
    }
    for (const weight of [0.3, 1e-9, 1e9, null]) group.setCpuWeight(weight);
    expect(
      readFileSync(
        join(
          group.directory,
          real.kind === 'usable' && real.tree.version === 2 ? 'cpu.weight' : 'cpu.shares',
        ),
        'utf8',
      ).trim(),
    ).toMatch(/^(100|1024)$/);
    expect(group.has(child.pid ?? 0)).toBe(true);
    expect(group.has(process.pid)).toBe(false);
    await expect(group.remove({ clock, deadlineMs: 20 })).rejects.toMatchObject({
      code: 'LINUX_CGROUP_BUSY',
      facts: { pids: [String(child.pid)] },
    });

    child.kill('SIGKILL');
    await group.remove({ clock });
    await group.remove({ clock });
    expect(existsSync(group.directory)).toBe(false);
  });

  test('a dead process cannot be added', async () => {
    const group = usable().create(`${name}-dead`);
    onTestFinished(() => group.remove({ clock }));
    await expect(group.addProcess(2 ** 22 + 1)).rejects.toMatchObject({ errnoName: 'ESRCH' });
  });
});

/**
 * A directory tree made after the kernel's documentation (admin-guide/cgroup-v2.rst) and the mounts that are usual
 * on Debian with systemd: the lines of mountinfo and the files that are read. It does not act like the kernel:
 * files of a new group appear when we write them, and a group with files in it cannot be removed. The real thing
 * is tested in test/integration/debian-guest.test.ts.
 */
describe('on a tree that looks like version 2', () => {
  let root: string;
  let mountinfoPath: string;

  beforeEach(() => {
    const directory = mkdtempSync(join(tmpdir(), 'understudy-cgroup-'));
    root = join(directory, 'cgroup');
    mkdirSync(root);
    writeFileSync(join(root, 'cgroup.controllers'), 'cpuset cpu io memory hugetlb pids rdma misc\n');
    writeFileSync(join(root, 'cgroup.subtree_control'), 'memory pids\n');
    mountinfoPath = join(directory, 'mountinfo');
    const mount = `30 23 0:26 / ${root} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot`;
    writeFileSync(mountinfoPath, `22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n${mount}\n`);
  });

  afterEach(() => rmSync(join(root, '..'), { recursive: true }));

  test('the cpu controller is enabled from the top down to the group', () => {
    const group = usable({ mountinfoPath }).create('vm');
    expect(readFileSync(join(root, 'cgroup.subtree_control'), 'utf8')).toBe('+cpu');
    expect(readFileSync(join(root, 'understudy/cgroup.subtree_control'), 'utf8')).toBe('+cpu');
    expect(group.directory).toBe(join(root, 'understudy/vm'));
  });

  test('shares are written as quota and period, with a longer period where the kernel would refuse', async () => {
    const group = usable({ mountinfoPath }).create('vm');
    const limitFor = (fraction: number | null) => {
      group.setCpuShare(fraction);
      return readFileSync(join(group.directory, 'cpu.max'), 'utf8');
    };
    expect(limitFor(0.01)).toBe('1000 100000');
    expect(limitFor(0.3)).toBe('3000 10000');
    expect(group.cpuShare()).toBe(0.3);
    expect(limitFor(0.002)).toBe('2000 1000000');
    expect(limitFor(2)).toBe('20000 10000');
    expect(limitFor(null)).toBe('max 100000');
    expect(group.cpuShare()).toBe(null);
    group.setCpuWeight(0.3);
    expect(readFileSync(join(group.directory, 'cpu.weight'), 'utf8')).toBe('30');
    for (const [weight, written] of [
      [null, '100'],
      [1e-9, '1'],
      [1e9, '10000'],
    ] as const) {
      group.setCpuWeight(weight);
      expect(readFileSync(join(group.directory, 'cpu.weight'), 'utf8')).toBe(written);
    }
    await group.addProcess(123);
    expect(readFileSync(join(group.directory, 'cgroup.procs'), 'utf8')).toBe('123');
    expect([group.has(123), group.has(12)]).toEqual([true, false]);
  });

  test('version 2 is taken where both have the controller', () => {
    expect(usable({ mountinfoPath }).version).toBe(2);
  });

  test('the last group takes the parent with it', async () => {
    // The parent's control file is no obstacle in the kernel's tree.
    const tree = usable({ mountinfoPath });
    const groups = ['one', 'two'].map((name) => tree.create(name));
    rmSync(join(root, 'understudy/cgroup.subtree_control'));
    await groups[0]?.remove({ clock });
    expect(existsSync(join(root, 'understudy'))).toBe(true);
    await groups[1]?.remove({ clock });
    expect(existsSync(join(root, 'understudy'))).toBe(false);
  });

  test('a tree without the cpu controller, or without any cgroups, is unusable and says why', () => {
    writeFileSync(join(root, 'cgroup.controllers'), 'memory pids\n');
    expect(CgroupTree.detect({ mountinfoPath })).toMatchObject({
      kind: 'unusable',
      reason: expect.stringContaining('cpu controller'),
    });
    writeFileSync(mountinfoPath, '22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n');
    expect(CgroupTree.detect({ mountinfoPath })).toMatchObject({ kind: 'unusable' });
  });
});
