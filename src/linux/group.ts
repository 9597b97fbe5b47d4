import { execFileSync } from 'node:child_process';

const DEADLINE_MS = 10_000;

/** Id of a group; undefined when there is none. Through `getent`, which asks NSS: not every group stands in /etc/group. */
export function groupIdOf(name: string): number | undefined {
  try {
    const line = execFileSync('getent', ['group', '--', name], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: DEADLINE_MS,
    });
    return Number(line.split(':')[2]);
  } catch {
    return undefined;
  }
}
