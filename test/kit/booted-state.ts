import { createHash } from 'node:crypto';
import { existsSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KeeperOptions } from '../../src/keeper/keeper-options.ts';
import { stateFacts } from '../../src/keeper/state-restoring.ts';
import { RUN_ID_VARIABLE } from './leftovers.ts';

type SavedIn = NonNullable<KeeperOptions['savedIn']>;

/**
 * The name of VMs that may go on from a state: it is part of a state. One worker has one VM at a time, and no other run
 * on this machine has a VM of that name.
 */
export function nameOfWorker(): string {
  const run = createHash('sha256').update(process.env[RUN_ID_VARIABLE] ?? String(process.pid));
  return `test-${run.digest('hex').slice(0, 8)}-${process.env.VITEST_POOL_ID ?? 0}`;
}

/**
 * Where a VM of this machine lies that has booted and been saved: most tests begin long after the boot of a guest, which
 * takes most of their time. Saved by `boot` if this run has none yet, and removed with the folder of the run.
 * Undefined outside of a run of the suite, where nobody would remove it.
 */
export async function bootedState(
  machine: Pick<KeeperOptions, 'spec' | 'qemu' | 'accel'>,
  boot: (savedIn: SavedIn) => Promise<void>,
): Promise<SavedIn | undefined> {
  if (process.env[RUN_ID_VARIABLE] === undefined) return undefined;
  const { vm, machineHash } = stateFacts(machine);
  const folder = join(tmpdir(), 'booted', `${vm}-${machineHash.slice(0, 16)}`);
  const savedIn = { suspended: join(folder, 'suspended'), snapshot: join(folder, 'snapshot') };
  if (!existsSync(join(savedIn.snapshot, 'header.json'))) {
    mkdirSync(folder, { recursive: true });
    await boot(savedIn);
  }
  return savedIn;
}
