import { type Dirent, lstatSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { isOfAnotherRun, markOf, RUN_ID_VARIABLE } from './run-mark.ts';

/**
 * Finds what a test run left behind. Only what carries our marks counts: a process by the run's id in its
 * environment or by the run's folder on its command line, everything else by a name that starts with `us-`
 * or `understudy`. Whatever else goes on on the machine is none of our business.
 */
export interface Leftover {
  readonly kind:
    | 'process'
    | 'network device'
    | 'network namespace'
    | 'cgroup'
    | 'shared memory'
    | 'runtime file'
    | 'temporary file';
  readonly name: string;
  /** Of a process. */
  readonly pid?: number;
}

export interface TestRun {
  /** Stands in the environment of every process of the run, as UNDERSTUDY_TEST_RUN. */
  readonly id: string;
  /** TMPDIR of the run. */
  readonly folder: string;
}

const OUR_NAME = /^(?:us-|understudy)/;
const CGROUP_DEPTH_MAX = 6;
const PROCESSES_MAX = 65_536;

/** Everything with our marks that exists now. The calling process itself does not count. */
export function survey(run: TestRun): Leftover[] {
  return [
    ...processesOf(run),
    ...named('/sys/class/net', 'network device'),
    ...named('/run/netns', 'network namespace'),
    ...cgroupsBelow('/sys/fs/cgroup', CGROUP_DEPTH_MAX),
    ...named('/dev/shm', 'shared memory'),
    ...runtimeFiles(),
    ...temporaryFiles(run),
  ];
}

/**
 * What exists now and was not in `before`. The kernel takes a moment to take things down after their process
 * has ended, so it looks again until nothing is left or `deadlineMs` have passed.
 */
export async function findLeftovers(
  run: TestRun,
  { before, deadlineMs }: { before: readonly Leftover[]; deadlineMs: number },
): Promise<Leftover[]> {
  const known = new Set(before.map(keyOf));
  const endMs = performance.now() + deadlineMs;
  for (;;) {
    const left = survey(run).filter(
      (found) => !known.has(keyOf(found)) && !isOfAnotherRun(basename(found.name), markOf(run.id)),
    );
    if (left.length === 0 || performance.now() >= endMs) return left;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function keyOf(found: Leftover): string {
  return `${found.kind} ${found.name}`;
}

function processesOf(run: TestRun): Leftover[] {
  const mark = `${RUN_ID_VARIABLE}=${run.id}`;
  const found: Leftover[] = [];
  for (const entry of entriesOf('/proc').slice(0, PROCESSES_MAX)) {
    const pid = Number(entry.name);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const commandLine = readIfPossible(`/proc/${pid}/cmdline`);
    const environment = readIfPossible(`/proc/${pid}/environ`).split('\0');
    // A run within this one has an id of its own.
    const isWithin = environment.some((variable) => variable.startsWith(`TMPDIR=${run.folder}`));
    if (!environment.includes(mark) && !isWithin && !commandLine.includes(run.folder)) continue;
    found.push({ kind: 'process', pid, name: `${pid}: ${commandLine.replaceAll('\0', ' ').trim()}` });
  }
  return found;
}

function named(folder: string, kind: Leftover['kind']): Leftover[] {
  return entriesOf(folder)
    .filter((entry) => OUR_NAME.test(entry.name))
    .map((entry) => ({ kind, name: join(folder, entry.name) }));
}

function cgroupsBelow(folder: string, depth: number): Leftover[] {
  const found: Leftover[] = [];
  for (const entry of entriesOf(folder)) {
    if (!entry.isDirectory()) continue;
    const path = join(folder, entry.name);
    if (OUR_NAME.test(entry.name)) found.push({ kind: 'cgroup', name: path });
    if (depth > 1) found.push(...cgroupsBelow(path, depth - 1));
  }
  return found;
}

/** Sockets, locks and state of keepers: they belong to a running VM, and none may be left. */
function runtimeFiles(): Leftover[] {
  const parents = ['/run', process.env.XDG_RUNTIME_DIR].filter((path) => path !== undefined);
  return [...new Set(parents)].flatMap((parent) =>
    named(parent, 'runtime file').flatMap(({ name }) =>
      entriesOf(name).map((entry): Leftover => ({ kind: 'runtime file', name: join(name, entry.name) })),
    ),
  );
}

function temporaryFiles(run: TestRun): Leftover[] {
  return entriesOf(run.folder)
    .filter((entry) => OUR_NAME.test(entry.name) || lstatSync(join(run.folder, entry.name)).isSocket())
    .map((entry) => ({ kind: 'temporary file', name: join(run.folder, entry.name) }));
}

/** A folder that is not there, or not ours to read, holds nothing of ours. */
function entriesOf(folder: string): Dirent[] {
  try {
    return readdirSync(folder, { withFileTypes: true });
  } catch {
    return [];
  }
}

/** Processes end while we look, and those of other users are not readable. */
function readIfPossible(path: string): string {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
}
