import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { makeDirectory } from '../base/make-directory.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { stateDirectory } from '../control/run-paths.ts';
import { errnoNameOf } from '../linux/linux-error.ts';

const schema = z.object({ sinceMs: z.number() });

/** That nothing more is placed on this host. */
export interface Maintenance {
  readonly sinceMs: number;
}

/**
 * Undefined: this host takes VMs and shadows. A file that cannot be understood counts as one that says otherwise: whoever
 * wrote it wanted something.
 */
export function maintenanceOf(directory: string = stateDirectory()): Maintenance | undefined {
  let text: string;
  try {
    text = readFileSync(pathIn(directory), 'utf8');
  } catch (thrown) {
    if (errnoNameOf(thrown) === 'ENOENT') return undefined;
    throw thrown;
  }
  try {
    return schema.parse(JSON.parse(text));
  } catch {
    return { sinceMs: 0 };
  }
}

/** What was there stays: when it began is of interest. */
export function beginMaintenance(
  { sinceMs }: Maintenance,
  directory: string = stateDirectory(),
): Maintenance {
  const present = maintenanceOf(directory);
  if (present !== undefined) return present;
  makeDirectory(directory, { mode: 0o700 });
  const path = pathIn(directory);
  writeFileSync(`${path}.new`, JSON.stringify({ sinceMs }), { mode: 0o600, flush: true });
  renameSync(`${path}.new`, path);
  return { sinceMs };
}

/** False when there was none. */
export function endMaintenance(directory: string = stateDirectory()): boolean {
  const wasThere = maintenanceOf(directory) !== undefined;
  rmSync(pathIn(directory), { force: true });
  return wasThere;
}

/** @throws KeeperError KEEPER_HOST_MAINTENANCE */
export function assertNoMaintenance(vm: string, directory: string = stateDirectory()): void {
  if (maintenanceOf(directory) === undefined) return;
  throw new KeeperError('KEEPER_HOST_MAINTENANCE', `this host is in maintenance, and takes no VM: ${vm}`, {
    hint: '`understudy maintenance off` ends that.',
    facts: { vm },
  });
}

function pathIn(directory: string): string {
  return join(directory, 'maintenance.json');
}
