import { formatBytes } from '../base/units.ts';
import type { Limited, LimitsOrder, LimitsStatus } from '../control/limits-status.ts';
import { EXIT_CODES } from './exit-codes.ts';
import { type Output, table } from './output.ts';
import { connectTo } from './vm-connection.ts';

/** Sets what is named, and shows what holds then. Fails where something of that could not be set. */
export async function limits(name: string, order: LimitsOrder, out: Output): Promise<number> {
  using control = await connectTo(name);
  const status = await control.limits(order);
  out.result(status, () => limitsText(status));
  return Object.values(status).some(({ problem }) => problem !== undefined)
    ? EXIT_CODES.failed.code
    : EXIT_CODES.ok.code;
}

export function limitsText(status: LimitsStatus): string {
  const rows = Object.entries(status).map(([resource, { wanted, inForce, problem }]) => [
    TITLES[resource as Limited],
    amountText(resource, inForce),
    ...(problem === undefined
      ? ['', '']
      : [amountText(resource, wanted), `${problem.message} (${problem.code})`]),
  ]);
  const isFine = Object.values(status).every(({ problem }) => problem === undefined);
  const head = ['RESOURCE', 'LIMIT', 'WANTED', 'WHY NOT'];
  return table([head, ...rows].map((row) => (isFine ? row.slice(0, 2) : row)));
}

const TITLES: Readonly<Record<Limited, string>> = {
  ...{ cpuMillicores: 'cpu', diskBytesPerSecond: 'disk' },
  ...{ netBytesPerSecond: 'net', memoryBytes: 'memory', memoryReadyBytes: 'memory ready' },
};

function amountText(resource: string, amount: number | null): string {
  if (amount === null) return 'none';
  if (resource === 'cpuMillicores') return `${amount / 1000} cores`;
  return resource.startsWith('memory') ? formatBytes(amount) : `${formatBytes(amount)}/s`;
}
