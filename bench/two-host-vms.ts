import type { HostName, TwoHosts as Hosts } from '../test/kit/two-hosts.ts';
import { TwoHosts } from '../test/kit/two-hosts.ts';
import type { BenchRun } from './harness.ts';

/** How the Redis VM of a benchmark is protected. */
export type Protection = 'elsewhere' | 'here' | 'none';

const SPECS: Readonly<Record<Protection, Record<string, unknown>>> = {
  elsewhere: {},
  here: { shadow: {} },
  none: { shadow: { enabled: false } },
};

/** As in site.yaml by default; tests are more patient. */
const DEFAULT_SILENCE = { peerTimeoutMs: 1000, peerTimeoutMinMs: 300 };

/** Two hosts in network namespaces with a Redis VM on host a, its clients on a network of their own. */
export async function startTwoHosts(
  run: BenchRun,
  { protection, clients }: { protection: Protection; clients: number },
): Promise<Hosts> {
  run.progress(`booting a VM with ${protection === 'none' ? 'no shadow' : `its shadow ${protection}`}`);
  const hosts = await TwoHosts.open({ spec: SPECS[protection], site: DEFAULT_SILENCE });
  try {
    await hosts.start('a');
    await hosts.connect(clients);
    if (protection !== 'none') await hosts.until('a', 'protected');
    return hosts;
  } catch (thrown) {
    await hosts[Symbol.asyncDispose]();
    throw thrown;
  }
}

export function otherHost(host: HostName): HostName {
  return host === 'a' ? 'b' : 'a';
}
