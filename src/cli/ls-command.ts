import { formatBytes } from '../base/units.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { type FoundVm, RunDirectory } from '../control/run-directory.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { duration, type Output, table } from './output.ts';
import { openControl } from './vm-connection.ts';

interface ListedVm {
  readonly name: string;
  /** The VM's phase; else `starting`, `lost`, `failed` or `no answer`. */
  readonly state: string;
  readonly status: VmStatus | null;
}

export async function ls(out: Output): Promise<number> {
  const vms = await Promise.all(RunDirectory.list().map(ask));
  out.result({ vms }, () => (vms.length === 0 ? 'no VMs' : listText(vms)));
  return EXIT_CODES.ok.code;
}

async function ask({ name, keeper, record }: FoundVm): Promise<ListedVm> {
  if (keeper === 'lost') return { name, state: record?.failed ? 'failed' : 'lost', status: null };
  try {
    using control = await openControl(name);
    const status = await control.status();
    return { name, state: status.phase, status };
  } catch (thrown) {
    // One VM must not keep the others from being listed.
    const deaf = thrown instanceof KeeperError && thrown.code === 'KEEPER_NOT_RUNNING';
    return { name, state: deaf ? 'starting' : 'no answer', status: null };
  }
}

function listText(vms: readonly ListedVm[]): string {
  const rows = vms.map(({ name, state, status }) => [
    name,
    state,
    status === null ? '' : formatBytes(status.memoryBytes),
    status === null ? '' : status.accel,
    status === null ? '' : duration(status.upMs),
    status === null ? '' : String(status.promotions),
  ]);
  return table([['NAME', 'STATE', 'MEMORY', 'ACCEL', 'UP', 'PROMOTIONS'], ...rows]);
}
