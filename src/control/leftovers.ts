import { rmdirSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Clock } from '../base/clock.ts';
import { errnoNameOf } from '../linux/linux-error.ts';
import { KeeperError } from './keeper-error.ts';
import { type RecordedQemu, readRecord } from './keeper-record.ts';
import { directoriesIn, emptyDirectory, entriesOf, removeIfEmpty } from './own-directory.ts';
import { bootId, endProcess, isAlive, type ProcessIdentity, processesMapping } from './process-identity.ts';
import { keepRelic } from './relic.ts';
import { runPaths, SPEC_FILE } from './run-paths.ts';

const END_DEADLINE_MS = 5000;
const CGROUP_ROOT = '/sys/fs/cgroup';
const CGROUP_REMOVE_TRIES = 50;
const CGROUP_RETRY_MS = 20;

/**
 * Ends and removes what a keeper that was killed left behind, and empties both directories but for the lock and, with
 * `keepMemory`, what lies in memory. `spared` is a QEMU that is to be taken back: it stays, with its files, cgroup and
 * memory. Where a VM is to be gone on from, its specification stays too. Only for who holds the name's lock. Returns the ids of the processes that had outlived their keeper.
 * @throws KeeperError KEEPER_LOST when one of them cannot be ended.
 */
export async function clearLeftovers(
  name: string,
  { clock, keepMemory = false, keepsRelic = false, spared }: ClearOptions,
): Promise<number[]> {
  const paths = runPaths(name);
  const record = readRecord(paths.record);
  const known =
    record === 'absent' || record === undefined || record.bootId !== bootId() ? undefined : record;
  // QEMU maps its guest's memory: so it is found even if its keeper was killed before it wrote down the id.
  const found = [...(known?.processes ?? []), ...processesMapping(paths.memory)];
  const ended = await endAll(
    found.filter(({ pid }) => pid !== spared?.process.pid),
    clock,
  );
  const isSpared = (cgroup: string) => basename(cgroup) === `${name}-${spared?.instance}`;
  const recorded = (known?.cgroups ?? []).filter((cgroup) => !isSpared(cgroup));
  for (const cgroup of recorded) await removeCgroup(cgroup, clock);
  // What is not on record may also be another user's, and may not be ours to remove.
  for (const cgroup of cgroupsOf(name).filter((group) => !isSpared(group)))
    await removeCgroup(cgroup, clock).catch(() => {});
  if (keepsRelic) salvageRelic(name);
  if (!keepMemory && spared === undefined) emptyDirectory(paths.memory, []);
  const kept = keepMemory || spared !== undefined ? [SPEC_FILE] : [];
  emptyDirectory(paths.directory, [
    'lock',
    ...kept,
    ...(spared === undefined ? [] : [String(spared.instance)]),
  ]);
  return ended;
}

interface ClearOptions {
  readonly clock: Clock;
  readonly keepMemory?: boolean;
  /** Memory that was left is put aside: see relic.ts. */
  readonly keepsRelic?: boolean;
  readonly spared?: RecordedQemu | undefined;
}

/**
 * Ends a QEMU that was spared and removes all that it had but its memory.
 * @throws KeeperError KEEPER_LOST when it cannot be ended: then nothing may go on from its memory.
 */
export async function clearSpared(
  name: string,
  { process, instance }: RecordedQemu,
  clock: Clock,
): Promise<void> {
  await endAll([process], clock);
  for (const cgroup of cgroupsOf(name)) await removeCgroup(cgroup, clock).catch(() => {});
  rmSync(join(runPaths(name).directory, String(instance)), { recursive: true, force: true });
}

/** Memory of the last QEMU that a killed keeper started. Its processes have ended. */
export function salvageRelic(name: string): void {
  const { memory } = runPaths(name);
  const numbered = entriesOf(memory)
    .map((entry) => ({ entry, number: Number(/-(\d+)\.ram$/.exec(entry)?.[1] ?? 0) }))
    .sort((one, other) => other.number - one.number);
  const [last] = numbered.filter(({ number }) => number > 0);
  if (last !== undefined) keepRelic(name, join(memory, last.entry));
}

/** Kills these processes and waits for their end. Returns the ids of those that lived. */
export async function endAll(processes: readonly ProcessIdentity[], clock: Clock): Promise<number[]> {
  const living = new Map(processes.filter(isAlive).map((identity) => [identity.pid, identity]));
  for (const identity of living.values()) {
    if (await endProcess(identity, { clock, deadlineMs: END_DEADLINE_MS })) continue;
    throw new KeeperError('KEEPER_LOST', `process ${identity.pid} of a lost keeper cannot be ended`, {
      hint: 'It hangs in the kernel. Look at `dmesg`, then try again; else restart this machine.',
      facts: { pid: identity.pid },
    });
  }
  return [...living.keys()];
}

/** The groups `understudy/NAME-<n>`, recorded or not: a keeper may be killed between making one and writing it down. */
function cgroupsOf(name: string): string[] {
  const roots = [CGROUP_ROOT, ...directoriesIn(CGROUP_ROOT).map((mount) => join(CGROUP_ROOT, mount))];
  // The last hyphen ends the name: no other VM's group looks like this.
  const isOurs = (group: string) => group.slice(0, group.lastIndexOf('-')) === name && /-\d+$/.test(group);
  return roots
    .map((root) => join(root, 'understudy'))
    .flatMap((parent) =>
      directoriesIn(parent)
        .filter(isOurs)
        .map((group) => join(parent, group)),
    );
}

async function removeCgroup(directory: string, clock: Clock): Promise<void> {
  // The record is a file like any other: never remove a group that cannot be one of ours.
  if (!/^\/sys\/fs\/cgroup\/(.+\/)?understudy\/[^/]+$/.test(directory)) return;
  for (let tries = 0; tries < CGROUP_REMOVE_TRIES; tries += 1) {
    try {
      rmdirSync(directory);
    } catch (thrown) {
      // The kernel takes a moment to take ended processes out.
      if (errnoNameOf(thrown) === 'EBUSY') {
        await clock.sleep(CGROUP_RETRY_MS);
        continue;
      }
      if (errnoNameOf(thrown) !== 'ENOENT') throw thrown;
    }
    removeIfEmpty(dirname(directory));
    return;
  }
}

/** Locks last: as long as they are there nobody else makes use of what goes away. */
export function removeDirectories(name: string): void {
  const { directory, memory, lock } = runPaths(name);
  rmSync(memory, { recursive: true, force: true });
  emptyDirectory(directory, ['lock']);
  rmSync(lock, { force: true });
  removeIfEmpty(directory);
}
