import type { HostUsage } from './host-usage.ts';

/** Connections of commands, and of this test, that are open in the moment of a look. */
const DESCRIPTORS_SLACK = 6;
/** A heap grows until it is worth collecting, and a keeper remembers 64 MiB of what it has sent. */
const ANONYMOUS_SLACK_BYTES = 100e6;
/** A guest comes to use all of its memory, and nothing beyond it may grow. */
const SHARED_SLACK_BYTES = 16 * 2 ** 20;

export interface DriftOptions {
  readonly memoryBytes: number;
}

/**
 * What a host uses more in the last third of all rounds than in the first one, in the same role. Medians: what is on its way in the
 * moment of a look does not count, what stays does. Empty if nothing.
 */
export function driftOf(usages: readonly HostUsage[], { memoryBytes }: DriftOptions): string[] {
  const third = Math.max(1, Math.floor(usages.length / 3));
  const [early, late] = [usages.slice(0, third).map(countersOf), usages.slice(-third).map(countersOf)];
  const names = new Set([...early, ...late].flatMap((counters) => Object.keys(counters)));
  return [...names].flatMap((name) => {
    const of = (counters: readonly Counters[]) => medianOf(counters.map((each) => each[name] ?? 0));
    const [before, after] = [of(early), of(late)];
    const limit = name === SHARED ? memoryBytes + SHARED_SLACK_BYTES : before + slackOf(name);
    return after > limit ? [`${name}: ${before}, then ${after}`] : [];
  });
}

/** In a line, for people. */
export function summaryOf({ descriptors, anonymousBytes, sharedMemoryBytes, files }: HostUsage): string {
  const each = Object.keys(descriptors)
    .toSorted()
    .map((kind) => `${kind} ${descriptors[kind]} fds ${megabytes(anonymousBytes[kind] ?? 0)}`);
  return [...each, `shm ${megabytes(sharedMemoryBytes)}`, `${files.length} files`].join(', ');
}

type Counters = Readonly<Record<string, number>>;

const SHARED = 'shared memory';

function countersOf(usage: HostUsage): Counters {
  const counters: Record<string, number> = { [SHARED]: usage.sharedMemoryBytes };
  const counted = {
    processes: usage.processes,
    descriptors: usage.descriptors,
    memory: usage.anonymousBytes,
  };
  for (const [what, by] of Object.entries(counted))
    for (const [kind, count] of Object.entries(by)) counters[`${what} of ${kind}`] = count;
  for (const name of [...usage.files, ...usage.devices]) counters[name] = (counters[name] ?? 0) + 1;
  return counters;
}

function slackOf(name: string): number {
  if (name.startsWith('descriptors ')) return DESCRIPTORS_SLACK;
  return name.startsWith('memory ') ? ANONYMOUS_SLACK_BYTES : 0;
}

/** The greater one of two in the middle: one of two hosts that leaks is half of them. */
function medianOf(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0;
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
