import { formatBytes } from '../base/units.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { hostClient } from './host-connection.ts';
import { duration, type Output, table } from './output.ts';

/** The hosts that the daemon of this machine knows. */
export async function hosts(out: Output): Promise<number> {
  const page = await hostClient().call('listHosts', {});
  out.result({ hosts: page.hosts }, () => {
    const rows = page.hosts.map((host) => [
      host.name,
      host.version,
      duration(Date.now() - Date.parse(host.startedAt)),
      host.accel ?? '',
      String(host.cpus),
      `${formatBytes(host.memory.freeBytes)} of ${formatBytes(host.memory.totalBytes)}`,
      `${host.vms.declared} declared, ${host.vms.running} running, ${host.vms.protected} protected${host.maintenance ? '; in maintenance' : ''}`,
    ]);
    return table([['NAME', 'VERSION', 'UP', 'ACCEL', 'CPUS', 'FREE MEMORY', 'VMS'], ...rows]);
  });
  return EXIT_CODES.ok.code;
}
