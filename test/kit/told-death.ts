import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { HostName, TwoHosts } from './two-hosts.ts';

const FAILPOINTS = new URL('../../src/base/failpoint.ts', import.meta.url);

function orderPath(hosts: TwoHosts, host: HostName): string {
  return join(hosts.folder, `dies-on-${host}`);
}

/** Plants for both hosts: whoever comes first to the step that its host was told dies there. See `dieAt`. */
export function dyingWhenTold(hosts: TwoHosts): Record<HostName, string> {
  return { a: plant(orderPath(hosts, 'a')), b: plant(orderPath(hosts, 'b')) };
}

function plant(path: string): string {
  return `
    const { Failpoints } = await import(${JSON.stringify(FAILPOINTS.href)});
    const { readFileSync, rmSync } = await import('node:fs');
    // Not at each step of each epoch.
    const rare = /^(save|resume|arm)\\./;
    Failpoints.prototype.hit = function (name) {
      if (!rare.test(name)) return;
      try {
        if (readFileSync(${JSON.stringify(path)}, 'utf8') !== name) return;
      } catch {
        return;
      }
      rmSync(${JSON.stringify(path)});
      process.kill(process.pid, 'SIGKILL');
    };`;
}

/** The keeper on this host is killed at a step which `act` brings it to. Resolves when it is dead. */
export async function dieAt(
  hosts: TwoHosts,
  { host, step, act }: { host: HostName; step: string; act: () => unknown },
): Promise<void> {
  const pid = hosts.keeperPid(host);
  writeFileSync(orderPath(hosts, host), step);
  await act();
  await hosts.eventually(`the death of the keeper on ${host} at ${step}`, () => !existsSync(`/proc/${pid}`));
}
