import type { HostUsage } from './host-usage.ts';

/** Before they count as steady: both hosts have been what the other one was. */
const FIRST_ROUNDS = 2;
/** Connections of commands and of this test that are open in the moment of a look. */
const DESCRIPTORS_SLACK = 6;
/** What a heap without a leak may grow by, as Node sees no reason to shrink it. */
const ANONYMOUS_SLACK_BYTES = 100e6;
/** A guest comes to use all of its memory, and nothing beyond it may grow. */
const SHARED_SLACK_BYTES = 16 * 2 ** 20;

export interface DriftOptions {
  readonly memoryBytes: number;
}

/** What a host uses more after many rounds than after the first ones, of the same role. Empty if nothing. */
export function driftOf(usages: readonly HostUsage[], { memoryBytes }: DriftOptions): string[] {
  const [steady, later] = [usages.slice(0, FIRST_ROUNDS), usages.slice(FIRST_ROUNDS)];
  const found = new Set<string>();
  for (const kind of ['processes', 'files', 'devices'] as const) {
    const known = new Set(steady.map((usage) => canonical(usage[kind])));
    for (const usage of later)
      if (!known.has(canonical(usage[kind]))) found.add(`${kind}: ${canonical(usage[kind])}`);
  }
  for (const process of Object.keys(steady[0]?.descriptors ?? {})) {
    const ofFirst = Math.max(...steady.map(({ descriptors }) => descriptors[process] ?? 0));
    const most = Math.max(...later.map(({ descriptors }) => descriptors[process] ?? 0));
    if (most > ofFirst + DESCRIPTORS_SLACK) found.add(`descriptors of ${process}: ${ofFirst}, then ${most}`);
    const early = medianOf(steady.map(({ anonymousBytes }) => anonymousBytes[process] ?? 0));
    const late = medianOf(
      later.slice(-steady.length).map(({ anonymousBytes }) => anonymousBytes[process] ?? 0),
    );
    if (late > early + ANONYMOUS_SLACK_BYTES) found.add(`memory of ${process}: ${early} bytes, then ${late}`);
  }
  const shared = Math.max(...later.map(({ sharedMemoryBytes }) => sharedMemoryBytes));
  if (shared > memoryBytes + SHARED_SLACK_BYTES) found.add(`shared memory: ${shared} bytes`);
  return [...found];
}

/** In a line, for people. */
export function summaryOf({ descriptors, anonymousBytes, sharedMemoryBytes, files }: HostUsage): string {
  const each = Object.keys(descriptors)
    .toSorted()
    .map((kind) => `${kind} ${descriptors[kind]} fds ${megabytes(anonymousBytes[kind] ?? 0)}`);
  return [...each, `shm ${megabytes(sharedMemoryBytes)}`, `${files.length} files`].join(', ');
}

function canonical(value: Readonly<Record<string, number>> | readonly string[]): string {
  return Array.isArray(value) ? value.join(' ') : JSON.stringify(Object.entries(value).toSorted());
}

function medianOf(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0;
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
