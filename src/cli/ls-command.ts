import { ApiError } from '../api/api-error.ts';
import type { Vm } from '../api/resources.ts';
import { formatBytes } from '../base/units.ts';
import { KeeperError } from '../control/keeper-error.ts';
import { type FoundVm, RunDirectory } from '../control/run-directory.ts';
import type { VmStatus } from '../control/vm-status.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { duration, type Output, table } from './output.ts';
import { openControl } from './vm-connection.ts';

interface ListedVm {
  readonly name: string;
  /** The VM's phase; else `starting`, `lost`, `failed` or `no answer`. */
  readonly state: string;
  /** Of a lost VM: the QEMU that stands still and can be taken back. */
  readonly qemuPid?: number;
  readonly status: VmStatus | null;
  /** Whether the host owns it, and what it shall be; null for a VM that was started by `run`. */
  readonly desired: Vm['desired'] | null;
  /** The host that acts as it, where that is another one. */
  readonly actsOn: string | null;
}

export async function ls(out: Output): Promise<number> {
  const declared = await declaredVms();
  const found = await Promise.all(RunDirectory.list().map(ask));
  const running = found.map((vm) => ({ ...vm, desired: declared.get(vm.name)?.desired ?? null }));
  const absent = [...declared].filter(([name]) => !found.some((vm) => vm.name === name));
  const vms = [
    ...running,
    ...absent.map(
      ([
        name,
        {
          desired,
          observed: { actsOn },
        },
      ]) => {
        const state = actsOn === null ? 'absent' : 'elsewhere';
        return { name, state, status: null, desired, actsOn };
      },
    ),
  ];
  vms.sort((one, other) => (one.name < other.name ? -1 : 1));
  out.result({ vms }, () => (vms.length === 0 ? 'no VMs' : listText(vms)));
  return EXIT_CODES.ok.code;
}

/** Those that the host of this machine owns, if there is one. */
async function declaredVms(): Promise<Map<string, Vm>> {
  const found = new Map<string, Vm>();
  let after: string | undefined;
  try {
    do {
      const query = { limit: 1000, ...(after !== undefined && { after }) };
      const page = await hostClient().call('listVms', { query });
      for (const vm of page.vms) found.set(vm.name, vm);
      after = page.next ?? undefined;
    } while (after !== undefined);
  } catch (thrown) {
    if (!(thrown instanceof ApiError) || thrown.code !== 'API_UNREACHABLE') throw thrown;
  }
  return found;
}

async function ask({ name, keeper, record, orphan }: FoundVm): Promise<Omit<ListedVm, 'desired'>> {
  if (keeper === 'lost') {
    const standing = orphan === undefined ? {} : { qemuPid: orphan.process.pid };
    return { name, state: record?.failed ? 'failed' : 'lost', status: null, actsOn: null, ...standing };
  }
  try {
    using control = await openControl(name);
    const status = await control.status();
    return { name, state: status.phase, status, actsOn: status.actsOn ?? null };
  } catch (thrown) {
    // One VM must not keep the others from being listed.
    const deaf = thrown instanceof KeeperError && thrown.code === 'KEEPER_NOT_RUNNING';
    return { name, state: deaf ? 'starting' : 'no answer', status: null, actsOn: null };
  }
}

function listText(vms: readonly ListedVm[]): string {
  const rows = vms.map(({ name, state, status, desired, actsOn, qemuPid }) => [
    name,
    qemuPid === undefined ? state : `${state}, stands still`,
    desired ?? '',
    status === null ? '' : formatBytes(status.memoryBytes),
    status === null ? '' : status.accel,
    status === null ? '' : duration(status.upMs),
    status === null ? '' : String(status.promotions),
    actsOn ?? '',
  ]);
  return table([['NAME', 'STATE', 'DESIRED', 'MEMORY', 'ACCEL', 'UP', 'PROMOTIONS', 'ON'], ...rows]);
}
