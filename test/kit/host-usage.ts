import { lstatSync, readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';

/** What one of two hosts uses for a VM. */
export interface HostUsage {
  /** By kind, such as `qemu` and `keeper`: how many there are. */
  readonly processes: Readonly<Record<string, number>>;
  /** Of keepers and of the process that answers for the host: the most that one of each kind has open. */
  readonly descriptors: Readonly<Record<string, number>>;
  /** Memory that is theirs alone; a guest's is a file. */
  readonly anonymousBytes: Readonly<Record<string, number>>;
  /** Of guest memory and slots. */
  readonly sharedMemoryBytes: number;
  /** Names, without what counts in them. */
  readonly files: readonly string[];
  /** In the host's network namespace, by kind. */
  readonly devices: readonly string[];
}

/** Where the files of a host are, and what marks its processes. */
export interface HostPlaces {
  /** UNDERSTUDY_RUN_DIR of all its processes. */
  readonly runDirectory: string;
  readonly stateDirectory: string;
  readonly memoryDirectory: string;
  readonly devices: readonly string[];
}

interface OwnProcess {
  readonly pid: number;
  readonly kind: string;
}

/** All processes that were started on a host, by what stands in their environment. */
export function processesOn(runDirectory: string): OwnProcess[] {
  const mark = `UNDERSTUDY_RUN_DIR=${runDirectory}`;
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => Number.isInteger(pid) && readIfPossible(pid, 'environ').split('\0').includes(mark))
    .filter((pid) => !/^\d+ \(.*\) [ZX]/.test(readIfPossible(pid, 'stat')))
    .map((pid) => ({ pid, kind: kindOf(readIfPossible(pid, 'cmdline').split('\0')) }));
}

export function usageOf(places: HostPlaces): HostUsage {
  const found = processesOn(places.runDirectory);
  const most = (look: (pid: number) => number) => {
    const by: Record<string, number> = {};
    for (const { pid, kind } of found)
      if (kind === 'keeper' || kind === 'site') by[kind] = Math.max(by[kind] ?? 0, look(pid));
    return by;
  };
  const processes: Record<string, number> = {};
  for (const { kind } of found) processes[kind] = (processes[kind] ?? 0) + 1;
  return {
    processes,
    descriptors: most((pid) => readdirSync(`/proc/${pid}/fd`).length),
    anonymousBytes: most(anonymousBytesOf),
    sharedMemoryBytes: filesBelow(places.memoryDirectory).reduce((sum, { bytes }) => sum + bytes, 0),
    files: [places.runDirectory, places.stateDirectory, places.memoryDirectory]
      .flatMap((folder) => filesBelow(folder))
      .map(({ path }) => path.replaceAll(/\d+/g, '#'))
      .toSorted(),
    devices: places.devices.map((name) => name.replaceAll(/\d+/g, '#')).toSorted(),
  };
}

/** What one process has to itself of the machine's memory. */
function anonymousBytesOf(pid: number): number {
  const [, kilobytes] = /^RssAnon:\s+(\d+) kB$/m.exec(readIfPossible(pid, 'status')) ?? [];
  return Number(kilobytes ?? 0) * 1024;
}

/** A keeper is one however it came to be: by a command, or as the keeper of a shadow. */
function kindOf([program = '', ...words]: readonly string[]): string {
  const name = basename(program);
  if (name.startsWith('qemu')) return 'qemu';
  const script = words.find((word) => word.endsWith('.ts')) ?? '';
  if (/keeper\/(?:shadow-)?main\.ts$/.test(script)) return 'keeper';
  if (script.endsWith('keeper/site-main.ts')) return 'site';
  return script === '' ? name : basename(script);
}

function filesBelow(folder: string): { path: string; bytes: number }[] {
  try {
    return readdirSync(folder, { recursive: true, encoding: 'utf8' }).flatMap((name) => {
      const stat = lstatSync(join(folder, name), { throwIfNoEntry: false });
      return stat === undefined || stat.isDirectory() ? [] : [{ path: name, bytes: stat.blocks * 512 }];
    });
  } catch {
    return [];
  }
}

function readIfPossible(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1');
  } catch {
    return '';
  }
}
