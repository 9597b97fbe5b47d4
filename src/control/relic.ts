import { existsSync, lchownSync, lstatSync, renameSync, rmSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { errnoNameOf } from '../linux/linux-error.ts';
import { entriesOf, makeOwnDirectory, removeIfEmpty } from './own-directory.ts';
import { isMapped } from './process-identity.ts';
import { memoryRoot } from './run-paths.ts';

/** Nobody comes back to it after that. */
const RELIC_AGE_MS_MAX = 30 * 60_000;
const SUFFIX = '.ram';

/**
 * Memory of a VM that acted on this host, or had its shadow here, and does so no more: a next shadow begins with it and needs
 * only what differs. Nothing depends on it, and whatever is in it does no harm: it goes first when room is short.
 */
export interface Relic {
  readonly vm: string;
  readonly ageMs: number;
}

function relicDirectory(): string {
  return join(memoryRoot(), `understudy-relics.${process.geteuid?.() ?? 0}`);
}

function relicPath(vm: string): string {
  return join(relicDirectory(), `${vm}${SUFFIX}`);
}

/** Where all may make directories, one of that name may be somebody else's, with links in it: it is left alone then. */
function isOurs(): boolean {
  try {
    if (!existsSync(relicDirectory())) return false;
    makeOwnDirectory(relicDirectory(), { othersMayPass: false });
    return true;
  } catch {
    return false;
  }
}

/** Puts memory aside whose QEMU is dead, in the place of what was put aside before. False where it cannot be. */
export function keepRelic(vm: string, memoryPath: string): boolean {
  try {
    makeOwnDirectory(relicDirectory(), { othersMayPass: false });
    renameSync(memoryPath, relicPath(vm));
    // It may have been that of the user that QEMU ran as.
    lchownSync(relicPath(vm), process.geteuid?.() ?? 0, process.getegid?.() ?? 0);
    utimesSync(relicPath(vm), new Date(), new Date());
    return true;
  } catch {
    dropRelic(vm);
    return false;
  }
}

/**
 * Moves it to where a QEMU will map it. False where there is none of this size, or somebody has it open yet; nothing is left
 * of it then.
 */
export function takeRelic(vm: string, { to, memoryBytes }: { to: string; memoryBytes: number }): boolean {
  if (!isOurs()) return false;
  try {
    const found = lstatSync(relicPath(vm));
    if (found.isFile() && found.size === memoryBytes && !isMapped(relicPath(vm))) {
      renameSync(relicPath(vm), to);
      removeIfEmpty(relicDirectory());
      return true;
    }
  } catch {
    // Whatever keeps it from being used: everything is brought over.
  }
  dropRelic(vm);
  return false;
}

/** The VM goes on without it, or not at all. */
export function dropRelic(vm: string): void {
  if (!isOurs()) return;
  rmSync(relicPath(vm), { force: true });
  removeIfEmpty(relicDirectory());
}

export function listRelics(nowMs = Date.now()): Relic[] {
  if (!isOurs()) return [];
  return entriesOf(relicDirectory())
    .filter((name) => name.endsWith(SUFFIX))
    .flatMap((name) => {
      const vm = name.slice(0, -SUFFIX.length);
      const age = ageOf(relicPath(vm), nowMs);
      return age === undefined ? [] : [{ vm, ageMs: age }];
    });
}

/** All of them, for somebody who needs the room. False where there was none. */
export function dropAllRelics(): boolean {
  const relics = listRelics();
  for (const { vm } of relics) dropRelic(vm);
  return relics.length > 0;
}

/** Those that nobody comes back to: too old, or `isOver` says so. */
export async function sweepRelics(isOver: (vm: string) => Promise<boolean>): Promise<void> {
  dropOldRelics();
  for (const { vm } of listRelics()) if (await isOver(vm)) dropRelic(vm);
}

/** Those that are too old, for whoever comes by: what sweeps them all the time may have ended. */
export function dropOldRelics(): void {
  for (const { vm, ageMs } of listRelics()) if (ageMs > RELIC_AGE_MS_MAX) dropRelic(vm);
}

function ageOf(path: string, nowMs: number): number | undefined {
  try {
    return Math.max(0, nowMs - lstatSync(path).mtimeMs);
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return undefined;
    throw thrown;
  }
}
