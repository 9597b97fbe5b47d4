import { execFileSync } from 'node:child_process';
import { readFileSync, statfsSync } from 'node:fs';
import { cpus, loadavg, release, totalmem } from 'node:os';
import { KIB, MIB } from '../src/base/units.ts';
import { QemuFinder } from '../src/qemu/qemu-binary.ts';

/** Where figures were measured. */
export interface MachineFacts {
  readonly cpu: string;
  readonly cores: number;
  readonly kernel: string;
  readonly memoryMiB: number;
  /** One-minute load average before the benchmark began: figures of a busy machine are worse, and scatter. */
  readonly loadBefore: number;
}

export interface Versions {
  readonly node: string;
  readonly qemu: string;
  /** Commit, with `+` when files were changed after it. */
  readonly understudy: string;
}

export function machineFacts(): MachineFacts {
  const processors = cpus();
  return {
    cpu: processors[0]?.model.trim() || 'unknown',
    cores: processors.length,
    kernel: release(),
    memoryMiB: Math.round(totalmem() / MIB),
    loadBefore: Number((loadavg()[0] ?? 0).toFixed(2)),
  };
}

export async function versions(): Promise<Versions> {
  const qemu = await new QemuFinder().find('qemu-system-x86_64');
  return { node: process.versions.node, qemu: qemu.version, understudy: revision() };
}

/** Bytes that guest memory may take in /dev/shm without anything being pushed out. */
export function freeMemoryBytes(): number {
  const available = /^MemAvailable:\s+(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1];
  const { bavail, bsize } = statfsSync('/dev/shm');
  return Math.min(Number(available ?? 0) * KIB, bavail * bsize);
}

function revision(): string {
  const git = (...args: string[]) =>
    execFileSync('git', args, {
      cwd: import.meta.dirname,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  try {
    return `${git('rev-parse', '--short=12', 'HEAD')}${git('status', '--porcelain') === '' ? '' : '+'}`;
  } catch {
    // An unpacked archive has no history.
    return `release ${JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')).version}`;
  }
}
