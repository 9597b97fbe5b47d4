import { execFileSync } from 'node:child_process';
import { readFileSync, rmdirSync, rmSync } from 'node:fs';
import { basename } from 'node:path';
import { type Leftover, survey, type TestRun } from './leftovers.ts';
import { isMarked, markOf } from './run-mark.ts';

const LOOK_MS = 20;
/** For the kernel to take down what its processes had. */
const DEADLINE_MS = 10_000;

/**
 * Ends and removes all that is provably of this run: its processes, what carries its mark in the name, and what is mounted
 * or lies in its folder. Returns what that was, for people.
 */
export async function removeRun(run: TestRun): Promise<string[]> {
  const removed = new Set<string>();
  const endMs = performance.now() + DEADLINE_MS;
  for (;;) {
    const left = survey(run).filter((item) => isOf(run, item));
    if (left.length === 0) break;
    // Processes first: they hold the rest, and may make more of it.
    const processes = left.filter(({ kind }) => kind === 'process');
    for (const item of processes.length > 0 ? processes : deepestFirst(left)) {
      removed.add(`${item.kind} ${item.name}`);
      attempt(() => remove(item));
    }
    if (performance.now() > endMs) break;
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
  for (const path of mountsBelow(run.folder)) {
    removed.add(`mount ${path}`);
    attempt(() => execFileSync('umount', ['--lazy', path], { stdio: 'ignore' }));
  }
  if (mountsBelow(run.folder).length === 0) rmSync(run.folder, { recursive: true, force: true });
  return [...removed];
}

function isOf(run: TestRun, { kind, name }: Leftover): boolean {
  if (kind === 'process') return true;
  // These go with the folder, or are nobody's in particular.
  if (kind === 'temporary file' || kind === 'runtime file') return false;
  return isMarked(basename(name), markOf(run.id));
}

function remove({ kind, name, pid }: Leftover): void {
  switch (kind) {
    case 'process':
      if (pid !== undefined) process.kill(pid, 'SIGKILL');
      return;
    case 'network namespace':
      execFileSync('ip', ['netns', 'delete', basename(name)], { stdio: 'ignore' });
      return;
    case 'network device':
      execFileSync('ip', ['link', 'delete', basename(name)], { stdio: 'ignore' });
      return;
    case 'cgroup':
      rmdirSync(name);
      return;
    case 'shared memory':
      rmSync(name, { recursive: true, force: true });
      return;
  }
}

/** What cannot be removed yet is tried again; what cannot be removed at all is found by whoever looks for leftovers. */
function attempt(act: () => void): void {
  try {
    act();
  } catch {
    // It may have gone by itself, too.
  }
}

function deepestFirst(items: readonly Leftover[]): Leftover[] {
  return items.toSorted((one, other) => other.name.length - one.name.length);
}

/** Newest first. */
function mountsBelow(folder: string): string[] {
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((path) => path.startsWith(`${folder}/`))
    .reverse();
}
