import { existsSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { savedStatePaths } from '../../src/control/run-paths.ts';
import type { KeeperOptions } from '../../src/keeper/keeper-options.ts';
import { stateFacts } from '../../src/keeper/state-restoring.ts';
import { RUN_ID_VARIABLE, runMark } from './run-mark.ts';

/**
 * The name of VMs that may go on from a state: it is part of a state. One worker has one VM at a time, and no other run
 * on this machine has a VM of that name.
 */
export function nameOfWorker(): string {
  return `test-${runMark()}-${process.env.VITEST_POOL_ID ?? 0}`;
}

/**
 * The state directory with the snapshot of a VM of this machine that has booted: most tests begin long after the boot of a guest, which
 * takes most of their time. Saved by `boot` if this run has none yet, and removed with the folder of the run.
 * Undefined outside of a run of the suite, where nobody would remove it.
 */
export async function bootedState(
  machine: Pick<KeeperOptions, 'spec' | 'qemu' | 'accel'>,
  boot: (stateDirectory: string) => Promise<void>,
): Promise<string | undefined> {
  if (process.env[RUN_ID_VARIABLE] === undefined) return undefined;
  const { vm, machineHash } = stateFacts(machine);
  const folder = join(tmpdir(), 'booted', machineHash.slice(0, 16));
  if (!existsSync(join(savedStatePaths(folder, vm).snapshot, 'header.json'))) {
    mkdirSync(folder, { recursive: true });
    await boot(folder);
  }
  return folder;
}
