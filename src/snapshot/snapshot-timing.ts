import { createHash } from 'node:crypto';

const DAY_MS = 86_400_000;

interface Timing {
  readonly everyMs: number;
  /** VMs of one host shall not write at once: each has moments of its own. */
  readonly vm: string;
  /** When the newest was taken by schedule; of a VM without any, since when it is kept. */
  readonly lastMs: number;
  readonly wallMs: number;
}

/**
 * When the next snapshot by schedule is due: its moments are a grid over wall time, which does not depend on when a keeper
 * was started. One that was missed is due now.
 */
export function dueAtMs({ everyMs, vm, lastMs, wallMs }: Timing): number {
  const phaseMs = phaseOf(vm, everyMs);
  const momentMs = Math.floor((wallMs - phaseMs) / everyMs) * everyMs + phaseMs;
  return lastMs >= momentMs ? momentMs + everyMs : momentMs;
}

/** Where in a time of this length a VM has its place: always the same, and another one than most others. */
export function phaseOf(vm: string, lengthMs: number): number {
  const share = createHash('sha256').update(vm).digest().readUInt32LE(0) / 2 ** 32;
  return Math.floor(share * lengthMs);
}

export interface Retention {
  /** So many of the newest stay. */
  readonly keep: number;
  /** And the newest of each of so many days, as UTC counts them. */
  readonly daily: number;
}

/** Of snapshots that were taken by themselves, newest first: those that may go. */
export function expired<Each extends { readonly savedAtMs: number }>(
  newestFirst: readonly Each[],
  { keep, daily }: Retention,
): Each[] {
  const kept = new Set(newestFirst.slice(0, keep));
  const days = new Set<number>();
  for (const each of newestFirst) {
    const day = Math.floor(each.savedAtMs / DAY_MS);
    if (days.has(day)) continue;
    if (days.size >= daily) break;
    days.add(day);
    kept.add(each);
  }
  return newestFirst.filter((each) => !kept.has(each));
}
