import { readdirSync, readFileSync } from 'node:fs';
import { z } from 'zod';
import type { Clock } from '../base/clock.ts';
import { LinuxError } from '../linux/linux-error.ts';
import { PidFd } from '../linux/pidfd.ts';

/** Process ids are used again; together with the start time one names a process for as long as this boot lasts. */
export const processIdentitySchema = z.object({
  pid: z.int().positive(),
  /** Field 22 of /proc/PID/stat: clock ticks since the boot. */
  startTicks: z.int().nonnegative(),
});

export type ProcessIdentity = z.infer<typeof processIdentitySchema>;

/** Undefined when there is no such process, or only what is left of it until its parent looks. */
export function identityOf(pid: number): ProcessIdentity | undefined {
  const stat = readProc(`${pid}/stat`);
  // The second field is the program's name in parentheses and may itself hold spaces and parentheses.
  const [state, ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const startTicks = Number(fields[18]);
  if (state === undefined || state === '' || 'ZX'.includes(state) || Number.isNaN(startTicks))
    return undefined;
  return { pid, startTicks };
}

export function isAlive(identity: ProcessIdentity): boolean {
  return identityOf(identity.pid)?.startTicks === identity.startTicks;
}

/** Whether it stands still by SIGSTOP, as a QEMU does whose keeper was killed. False when it is gone. */
export function standsStill(identity: ProcessIdentity): boolean {
  return isAlive(identity) && /\) [Tt] /.test(readProc(`${identity.pid}/stat`));
}

interface WaitOptions {
  readonly deadlineMs: number;
  readonly clock: Clock;
}

/**
 * Kills exactly this process and waits until it can never act again. False when it still lives after
 * `deadlineMs`: it hangs in the kernel.
 */
export async function endProcess(identity: ProcessIdentity, options: WaitOptions): Promise<boolean> {
  using handle = holdProcess(identity);
  handle?.signal('SIGKILL');
  return (await handle?.waitForExit(options)) ?? true;
}

/** Sends a signal to exactly this process before anything else of this program runs; waits for nothing. */
export function signalNow(identity: ProcessIdentity, signal: NodeJS.Signals): void {
  using handle = holdProcess(identity);
  handle?.signal(signal);
}

/** False when the process still lives after `deadlineMs`. */
export async function waitForEnd(identity: ProcessIdentity, options: WaitOptions): Promise<boolean> {
  using handle = holdProcess(identity);
  return (await handle?.waitForExit(options)) ?? true;
}

/** A handle of exactly this process; undefined when it is gone. */
export function holdProcess(identity: ProcessIdentity): PidFd | undefined {
  let handle: PidFd;
  try {
    handle = PidFd.open(identity.pid);
  } catch (thrown) {
    if (thrown instanceof LinuxError && thrown.errnoName === 'ESRCH') return undefined;
    throw thrown;
  }
  // Asked while the handle is held: from here on the id cannot mean another process.
  if (isAlive(identity)) return handle;
  handle[Symbol.dispose]();
  return undefined;
}

/** Processes that have a file below `directory` mapped into their memory. */
export function processesMapping(directory: string): ProcessIdentity[] {
  return idsOfMapping(` ${directory}/`)
    .map(identityOf)
    .filter((identity) => identity !== undefined);
}

/** Whether a process has this file mapped into its memory, by whatever name it was mapped. */
export function isMapped(path: string): boolean {
  return idsOfMapping(` ${path}\n`).length > 0;
}

function idsOfMapping(text: string): number[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .filter((pid) => readProc(`${pid}/maps`).includes(text))
    .map(Number);
}

/** Changes with every start of the machine. */
export function bootId(): string {
  return readProc('sys/kernel/random/boot_id').trim();
}

/** Processes end while one looks, and those of other users may not be read: both count as not there. */
function readProc(path: string): string {
  try {
    return readFileSync(`/proc/${path}`, 'latin1');
  } catch {
    return '';
  }
}
